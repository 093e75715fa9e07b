"""Parameters of an attack or a defense: those of a spec over the defaults of its card."""

from __future__ import annotations

import math
from typing import Any

from robustbench_med.cards import AttackCard, DefenseCard
from robustbench_med.errors import SpecError

ABSOLUTE = ("step_size", "alpha", "eps_step")  # a step in image units, as papers and peers call it
RELATIVE = "rel_stepsize"  # a step in units of the radius, as foolbox calls it


def with_total_step(
    card: AttackCard, stated: dict[str, Any], radii: tuple[float, ...]
) -> dict[str, Any]:
    """Return the parameters of a spec, with the length of a step written as `total_step`.

    A case holds `total_step`, the length of all steps in units of the radius. An absolute step has
    one such length only where there is one radius.

    Args:
        card: of the attack.
        stated: parameters of a spec.
        radii: in image units; more than one, or none where the radius has another unit.

    Raises:
        SpecError: two lengths are given, an absolute one for several radii, or one that is no
            positive number.

    >>> from robustbench_med import registry
    >>> pgd = registry.find("attacks", "pgd")
    >>> with_total_step(pgd, {"steps": 10, "step_size": 2 / 255}, (8 / 255,))
    {'steps': 10, 'total_step': 2.5}
    """
    lengths = [key for key in (*ABSOLUTE, RELATIVE) if key in stated and key not in card.parameters]
    if not lengths or not {"steps", "total_step"} <= set(card.parameters):
        return stated
    (key, *others) = [*lengths, *(["total_step"] if "total_step" in stated else [])]
    if others:
        raise SpecError(f"{card.name}: expected one length of a step, got {key} and {others[0]}")
    if key != RELATIVE and len(radii) != 1:
        raise SpecError(
            f"{card.name}: expected one radius in image units with {key}, the absolute length of a "
            f"step; use {RELATIVE}, in units of each radius"
        )
    value, steps = stated[key], stated.get("steps", card.parameters["steps"])
    if not all(_alike(number, 0.0) and number > 0 for number in (value, steps)):
        raise SpecError(f"{card.name}: expected {key} > 0 and steps > 0, got {value!r}, {steps!r}")
    total = steps * value / (1 if key == RELATIVE else radii[0])
    unchanged = {name: item for name, item in stated.items() if name != key}
    return {**unchanged, "total_step": float(f"{total:.12g}")}


def complete(card: AttackCard | DefenseCard, stated: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters of an attack or defense: those of a spec, else the defaults.

    Raises:
        SpecError: one that it does not have, or a value it cannot take.
    """
    name = card.name
    for key in stated:
        if key not in card.parameters:
            known = ", ".join(card.parameters) or "none"
            raise SpecError(f"{name}: expected a known parameter ({known}), got {key!r}")
        if not _alike(stated[key], card.parameters[key]):
            kind = type(card.parameters[key]).__name__
            raise SpecError(f"{name}: expected {key} to be of type {kind}, got {stated[key]!r}")
        if key in card.positive and not stated[key] > 0:
            raise SpecError(f"{name}: expected {key} > 0, got {stated[key]!r}")
        if isinstance(stated[key], float) and not math.isfinite(stated[key]):
            raise SpecError(f"{name}: expected a finite {key}, got {stated[key]!r}")
    parameters = {**card.parameters, **stated}
    for key, default in card.parameters.items():
        if isinstance(default, float):  # a whole number will do
            parameters[key] = float(parameters[key])
    return parameters


def _alike(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
