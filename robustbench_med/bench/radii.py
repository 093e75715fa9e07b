"""Radii with a unit: they become image units once the data and the victim of a case are known."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from robustbench_med.bench.attack_spec import ResolvedAttack, resolve_attack, stated_radii
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.models.preprocess import parse_preprocess
from robustbench_med.native_units import has_unit, has_window_unit, to_image_radius

_MUCH_NARROWER = 0.5  # a window of less than this fraction of the stored range is worth a warning
_log = logging.getLogger(__name__)


class _StandIns:
    """Rising radii in place of those whose unit is not known yet."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, radius: object) -> float:
        self.count += 1
        return self.count / 255


def resolve_attacks(grid: Grid, card: DatasetCard | None) -> list[ResolvedAttack]:
    """Return the attacks of a grid before a victim is known; its window counts as the whole range.

    Args:
        grid: the grid.
        card: states the units of the data; None = not known yet, so that radii with units are
            replaced by others.
    """
    attacks = []
    for text in grid.attacks:
        if card is not None:
            to_radius = partial(to_image_radius, card=card, windows=(1.0,))
            attacks.append(resolve_attack(text, grid, to_radius))
        elif has_unit(stated_radii(text, grid)):
            attacks.append(resolve_attack(text, grid, _StandIns()))
        else:
            attacks.append(resolve_attack(text, grid))
    return attacks


def attacks_on(
    attacks: list[ResolvedAttack], grid: Grid, card: DatasetCard, victim: ModelCard
) -> list[ResolvedAttack]:
    """Return the attacks on a victim, whose window may be the unit of their radii.

    Args:
        attacks: the attacks of the grid, as `resolve_attacks` returns them.
        grid: the grid.
        card: the card of the data.
        victim: the card of the victim.
    """
    if any(has_window_unit(stated_radii(text, grid)) for text in grid.attacks):
        to_radius = radius_reader(card, victim)
        return [resolve_attack(text, grid, to_radius) for text in grid.attacks]
    if not any(has_unit(stated_radii(text, grid)) for text in grid.attacks):
        _warn_of_window(max(attack.ladder[-1] for attack in attacks), grid, card, victim)
    return attacks


def radius_reader(card: DatasetCard, victim: ModelCard) -> Callable[[object], float]:
    """Return the function that turns a radius into image units, for data and a victim."""
    steps = parse_preprocess(victim.preprocess, card)
    return partial(to_image_radius, card=card, windows=() if steps is None else steps.windows)


def _warn_of_window(eps: float, grid: Grid, card: DatasetCard, victim: ModelCard) -> None:
    """Log which fraction of the victim's window a radius is, where it is much larger than it looks.

    A habitual 8/255 of the 4,095 HU that a CT file may hold is 128 HU, a third of the window of the
    abdomen.
    """
    steps = parse_preprocess(victim.preprocess, card)
    if steps is None or not steps.window or grid.norm != "linf" or grid.budget != "absolute":
        return
    (width,) = steps.windows
    quarters = eps * 255 * 4
    # a radius that a unit gave has many digits, also where a record's case is planned again
    habitual = abs(quarters - round(quarters)) < 1e-9 or float(f"{eps:.3g}") == eps
    if habitual and width < _MUCH_NARROWER:
        _log.warning(
            "%s: eps %.3g/255 of the stored range (%s) is %.3g/255 of the victim's window (%s); "
            'write "%.3g/255 window" for a fraction of the window, or a number of units',
            *(card.name, eps * 255, card.native_range, eps / width * 255, steps.window, eps * 255),
        )
