"""The table of detectors: which attack counts, oblivious beside adaptive, dashes, doubts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

import leaderboard
from leaderboard.boards.detectors import RULE, detectors, has_detector, has_detectors
from robustbench_med.bench.record import Flag, Stored
from robustbench_med.stats import UNDEFINED

from .planted_shields import BARE, GUARD, JPEG, WRAPPED, detecting, shield_field, wrapped

Maker = Callable[..., Stored]


def test_the_attack_least_favourable_counts_for_every_column(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards(shield_field(make_stored))
    (found,) = detectors(board)
    assert found.row.key.defense == GUARD
    assert found.attacks == "PGD-40, oblivious → PGD-40"
    assert found.rate == "frozen at 5 % FPR"
    auroc, one, five, caught = found.found
    assert auroc.oblivious is not None
    assert auroc.adaptive is not None
    assert (auroc.oblivious.value, auroc.adaptive.value) == (0.95, 0.7)  # at the headline radius
    assert one.adaptive == UNDEFINED
    assert five.oblivious is not None
    assert five.oblivious.value == pytest.approx(0.82)
    assert caught.adaptive is not None
    assert caught.adaptive.value == 0.1
    assert (found.alarms.value, found.alarms.low, found.alarms.high) == (40, 10, 100)
    assert not found.doubted


def test_of_equal_areas_the_one_caught_less_counts(make_stored: Maker) -> None:
    records = [
        wrapped(make_stored, WRAPPED, GUARD, attack=attack, record=detecting(0.7, caught))
        for attack, caught in (("bim", 0.3), ("fgsm", 0.1), ("pgd", 0.2))
    ]
    (found,) = detectors(leaderboard.make_boards(records)[0])
    assert found.attacks == "FGSM"


def test_an_undefined_area_hides_no_other(make_stored: Maker) -> None:
    records = [
        wrapped(make_stored, WRAPPED, GUARD, attack="bim", record=detecting(math.nan, 0.0)),
        wrapped(make_stored, WRAPPED, GUARD, attack="pgd", record=detecting(0.99, 0.9)),
    ]
    (found,) = detectors(leaderboard.make_boards(records)[0])
    assert found.attacks == "PGD-40"


def test_what_was_not_run_is_told_apart_from_what_is_undefined(make_stored: Maker) -> None:
    blind = wrapped(make_stored, WRAPPED, GUARD, knowledge="oblivious", record=detecting(0.9, 0.5))
    (found,) = detectors(leaderboard.make_boards([blind])[0])
    assert found.found[0].adaptive is None
    assert found.alarms.value == 40
    assert found.doubted  # all attacks ignored the defense
    known = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.5))
    (found,) = detectors(leaderboard.make_boards([known])[0])
    assert found.found[0].oblivious is None
    assert not found.doubted


def test_an_invalid_run_has_no_say_and_a_flagged_row_is_marked(make_stored: Maker) -> None:
    invalid = {"status": "invalid", "reason": "NaN logits", **detecting(0.1, 0.0)}
    flag = Flag(name="zero_gradients", meaning="blind", value=1, threshold=0)
    records = [
        wrapped(make_stored, WRAPPED, GUARD, attack="bim", record=invalid),
        wrapped(make_stored, WRAPPED, GUARD, record={"flags": (flag,), **detecting(0.9, 0.5)}),
    ]
    (found,) = detectors(leaderboard.make_boards(records)[0])
    assert found.attacks == "PGD-40"
    assert found.doubted


def test_a_board_without_detectors_has_no_table_and_no_rule(make_stored: Maker) -> None:
    records = [make_stored(BARE), wrapped(make_stored, WRAPPED, JPEG)]
    (board,) = leaderboard.make_boards(records)
    assert detectors(board) == []
    assert not has_detectors(board)
    bare = wrapped(make_stored, WRAPPED, GUARD).record  # its card says so before any metric does
    assert has_detector(bare)


def test_a_guarded_page_says_the_rule_and_what_positives_are(
    make_stored: Maker, shields: Path, tmp_path: Path
) -> None:
    shields_page = shields.read_text(encoding="utf-8")
    plain = [make_stored(BARE), wrapped(make_stored, WRAPPED, JPEG)]
    plain_shields = leaderboard.publish(plain, tmp_path, title="t").read_text(encoding="utf-8")
    assert shields_page.count(RULE[1:]) == 2  # at the top, and under the board
    for words in (
        "Positives are attacked images of one half of the patients that are called wrong",
        "negatives are clean images of the other half",
        "The threshold is frozen on validation images at the stated false-positive rate",
        "PGD-40, oblivious → PGD-40; frozen at 5 % FPR",
    ):
        assert words in shields_page
    start = shields_page.index('<figure class="detectors">')
    table = shields_page[start : shields_page.index("</figure>", start)]
    assert '0.950<span aria-hidden="true"> → </span></span><strong>0.700</strong>' in table
    assert '<span aria-hidden="true"> → </span></span><strong>–</strong>' in table
    assert '40<small class="ci">10–100</small>' in table
    assert RULE[1:] not in plain_shields
    assert 'class="detectors"' not in plain_shields
