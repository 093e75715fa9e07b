"""`ensemble` against the reference AutoAttack at K = 10: seconds and robust accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks.ensemble import ensemble
from attacks.pgd import pgd
from benchmarks.conftest import Arena, Plain, draws


@pytest.fixture(scope="session")
def radius(ten_classes: Arena) -> float:
    """Return the radius at which about half of the images stand, found by bisection."""
    low, high = 0.0, 0.2
    for _ in range(8):
        middle = (low + high) / 2
        z = pgd(ten_classes.problem(middle), rng=draws(ten_classes), steps=20)
        low, high = (middle, high) if ten_classes.survivors(z) > 0.5 else (low, middle)
    return high


def ours(arena: Arena, eps: float) -> Callable[[], Tensor]:
    return lambda: ensemble(arena.problem(eps), rng=draws(arena))


def autoattack(arena: Arena, eps: float) -> Callable[[], Tensor]:
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        Plain(arena.victim).eval(), norm="Linf", eps=eps, version="standard", device="cpu"
    )

    def run() -> Tensor:
        found = attack.run_standard_evaluation(arena.x, arena.y)
        z: Tensor = found[0] if isinstance(found, tuple) else found
        return z

    return run


@pytest.mark.parametrize("contender", [ours, autoattack])
def test_ensemble(
    contender: Callable[[Arena, float], Callable[[], Tensor]],
    ten_classes: Arena,
    radius: float,
    contest: Callable[..., None],
) -> None:
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # the peer's own
        attack = contender(ten_classes, radius)
        contest("ensemble, K = 10", contender.__name__, attack, arena=ten_classes)
