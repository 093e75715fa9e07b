"""Parameters of an attack or a defense: those of a spec over the defaults of its card."""

from __future__ import annotations

import math
from typing import Any

from robustbench_med.cards import AttackCard, DefenseCard
from robustbench_med.errors import SpecError


def complete(card: AttackCard | DefenseCard, given: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters of an attack or defense, those given over the defaults.

    Raises:
        SpecError: one that it does not have, or a value it cannot take.
    """
    name = card.name
    for key in given:
        if key not in card.parameters:
            known = ", ".join(card.parameters) or "none"
            raise SpecError(f"{name}: expected a known parameter ({known}), got {key!r}")
        if not _alike(given[key], card.parameters[key]):
            kind = type(card.parameters[key]).__name__
            raise SpecError(f"{name}: expected {key} to be of type {kind}, got {given[key]!r}")
        if key in card.positive and not given[key] > 0:
            raise SpecError(f"{name}: expected {key} > 0, got {given[key]!r}")
        if isinstance(given[key], float) and not math.isfinite(given[key]):
            raise SpecError(f"{name}: expected a finite {key}, got {given[key]!r}")
    parameters = {**card.parameters, **given}
    for key, default in card.parameters.items():
        if isinstance(default, float):  # a whole number will do
            parameters[key] = float(parameters[key])
    return parameters


def _alike(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
