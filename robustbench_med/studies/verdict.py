"""Verdict: whether a published claim comes out here, by a rule that was fixed before any number.

A row is `reproduced in direction` if the 95 % interval of the change of its score lies on the
claimed side of 0; for a control, whose claim is that nothing changes, if it lies within
+-`UNCHANGED`. It is `reproduced in size` if, besides, the published change is known and the change
here is `SIMILAR` of it to its inverse. A row whose interval holds 0 and reaches further than
`WIDE` to both sides says nothing: it `cannot be judged`, as one without a measurement. Every other
row is `not reproduced`. The verdict of a study is the worst of its primary rows that can be judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from robustbench_med.stats import Estimate
from robustbench_med.studies.study import Claim

UNCHANGED = 0.1  # largest change of a score that still counts as none
SIMILAR = 0.75  # smallest ratio of two changes that count as equal in size
WIDE = 0.25  # half-width of an interval around 0 above which it decides nothing


class Verdict(StrEnum):
    """Whether a claim comes out, from best to worst; the last says that nothing is known."""

    IN_SIZE = "reproduced in size"
    IN_DIRECTION = "reproduced in direction"
    NOT_REPRODUCED = "not reproduced"
    CANNOT_BE_JUDGED = "cannot be judged"


def judge_row(effect: Estimate | None, claim: Claim, published: float | None = None) -> Verdict:
    """Return the verdict of one row.

    Args:
        effect: change of the score from clean to attacked, with its interval; None or NaN where it
            was not measured.
        claim: what the paper says of the change.
        published: the published change; None if it could not be read.

    >>> str(judge_row(Estimate(value=-0.8, low=-0.9, high=-0.7), "falls", -0.9))
    'reproduced in size'
    """
    if effect is None or effect.value != effect.value:  # noqa: PLR0124 - NaN
        return Verdict.CANNOT_BE_JUDGED
    if effect.low < -WIDE and effect.high > WIDE:
        return Verdict.CANNOT_BE_JUDGED
    holds = {
        "falls": effect.high < 0,
        "rises": effect.low > 0,
        "unchanged": effect.low > -UNCHANGED and effect.high < UNCHANGED,
    }[claim]
    if not holds:
        return Verdict.NOT_REPRODUCED
    if published is None:
        return Verdict.IN_DIRECTION
    if claim == "unchanged":
        return Verdict.IN_SIZE if abs(published) < UNCHANGED else Verdict.IN_DIRECTION
    similar = published and SIMILAR <= effect.value / published <= 1 / SIMILAR
    return Verdict.IN_SIZE if similar else Verdict.IN_DIRECTION


def judge_study(rows: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict of the rows that can be judged."""
    order = list(Verdict)
    judged = [verdict for verdict in rows if verdict != Verdict.CANNOT_BE_JUDGED]
    return max(judged, key=order.index, default=Verdict.CANNOT_BE_JUDGED)
