"""Checks and flags in words: every check of the bench has them, with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import leaderboard
from robustbench_med.bench import checks as bench
from robustbench_med.bench.check_words import CHECKS, CheckRow, check_rows, flag_words
from robustbench_med.bench.record import Check, Flag, Stored

from .field import CHECKS as MANY
from .field import QUERIES, raised

Maker = Callable[..., Stored]


def test_every_check_of_the_bench_has_words() -> None:
    assert set(bench._CHECKS) == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "measured", "threshold", "checked", "words"),
    [
        ("noise_beats_attack", 3, 1, 12, "measured 3 of 12 images, allowed 1"),
        ("silent_success", 1, 0, 1, "measured 1 of 1 image, allowed 0"),
        ("over_budget", 7, 0, None, "measured 7 images, allowed 0"),
        ("zero_gradients", 0.414, 0.01, None, "measured 41 %, allowed up to 1 %"),
        ("zero_gradients", 0.0123, 0.01, None, "measured 1.2 %, allowed up to 1 %"),
        ("randomized", 1.0, 0.0, 90, "measured 100 % of 90 images, allowed 0 %"),
        ("randomized", 1.0, 0.0, 1, "measured 100 % of 1 image, allowed 0 %"),
        ("rounding_repairs", 0.6, 0.5, 5, "measured 60 % of 5 images, allowed up to 50 %"),
        ("not_converged", 0.3, 0.25, 1, "measured 30 % on 1 image, allowed up to 25 %"),
        ("probabilities", 1, 0, None, "measured yes, allowed no"),
        ("nonfinite_gradients", 1200, 0, None, "measured 1,200, allowed 0"),
        ("of_tomorrow", 0.12345, 0.1, None, "measured 0.123, allowed 0.1"),
        ("noise_beats_attack", float("nan"), 1, 12, "measured –, allowed 1"),
    ],
)
def test_a_flag_says_what_it_means_and_its_numbers(
    make_stored: Maker,
    name: str,
    measured: float,
    threshold: float,
    checked: int | None,
    words: str,
) -> None:
    flag = Flag(name=name, meaning="It is bad.", value=measured, threshold=threshold)
    check = Check(name=name, value=measured, threshold=threshold, n_images=checked)
    record = make_stored([6], record={"flags": (flag,), "checks": (check,)}).record
    assert flag_words(record, flag) == f"It is bad ({words})"


def test_a_flag_without_a_check_or_a_meaning_still_reads(make_stored: Maker) -> None:
    flag = Flag(name="one_step_beats_iterative", meaning="", value=2, threshold=1)
    record = make_stored([6], record={"flags": (flag,)}).record
    assert flag_words(record, flag) == "One step beats iterative (measured 2 images, allowed 1)"


def test_all_checks_are_listed_those_raised_first(make_stored: Maker) -> None:
    rows = check_rows(make_stored([6], record=raised(QUERIES)).record)
    assert len(rows) == len(MANY)
    assert rows[0] == CheckRow(
        "Missed images on which a query attack succeeds", "3", "1", "12", True
    )
    assert sum(row.raised for row in rows) == 1
    blind = "The model returns probabilities, whose gradients vanish"
    assert CheckRow(blind, "no", "no", "–", False) in rows
    unknown = Check(name="of_<b>_tomorrow", value=2, threshold=1)
    (row,) = check_rows(make_stored([6], record={"checks": (unknown,)}).record)
    assert row.title == "Of <b> tomorrow"


def test_every_raised_flag_is_a_reason_in_words(make_stored: Maker) -> None:
    over = Flag(name="over_budget", meaning="Too far.", value=3, threshold=0)
    given: dict[str, Any] = {"flags": (QUERIES, over), "checks": MANY}
    (board,) = leaderboard.make_boards([make_stored([6, 6], over_budget=3, record=given)])
    assert board.rows[0].reasons == (
        "PGD-40: An attack that only asks for answers breaks images that this attack, which knows "
        "the whole model, missed: the model hides its gradients (measured 3 of 12 images, allowed "
        "1)",
        "PGD-40: Too far (measured 3 of 84 images, allowed 0)",  # and not once more by the audit
    )
