"""Radii with a unit: they become image units once the data and the victim of a case are known."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from robustbench_med.bench.attack_spec import ResolvedAttack, resolve_attack
from robustbench_med.bench.suite import Grid
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.models.preprocess import parse_preprocess
from robustbench_med.native_units import has_unit, has_window_unit, to_image_radius

_MUCH_NARROWER = 0.5  # a window of less than this fraction of the stored range is worth a warning
_log = logging.getLogger(__name__)


def resolve_attacks(grid: Grid) -> list[ResolvedAttack]:
    """Return the attacks of a grid before its data are known; radii with a unit have stand-ins."""
    return [resolve_attack(text, grid) for text in grid.attacks]


def attacks_on_data(
    attacks: list[ResolvedAttack], grid: Grid, card: DatasetCard
) -> list[ResolvedAttack]:
    """Return the attacks on images whose unit is known; a window counts as the whole range.

    Args:
        attacks: the attacks of the grid, as `resolve_attacks` returns them.
        grid: the grid.
        card: the card of the data.
    """
    to_radius = partial(to_image_radius, card=card, windows=(1.0,))
    return [
        resolve_attack(text, grid, to_radius) if has_unit(attack.stated_radii) else attack
        for text, attack in zip(grid.attacks, attacks, strict=True)
    ]


def attacks_on(
    attacks: list[ResolvedAttack], grid: Grid, card: DatasetCard, victim: ModelCard
) -> list[ResolvedAttack]:
    """Return the attacks on a victim, whose window may be the unit of their radii.

    Args:
        attacks: the attacks of the grid, as `attacks_on_data` returns them.
        grid: the grid.
        card: the card of the data.
        victim: the card of the victim.
    """
    if any(has_window_unit(attack.stated_radii) for attack in attacks):
        to_radius = radius_reader(card, victim)
        return [resolve_attack(text, grid, to_radius) for text in grid.attacks]
    if not any(has_unit(attack.stated_radii) for attack in attacks):
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
