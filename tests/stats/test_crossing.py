"""The critical radius: closed forms, and what the ladder cannot tell."""

from __future__ import annotations

import math

import pytest

from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.stats.crossing import crossing
from tests.simulation_crossing import FINE, rates

LADDER = (0.0, 1.0, 2.0, 4.0)


def scores(*values: float, half: float = 0.1) -> list[Estimate]:
    return [Estimate(value=v, low=v - half, high=v + half) for v in values]


@pytest.mark.parametrize(
    ("values", "bracket", "interval"),
    [
        ((0.9, 0.8, 0.3, 0.1), (1.0, 2.0), (1.0, 2.0)),
        ((0.9, 0.55, 0.45, 0.1), (1.0, 2.0), (0.0, 4.0)),  # both neighbours are within chance
        ((0.9, 0.8, 0.7, 0.65), (4.0, math.inf), (4.0, math.inf)),  # it holds to the end
        ((0.9, 0.8, 0.7, 0.55), (4.0, math.inf), (2.0, math.inf)),
        ((0.9, 0.2, 0.2, 0.1), (0.0, 1.0), (0.0, 1.0)),  # below at the first radius
        ((0.3, 0.2, 0.2, 0.1), (0.0, 0.0), (0.0, 0.0)),  # below without any change
        ((0.9, 0.3, 0.8, 0.8), (0.0, 1.0), (0.0, 1.0)),  # the first fall counts, not a later rise
        ((0.9, 0.5, 0.5, 0.1), (2.0, 4.0), (0.0, 4.0)),  # a score at the level holds
    ],
)
def test_the_first_radius_below_the_level_is_bracketed(
    values: tuple[float, ...], bracket: tuple[float, float], interval: tuple[float, float]
) -> None:
    found = crossing(LADDER, scores(*values), 0.5)
    assert found is not None
    assert (found.held, found.fell) == bracket
    assert (found.low, found.high) == interval
    assert found.censored == math.isinf(bracket[1])


def test_a_radius_without_a_score_widens_the_bracket() -> None:
    some = scores(0.9, 0.8, 0.3, 0.1)
    some[1] = UNDEFINED
    found = crossing(LADDER, some, 0.5)
    assert found is not None
    assert (found.held, found.fell, found.last) == (0.0, 2.0, 4.0)
    assert crossing(LADDER, [UNDEFINED] * 4, 0.5) is None
    # a score whose interval is not defined says nothing of the interval of the radius
    some[1] = Estimate(value=0.8, low=math.nan, high=math.nan)
    assert crossing(LADDER, some, 0.5) == found


def test_intervals_of_clustered_patients_hold_the_critical_radius() -> None:
    # 120 studies tell the coverage to 0.02; the table of docs/statistics.md is of 400
    for masks in (False, True):
        found = rates(30, 0.5, icc=0.3, masks=masks, ladder=FINE[::8], runs=120)
        assert 0.90 <= found.inverted <= 1.0
    # one that ignores patients would hold it less often: the percentiles of few patients do
    assert rates(12, 0.8, icc=0.7, ladder=FINE[::4], runs=120).bootstrap < 0.93
