"""The critical radius (of a shift: severity): where a score first falls below a level.

A ladder has few radii, so the critical radius is known only to lie between two of them. Its 95 %
interval inverts the intervals of the scores: it starts behind the last radius before any interval
reaches below the level, and ends at the first radius whose whole interval is below the level. Both
ends are radii of the ladder. tests/simulation_crossing.py measures how often it holds the truth.

This module imports no numerical library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from robustbench_med.stats import Estimate

HALF = 0.5  # the level of pages and reports: half of the images right, or a Dice of a half
_ROUNDING = 1e-9  # a share that equals the level up to rounding holds


class Crossing(NamedTuple):
    """Where a score falls below a level; radii are those of the ladder.

    Attributes:
        level: the level, in (0,1).
        held: the largest radius up to which the score is at the level or above; 0 where it is so
            for clean images alone, or not even for those.
        fell: the first radius at which it is below; 0 = clean, inf = it holds to the end.
        low, high: the 95 % interval of the critical radius, in the same way.
        last: the largest radius that was scored.
    """

    level: float
    held: float
    fell: float
    low: float
    high: float
    last: float

    @property
    def censored(self) -> bool:
        """Whether the score holds to the end of the ladder."""
        return math.isinf(self.fell)

    @property
    def estimate(self) -> Estimate:
        """The radius up to which the score holds, from `low` to `high`."""
        return Estimate(value=self.held, low=self.low, high=self.high)

    def words(self, write: Callable[[float], str]) -> str:
        """Return the critical radius and its interval in words.

        Args:
            write: writes a radius.

        >>> Crossing(0.5, 0.02, 0.04, 0.0, math.inf, 0.08).words(str)
        '0.02 to 0.04; 95 % interval: above 0'
        >>> Crossing(0.5, 0.0, 0.02, 0.0, 0.04, 0.08).words(str)
        '< 0.02; 95 % interval: below 0.04'
        >>> Crossing(0.5, 0.08, math.inf, 0.04, math.inf, 0.08).words(str)
        '> 0.08; 95 % interval: above 0.04'
        >>> Crossing(0.5, 0.0, 0.0, 0.0, 0.0, 0.08).words(str)
        '0 (below it without any change); 95 % interval: 0'
        """
        if self.fell == 0:
            point = "0 (below it without any change)"
        elif self.censored:
            point = f"> {write(self.held)}"
        elif self.held == 0:
            point = f"< {write(self.fell)}"
        else:
            point = f"{write(self.held)} to {write(self.fell)}"
        return f"{point}; 95 % interval: {self._interval(write)}"

    def _interval(self, write: Callable[[float], str]) -> str:
        if self.high == 0:
            return "0"
        if math.isinf(self.high):
            return f"above {write(self.low)}" if self.low else "above 0"
        if self.low == 0:
            return f"below {write(self.high)}"
        return f"{write(self.low)} to {write(self.high)}"


def crossing(
    radii: Sequence[float], scores: Sequence[Estimate], level: float = HALF
) -> Crossing | None:
    """Return where a score first falls below a level; None where no score is defined.

    Radii without a score or its interval are left out, so that the radii beside them hold the
    critical radius.

    Args:
        radii: rising radii or severities, 0 (clean) first.
        scores: the score at each with its interval by patient; lower is worse.
        level: the level, in (0,1).

    >>> share = [Estimate(value=v, low=v - 0.1, high=v + 0.1) for v in (0.9, 0.55, 0.3)]
    >>> crossing((0, 1, 2), share)
    Crossing(level=0.5, held=1, fell=2, low=0, high=2, last=2)
    """
    pairs = zip(radii, scores, strict=True)
    known = [(at, s) for at, s in pairs if all(map(math.isfinite, (s.value, s.low, s.high)))]
    if not known:
        return None
    at = [radius for radius, _ in known]
    held, fell = _first_below(at, [score.value for _, score in known], level)
    low, _ = _first_below(at, [score.low for _, score in known], level)
    _, high = _first_below(at, [score.high for _, score in known], level)
    return Crossing(level, held, fell, low, high, at[-1])


def _first_below(radii: list[float], values: list[float], level: float) -> tuple[float, float]:
    """Return the radius before the first value below a level, and that of this value or inf."""
    below = (i for i, value in enumerate(values) if value < level - _ROUNDING)
    first = next(below, len(values))
    return radii[max(first - 1, 0)], radii[first] if first < len(values) else math.inf
