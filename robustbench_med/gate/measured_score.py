"""A measured score that says how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_med.stats import Estimate


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float
    n: int


class MeasuredScore(float):
    """A share or mean, with its 95 % interval; compares and computes as the number it is."""

    interval: _Interval

    @classmethod
    def of(cls, estimate: Estimate, n: int) -> MeasuredScore:
        """Return the number of an estimate made of `n` images."""
        score = cls(estimate.value)
        score.interval = _Interval(estimate.low, estimate.high, n)
        return score

    def __repr__(self) -> str:
        m = self.interval
        return f"{float(self):.3f} [{m.low:.3f}, {m.high:.3f}]"

    def explain(self, threshold: float) -> list[str]:
        """Return what the sample says of a shortfall, in lines.

        The number of images is where the half width of the interval is the shortfall.
        """
        m = self.interval
        lines = [f"measured on {m.n} images, 95 % interval {m.low:.3f} to {m.high:.3f}"]
        gap = abs(threshold - float(self))
        half = (m.high - m.low) / 2
        if m.low <= threshold <= m.high and gap > 0 and half > 0:
            n = math.ceil(m.n * (half / gap) ** 2 - 1e-6)
            lines.append(
                f"{threshold:g} lies inside: the sample cannot tell them apart; it would take "
                f"about {n} images"
            )
        elif gap > 0:
            lines.append(f"{threshold:g} lies outside: the difference is no accident of the sample")
        return lines
