"""The page of defended victims: changes and costs, the filter, hostile names; CSV, Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import leaderboard
from leaderboard.boards.defenses import defense_words
from leaderboard.tables import markdown
from leaderboard.wording.records import attacker_words
from robustbench_med.bench.record import Stored

from .browser import Tags
from .planted import HOSTILE, VICTIMS
from .planted_shields import (
    BARE,
    GUARD,
    JPEG,
    RETRAINED,
    SMOOTHING,
    WRAPPED,
    card,
    certificate,
    detecting,
    retrained,
    retrained_card,
    shield_field,
    wrapped,
)

Maker = Callable[..., Stored]


@pytest.fixture(scope="module")
def page(shields: Path) -> str:
    return shields.read_text(encoding="utf-8")


def _rows(page: str) -> dict[str, str]:
    bodies = re.findall(r"<tbody data-place=.*?</tbody>", page, flags=re.DOTALL)
    return {str(re.findall(r'data-defense="(.*?)"', body)[0]): body for body in bodies}


def test_the_price_stands_under_the_name(page: str) -> None:
    rows = _rows(page)
    assert "price" not in rows["undefended"]
    menu = re.findall(r'<option value="(d\d)">(.*?)</option>', page)
    marks = {name: f"defended {mark}" for mark, name in menu}
    assert sorted(marks) == ["JPEG", "Mahalanobis", "PGD-AT", "Randomised smoothing"]
    for name, cost in (
        ("JPEG", "2.2 × the time a pass"),
        ("Randomised smoothing", "16.0 × the time a pass"),
        ("PGD-AT", "trained 24 epochs, 8 passes an image instead of 1"),
    ):
        body = rows[marks[name]]
        assert '<span data-key="clean_change">clean −10.0,</span>' in body
        assert 'data-changes="+10.0|+20.0|+30.0|+30.0|+30.0">+30.0</span></span> points' in body
        assert f'<small class="price" data-key="slower">{cost}</small>' in body
        assert "<dt>Compared with</dt><dd>ResNet-18 narrow, on the same images" in body


def test_an_undefended_row_has_no_oblivious_attack_to_miss(page: str) -> None:
    bare = _rows(page)["undefended"]
    assert bare.count(">no defense</small>") == 2
    assert ">itself<" not in page
    assert "No model is its own surrogate here" not in page
    assert "An oblivious attacker does not know the defense" in page


def test_a_board_without_defenses_has_neither_menu_nor_price(
    make_stored: Maker, tmp_path: Path
) -> None:
    path = leaderboard.publish([make_stored(BARE)], tmp_path, title="t")
    text = path.read_text(encoding="utf-8")
    assert 'class="defense"' not in text
    assert 'class="price"' not in text
    assert "change against the same model" not in text


def test_an_oblivious_attacker_is_not_said_to_know_all(make_stored: Maker) -> None:
    blind = wrapped(make_stored, WRAPPED, JPEG, knowledge="oblivious").record
    assert "but not the defense (oblivious), and attacks the model without it" in attacker_words(
        blind
    )
    assert "oblivious" not in attacker_words(wrapped(make_stored, WRAPPED, JPEG).record)


def test_an_attacker_of_another_detector_is_called_that_and_ranks(make_stored: Maker) -> None:
    rival = "feature_mixture(fpr=0.05, components=2, fit=512)"
    guided = wrapped(make_stored, WRAPPED, GUARD, knowledge=rival)
    assert f"evades {rival} instead" in attacker_words(guided.record)
    (board,) = leaderboard.make_boards([wrapped(make_stored, WRAPPED, GUARD), guided])
    (row,) = board.rows
    assert not row.oblivious
    (column,) = (c for c, run in row.runs.items() if run.record.case.evaded_detector)
    assert column.endswith(", evading feature_mixture")
    words = dict(defense_words(row))["Knowledge"]
    assert words.endswith(f"another detector evaded in its place: {column.split(',')[0]}")


def test_hostile_defenses_stay_text(make_stored: Maker, tmp_path: Path) -> None:
    evil = '"><img src=x onerror=alert(1)>' + HOSTILE
    guard = card("evil", evil, "detector", fpr=evil)
    fields = {"defense_card": guard, "certificate": certificate(), **detecting(0.7, 0.1)}
    model = retrained_card(undefended=evil).model_copy(update={"title": evil})
    records = [
        make_stored(BARE, victim=(evil, evil, evil)),
        wrapped(make_stored, WRAPPED, f"evil(sigma={evil!r}, fpr={evil!r})", record=fields),
        wrapped(make_stored, WRAPPED, evil),
        make_stored(WRAPPED, victim=RETRAINED, record={"model_card": model}),
    ]
    text = leaderboard.publish(records, tmp_path, title="t").read_text(encoding="utf-8")
    assert 'class="detectors"' in text
    assert 'class="curves certified"' in text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("<script>") == 2
    for _, attributes in Tags(text).tags:
        assert not any(key.startswith("on") for key in attributes)


def test_the_csv_holds_defense_knowledge_change_and_time(
    make_stored: Maker, tmp_path: Path
) -> None:
    made = leaderboard.make_boards(shield_field(make_stored))
    csv, _ = leaderboard.write_tables(made, tmp_path, title="t")
    frame = pd.read_csv(csv, keep_default_na=True)
    bare = frame[(frame["defense"] == "none") & (frame["victim"] == VICTIMS[0][0])]
    assert bare["clean_change"].isna().all()
    assert bare["slower"].isna().all()
    assert set(bare["knowledge"]) == {"adaptive"}
    guarded = frame[frame["defense"] == GUARD]
    assert set(guarded["slower"]) == {2.2}
    assert guarded["clean_change"].to_numpy() == pytest.approx(-0.1)
    blind = guarded["attack"].str.contains("oblivious")
    assert set(guarded[blind]["knowledge"]) == {"oblivious"}
    assert set(guarded[~blind]["knowledge"]) == {"adaptive"}
    assert {"auroc", "detected", "false_alarms"} <= set(guarded["metric"])
    trained = frame[frame["victim"] == RETRAINED[0]]
    assert trained["trained_with"].str.startswith("pgd_at(eps=0.0156").all()
    assert math.isclose(trained["clean_change"].iloc[0], -0.1)


def test_markdown_has_the_columns_only_where_something_is_defended(make_stored: Maker) -> None:
    records = [make_stored(BARE), wrapped(make_stored, WRAPPED, JPEG), retrained(make_stored, BARE)]
    blind = wrapped(make_stored, WRAPPED, JPEG, knowledge="oblivious")
    text = markdown(leaderboard.make_boards([*records, blind]), title="t")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert (
        "| defense | knowledge | clean change, points | worst change, points | time a pass, × |"
        in text
    )
    assert "| jpeg(quality=75) | adaptive and oblivious | −10.0 | +30.0 | 2.2 |" in text
    assert "| none | – | – | – | – |" in text
    assert "steps=7) | adaptive | ±0.0 | ±0.0 | – |" in text
    assert "clean change" not in markdown(leaderboard.make_boards(records[:1]), title="t")


def test_the_smoothed_row_is_told_apart_by_its_parameters(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards([wrapped(make_stored, WRAPPED, SMOOTHING)])
    assert board.rows[0].title == "ResNet-18 narrow + Randomised smoothing"
