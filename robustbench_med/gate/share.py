"""Share: a measured number that says how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_med.stats import Estimate


@dataclass(frozen=True)
class _Measured:
    low: float
    high: float
    n: int


class Share(float):
    """A share or mean, with its 95 % interval; compares and computes as the number it is."""

    measured: _Measured

    @classmethod
    def of(cls, estimate: Estimate, n: int) -> Share:
        """Return the number of an estimate made of `n` images."""
        share = cls(estimate.value)
        share.measured = _Measured(estimate.low, estimate.high, n)
        return share

    def __repr__(self) -> str:
        m = self.measured
        return f"{float(self):.3f} [{m.low:.3f}, {m.high:.3f}]"

    def explain(self, wanted: float) -> list[str]:
        """Return what the sample says of a shortfall, in lines.

        The number of images is where the half width of the interval is the shortfall.
        """
        m = self.measured
        lines = [f"measured on {m.n} images, 95 % interval {m.low:.3f} to {m.high:.3f}"]
        gap = abs(wanted - float(self))
        half = (m.high - m.low) / 2
        if m.low <= wanted <= m.high and gap > 0 and half > 0:
            n = math.ceil(m.n * (half / gap) ** 2 - 1e-6)
            lines.append(
                f"{wanted:g} lies inside: the sample cannot tell them apart; it would take about "
                f"{n} images"
            )
        elif gap > 0:
            lines.append(f"{wanted:g} lies outside: the difference is no accident of the sample")
        return lines
