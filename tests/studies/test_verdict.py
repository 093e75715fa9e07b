"""The rule of the verdict, on planted changes."""

from __future__ import annotations

import pytest

from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.studies.study import Claim
from robustbench_med.studies.verdict import Verdict, judge_row, judge_study


def effect(low: float, value: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("change", "claim", "published", "verdict"),
    [
        (effect(-0.9, -0.8, -0.7), "falls", -0.9, Verdict.IN_SIZE),
        (effect(-0.3, -0.2, -0.1), "falls", -0.9, Verdict.IN_DIRECTION),
        (effect(-0.9, -0.8, -0.7), "falls", None, Verdict.IN_DIRECTION),
        (effect(-0.1, -0.02, 0.06), "falls", -0.9, Verdict.NOT_REPRODUCED),
        (effect(0.1, 0.2, 0.3), "falls", -0.9, Verdict.NOT_REPRODUCED),
        (effect(0.1, 0.2, 0.3), "rises", 0.2, Verdict.IN_SIZE),
        (effect(-0.4, 0.0, 0.4), "falls", -0.9, Verdict.CANNOT_BE_JUDGED),
        (effect(-0.02, 0.0, 0.02), "unchanged", None, Verdict.IN_DIRECTION),
        (effect(-0.02, 0.0, 0.02), "unchanged", 0.01, Verdict.IN_SIZE),
        (effect(-0.3, -0.2, -0.1), "unchanged", None, Verdict.NOT_REPRODUCED),
        (UNDEFINED, "falls", -0.9, Verdict.CANNOT_BE_JUDGED),
        (None, "falls", -0.9, Verdict.CANNOT_BE_JUDGED),
    ],
)
def test_rows(
    change: Estimate | None, claim: Claim, published: float | None, verdict: Verdict
) -> None:
    assert judge_row(change, claim, published) == verdict


def test_a_study_is_as_good_as_its_worst_row_that_can_be_judged() -> None:
    rows = [Verdict.IN_SIZE, Verdict.CANNOT_BE_JUDGED, Verdict.IN_DIRECTION]
    assert judge_study(rows) == Verdict.IN_DIRECTION
    assert judge_study([*rows, Verdict.NOT_REPRODUCED]) == Verdict.NOT_REPRODUCED
    assert judge_study([Verdict.CANNOT_BE_JUDGED]) == Verdict.CANNOT_BE_JUDGED
