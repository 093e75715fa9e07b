"""Outcomes by class, region and patient; rows held against each other; cost; BibTeX; embedded."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import leaderboard
from leaderboard.boards.board import with_ids
from leaderboard.boards.breakdown import by_class, by_patient
from leaderboard.boards.charts import compute
from leaderboard.cite import bibtex
from leaderboard.exports import page_json
from leaderboard.headline import verdict
from leaderboard.wording.records import comparison_words
from robustbench_med.bench.record import Cost, Stored
from robustbench_med.stats.intervals import wilson

from .planted import HOSTILE, VICTIMS
from .planted_masks import BRAIN, make_masks

Maker = Callable[..., Stored]


def only(records: list[Stored]) -> leaderboard.Board:
    (board,) = leaderboard.make_boards(records)
    return board


def test_classes_are_counted_in_the_worst_case(make_stored: Maker) -> None:
    # truth is 0, 1, 0, 1, ...; the rung at which each image falls, of two attacks
    board = only([make_stored([6, 3, 0, 6]), make_stored([2, 6, 6, 6], attack="bim")])
    found = by_class(board, board.rows[0])
    assert [(one.label, one.images) for one in found] == [("clear", 2), ("opacity", 2)]
    assert found[0].cells == tuple(wilson(n, 2) for n in (1, 1, 0, 0, 0, 0))
    assert found[1].cells == tuple(wilson(n, 2) for n in (2, 2, 2, 1, 1, 1))


def test_an_image_of_two_findings_counts_for_both(make_stored: Maker) -> None:
    stored = make_stored([6, 1])
    truth = pd.Series([[1, 1]] * 6 + [[0, 1]] * 6)
    card = stored.record.dataset_card.model_copy(update={"task": "multi_label"})
    record = stored.record.model_copy(update={"dataset_card": card})
    board = only([stored._replace(record=record, samples=stored.samples.assign(truth=truth))])
    found = by_class(board, board.rows[0])
    assert [(one.label, one.images) for one in found] == [("clear", 1), ("opacity", 2)]
    assert [e.value for e in found[1].cells] == [1, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_regions_have_their_own_worst_case(make_stored: Maker) -> None:
    stored = make_masks(make_stored, [[0.9, 0.6, 0.4, 0.2], [0.8, 0.7, 0.6, 0.5]])
    board = only([stored])
    found = by_class(board, board.rows[0])
    assert [one.label for one in found] == ["whole tumour", "tumour core", "enhancing tumour"]
    scores = np.array(stored.samples["scores"].to_list())
    clean = stored.samples["eps"].to_numpy() == 0
    for place, one in enumerate(found):
        assert one.images == 2
        assert one.cells[0].value == pytest.approx(scores[clean, place].mean())
    assert len(BRAIN.parts) == 3


def test_patients_are_counted_where_they_repeat(make_stored: Maker) -> None:
    # three images a patient: all stand, one falls at the first radius, all fall at the last
    stored = make_stored([6, 6, 6, 1, 6, 6, 5, 5, 5], patients=True)
    board = only([stored])
    found = by_patient(board, board.rows[0])
    assert found is not None
    assert found.total == 3
    assert found.rows == (
        ("every image right", ("3", "2", "2", "2", "2", "1")),
        ("some images right", ("0", "1", "1", "1", "1", "1")),
        ("no image right", ("0", "0", "0", "0", "0", "1")),
    )
    assert found.hardest == ("no. 2 (3 images): 100.0 → 66.7 %",)
    assert by_patient(board, only([make_stored([6, 6])]).rows[0]) is None


def test_a_row_says_whom_it_beats(make_stored: Maker) -> None:
    strong, weak, near = [6] * 40, [6] * 10 + [1] * 30, [6] * 38 + [1] * 2
    rows = zip((strong, weak, near), VICTIMS, strict=False)
    board = only([make_stored(breaks, victim=victim) for breaks, victim in rows])
    best, second, last = board.rows
    assert comparison_words(best, board.headline) == [
        "significantly better than ViT tiny (p < 0.001)",
        f"not significantly different from {second.title} (p = 0.5)",
    ]
    assert comparison_words(last, board.headline)[0].startswith("significantly worse than ResNet")
    assert verdict(board).startswith(f"{best.title} and {second.title} share the first place")
    two = only([make_stored(strong), make_stored(weak, victim=VICTIMS[1])])
    assert verdict(two).endswith("is more robust than the other model (paired test).")
    assert verdict(only([make_stored(strong)])) == ""
    assert "does not withstand" in verdict(only([make_stored([1] * 40)]))


def test_cost_is_that_of_the_attack_which_all_rows_have(make_stored: Maker) -> None:
    def timed(seconds: float, *, attack: str = "pgd", victim: int = 0) -> Stored:
        cost = Cost(forward=600, backward=400, seconds=seconds, peak_memory_mib=1)
        return make_stored([6, 1], attack=attack, victim=VICTIMS[victim], record={"cost": cost})

    records = [timed(4), timed(2, attack="bim"), timed(8, victim=1), timed(0.1, attack="fgsm")]
    found = compute(only(records))
    assert found is not None
    # 1,000 passes: 4 s are 8 ms a forward and backward; FGSM and BIM did not run on both
    assert {row.model.name: ms for row, ms in found.cost.items()} == {
        "resnet_narrow": 8.0,
        "vit_tiny": 16.0,
    }
    assert found.where == ("cpu, 2 threads",)
    assert found.without_cost == 0
    assert compute(only(records[:2])) is None  # one row is no comparison
    untimed = make_stored([6, 1], victim=VICTIMS[2], record={"cost": None})
    with_one_left = compute(only([*records, untimed]))
    assert with_one_left is not None
    assert with_one_left.without_cost == 1


def test_bibtex_makes_nothing_up_and_escapes(make_stored: Maker) -> None:
    stored = make_stored([6])
    sources = {
        "pgd": "Madry et al., ICLR 2018, section 2.1",
        "square": "Andriushchenko, Croce & Hein, ECCV 2020",
        "noise": "control",
        "evil": "}\\input{x} 2020",
    }
    records = []
    for name, source in sources.items():
        card = stored.record.attack_card.model_copy(
            update={"name": name, "title": f"{name} {HOSTILE}_%", "source": source}
        )
        case = stored.record.case.model_copy(update={"attack": name})
        record = stored.record.model_copy(
            update={"attack_card": card, "case": case, "case_id": case.id}
        )
        records.append(stored._replace(record=record))
    text = bibtex(leaderboard.make_boards(records), versions=["0.1.0"])
    assert text.startswith("@software{robustbench_med,\n  title = {robustbench_med: a robust")
    assert (
        "author = {Madry and others},\n  year = {2018},\n  howpublished = {Madry et al., " in text
    )
    assert "author = {Andriushchenko and Croce and Hein}" in text
    assert "@misc{noise" not in text
    assert "\\}\\textbackslash{}input\\{x\\} 2020" in text
    assert "pgd <script>alert(1)</script>\\_\\%" in text
    for entry in text.split("\n\n"):
        bare = entry.replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}")


def test_what_is_embedded_cannot_end_its_script_and_is_all_there(make_stored: Maker) -> None:
    evil = "</script><!--<script>&"
    stored = make_stored([6, 1], victim=("m", evil, evil))
    board = only([stored])
    text = str(page_json([board]))
    assert not set("<>&") & set(text)
    (found,) = json.loads(text)["boards"]
    (row,) = found["rows"]
    assert (found["board"], row["title"], row["rank"]) == (with_ids([board])[0][0], evil, [1] * 5)
    assert row["worst_case"][0] == pytest.approx([0.5, *_bounds(1, 2)], rel=1e-5)
    invalid = make_stored([6, 1], record={"status": "invalid", "reason": "NaN", "rungs": ()})
    (found,) = json.loads(str(page_json([only([invalid])])))["boards"]
    assert found["rows"][0]["clean"] == [None, None, None]


def _bounds(k: int, n: int) -> list[float]:
    return [wilson(k, n).low, wilson(k, n).high]
