"""Suites: which options of the command line reach which grid."""

from __future__ import annotations

from typing import Any

import pytest

from robustbench_med.bench.suite import Grid, Suite, override
from robustbench_med.errors import SpecError

SHIFTS = {"datasets": ("phantom_fundus",), "attacks": ("bias_field",), "ladder": (0.5,)}
ATTACKS = {"datasets": ("phantom_fundus",), "attacks": ("fgsm",), "ladder": (0.01,)}


def grids_of(*grids: dict[str, Any], **fields: Any) -> list[tuple[str, tuple[float | str, ...]]]:  # noqa: ANN401
    suite = Suite(name="s", title="S", grids=tuple(Grid.model_validate(grid) for grid in grids))
    return [(grid.norm, grid.ladder) for grid in override(suite, fields, None).grids]


def test_a_radius_reaches_attacks_and_a_severity_shifts() -> None:
    both = (ATTACKS, SHIFTS)
    assert grids_of(*both, ladder=["2/255"]) == [("linf", (2 / 255,)), ("severity", (0.5,))]
    assert grids_of(*both, severity=["0.25"]) == [("linf", (0.01,)), ("severity", (0.25,))]
    assert grids_of(*both, norm="l2") == [("l2", (0.01,)), ("severity", (0.5,))]
    assert grids_of(ATTACKS, attacks=["bias_field"], severity=["1"]) == [("severity", (1.0,))]


@pytest.mark.parametrize(
    ("grids", "fields", "message"),
    [
        ((SHIFTS,), {"ladder": ["2/255"]}, "expected --severity for shifts"),
        ((ATTACKS,), {"severity": ["0.5"]}, "expected --eps for attacks"),
        ((ATTACKS,), {"attacks": ["bias_field"], "ladder": ["2/255"]}, "expected --severity for"),
        ((ATTACKS, SHIFTS), {"attacks": ["pgd"], "severity": ["0.5"]}, "expected --eps for"),
    ],
)
def test_a_radius_is_no_severity(
    grids: tuple[dict[str, Any], ...], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        grids_of(*grids, **fields)
