"""A measured score with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_med.stats import Estimate
    from robustbench_med.stats.crossing import Crossing


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float
    n: int


class MeasuredScore(float):
    """A share or mean with its 95 % interval, which behaves like a float."""

    interval: _Interval

    @classmethod
    def of(cls, estimate: Estimate, n: int) -> MeasuredScore:
        """Return the value of an estimate from `n` images."""
        score = cls(estimate.value)
        score.interval = _Interval(estimate.low, estimate.high, n)
        return score

    def __repr__(self) -> str:
        m = self.interval
        return f"{float(self):.3f} [{m.low:.3f}, {m.high:.3f}]"

    def explain(self, threshold: float) -> list[str]:
        """Return lines on whether the difference from a threshold is significant.

        The stated number of images is the one at which half the width of the interval equals the
        difference.
        """
        m = self.interval
        lines = [f"measured on {m.n} images, 95 % interval {m.low:.3f} to {m.high:.3f}"]
        gap = abs(threshold - float(self))
        half = (m.high - m.low) / 2
        if m.low <= threshold <= m.high and gap > 0 and half > 0:
            n = math.ceil(m.n * (half / gap) ** 2 - 1e-6)
            lines.append(
                f"{threshold:g} lies inside it, so the difference may be chance; about {n} images "
                "would be needed to show it"
            )
        elif gap > 0:
            lines.append(f"{threshold:g} lies outside it, so the difference is not chance")
        return lines


class MeasuredRadius(MeasuredScore):
    """The radius up to which a score is at a level or above, with its 95 % interval.

    Attributes:
        crossing: the critical radius: it lies above this radius.
    """

    crossing: Crossing

    @classmethod
    def found(cls, crossing: Crossing, n: int) -> MeasuredRadius:
        """Return the radius up to which a score holds, from a critical radius of `n` images."""
        radius = cls(crossing.held)
        radius.interval = _Interval(crossing.low, crossing.high, n)
        radius.crossing = crossing
        return radius

    def __repr__(self) -> str:
        return f"{float(self):g} (critical: {self.crossing.words('{:g}'.format)})"

    def explain(self, threshold: float) -> list[str]:
        """Return lines on whether a critical radius differs significantly from a threshold."""
        m, words = self.interval, self.crossing.words("{:g}".format)
        lines = [f"measured on {m.n} images, the critical radius is {words}"]
        if m.low < threshold <= m.high:
            return [*lines, f"{threshold:g} lies inside it, so the difference may be chance"]
        return [*lines, f"{threshold:g} lies outside it, so the difference is not chance"]
