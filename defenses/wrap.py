"""Shared by the defenses that wrap a victim: composing transforms and checking parameters."""

from __future__ import annotations

from dataclasses import replace

from robustbench_med.defense import Defended
from robustbench_med.errors import SpecError
from robustbench_med.types import Images
from robustbench_med.victim import Transform, Victim


def wrapped(
    victim: Victim, transform: Transform, *, view: Transform | None = None, draws: int = 1
) -> Defended:
    """Return the victim behind a transform; transforms that the victim already has come after it.

    Args:
        victim: the victim; its own `before` is kept.
        transform: the transform that is deployed.
        view: the transform as an adaptive attacker differentiates it; None = the transform itself.
        draws: smallest number of passes that are averaged; more than 1 if the transform is random.
    """
    victim = replace(victim, draws=max(draws, victim.draws))
    judge = replace(victim, before=_then(transform, victim.before))
    guide = None if view is None else replace(victim, before=_then(view, victim.before))
    return Defended(judge, guide)


def _then(first: Transform, second: Transform | None) -> Transform:
    if second is None:
        return first
    after = second  # a new name, because mypy does not narrow `second` inside the function

    def both(x: Images) -> Images:
        return after(first(x))

    return both


def check_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is a whole number from `low` to `high`.

    Raises:
        SpecError: it is not such a number.
    """
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and value > high):  # type: ignore[operator]
        range_text = f">= {low}" if high is None else f"in {low}..{high}"
        raise SpecError(f"expected {name} {range_text}, got {value!r}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_above(name: str, value: float, low: float = 0.0) -> float:
    """Return `value` if it is a finite number above `low`.

    Raises:
        SpecError: it is not such a number.
    """
    if not low < value < float("inf"):
        raise SpecError(f"expected {name} > {low:g}, got {value}")
    return value
