"""Scores of subgroups: their means, differences and correction, in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from robustbench_med.bench.record import Stored
from robustbench_med.stats.intervals import wilson
from robustbench_med.subgroups import FEWEST, groupings, membership
from robustbench_med.worst_case import means


def made(scores: np.ndarray, **columns: list[str]) -> tuple[pd.DataFrame, Stored]:
    """Return image scores, and a record of independent images in these columns."""
    ids = [f"i{place:03d}" for place in range(len(scores))]
    samples = {"sample": ids, "patient": None, "eps": 0.0}
    samples |= {f"subgroup:{name}": cells for name, cells in columns.items()}
    record: Any = SimpleNamespace(patients=None)
    # the rows of a table need not be in the order of the samples
    table = pd.DataFrame(scores, index=ids).iloc[::-1]
    return table, Stored(record, pd.DataFrame(samples), "")


def test_subgroups_have_their_own_images_and_newcombes_difference() -> None:
    scores = np.array([1] * 30 + [0] * 10 + [1] * 10 + [0] * 30 + [1] * 4, dtype=bool)
    cells = ["F"] * 40 + ["M"] * 40 + [""] * 4
    (grouping,) = groupings(*made(scores[:, None], sex=cells))
    assert (grouping.column, grouping.unknown) == ("sex", 4)
    women, men = grouping.subgroups
    assert (women.name, women.images, women.patients) == ("F", 40, 40)
    assert women.scores == (wilson(30, 40),)
    assert men.scores == (wilson(10, 40),)
    a, b = wilson(30, 40), wilson(10, 40)
    assert women.difference[0].value == 0.5
    assert women.difference[0].low == pytest.approx(0.5 - math.hypot(0.75 - a.low, b.high - 0.25))
    assert men.difference[0].high == pytest.approx(-women.difference[0].low)
    assert women.p == men.p
    assert women.p[0] < 0.001
    worst = grouping.worst(0)
    assert worst is not None
    assert worst.name == "M"


def test_p_values_are_corrected_over_all_columns_and_a_pair_counts_once() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random(60) < 0.5)[:, None]
    sex, site = rng.choice(list("FM"), 60).tolist(), rng.choice(list("ABC"), 60).tolist()
    (alone,) = groupings(*made(scores, sex=sex))
    together = {g.column: g for g in groupings(*made(scores, sex=sex, site=site))}
    raw = [alone.subgroups[0].p[0]]
    (sites,) = groupings(*made(scores, site=site))
    assert len(sites.subgroups) == 3
    smallest = min(
        [*(g.p[0] for g in together["site"].subgroups), together["sex"].subgroups[0].p[0]]
    )
    assert smallest >= min(raw[0], min(g.p[0] for g in sites.subgroups))
    assert together["sex"].subgroups[0].p[0] >= raw[0]


def test_a_small_subgroup_is_shown_and_not_compared() -> None:
    scores = np.ones((30, 2), dtype=bool)
    cells = ["A"] * (FEWEST - 1) + ["B"] * (30 - FEWEST + 1)
    (grouping,) = groupings(*made(scores, site=cells))
    small, rest = grouping.subgroups
    assert small.small
    assert small.vague(0)
    assert math.isnan(small.p[0])
    assert math.isnan(rest.difference[1].value)  # its rest is too small
    assert not rest.vague(0)
    assert grouping.worst(0) is rest


def test_without_subgroups_there_is_nothing() -> None:
    assert groupings(*made(np.ones((4, 1), dtype=bool))) == []


def test_an_image_that_is_not_in_a_record_has_no_subgroup() -> None:
    table, stored = made(np.ones((2, 1)), sex=["F", "M"])
    images = pd.Index([*table.index, "elsewhere"])
    assert membership(stored, "sex", images).tolist() == ["M", "F", ""]


def test_the_lowest_of_several_has_the_lowest_lower_end() -> None:
    # A has the lowest mean of many images, B a higher one of few and so a lower lower end
    scores = np.array([1] * 40 + [0] * 40 + [1] * 4 + [0] * 3 + [1] * 30, dtype=bool)
    cells = ["A"] * 80 + ["B"] * 7 + ["C"] * 30
    (grouping,) = groupings(*made(scores[:, None], site=cells))
    a, b = wilson(40, 80), wilson(4, 7)
    lowest = grouping.lowest(0)
    assert lowest.value == 0.5
    assert lowest.low == b.low < a.low
    assert a.high < lowest.high < a.high + 0.03  # corrected for three subgroups
    assert math.isnan(grouping._replace(subgroups=()).lowest(0).value)


def test_a_dice_near_one_of_few_patients_is_warned_of() -> None:
    dice = np.array([0.95] * 40 + [0.4] * 40)
    (grouping,) = groupings(*made(dice[:, None], site=["A"] * 40 + ["B"] * 40))
    assert [group.rare(0) for group in grouping.subgroups] == [True, False]
    (right,) = groupings(*made(dice[:, None] > 0.9, site=["A"] * 40 + ["B"] * 40))
    assert [group.rare(0) for group in right.subgroups] == [False, False]


def test_the_dice_of_a_few_patients_allows_for_failures_that_they_do_not_hold() -> None:
    dice = np.array([0.98] * 9 + [0.6] + [0.5] * 40)
    table, stored = made(dice[:, None], site=["A"] * 10 + ["B"] * 40)
    (grouping,) = groupings(table, stored)
    few = table[table[0] > 0.55]
    assert grouping.subgroups[0].scores[0].low < means(few, stored)[0].low - 0.02
    assert grouping.subgroups[0].scores[0].value == means(few, stored)[0].value
