"""Input transforms, attacked through their guides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.pgd import pgd
from defenses.jpeg import jpeg
from defenses.transforms import (
    bit_depth,
    median_filter,
    random_resize_pad,
    resize_pad,
    total_variation,
)
from robustbench_med.ball import Ball
from robustbench_med.datasets.load import load_dataset
from robustbench_med.defense import Defended
from robustbench_med.models.load import load_victim
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws, seeded
from robustbench_med.types import Images
from robustbench_med.victim import Victim, frozen
from tests.toys import Linear, draws, victim_of


class Attacked:
    """PGD-20 on fundus phantoms, by an attacker who climbs one victim or another."""

    def __init__(self) -> None:
        data = load_dataset("phantom_fundus")
        self.victim = load_victim("fundus_resnet", data.card).victim
        self.batch = data.batch("test", n=24)

    def share(self, judge: Victim, guide: Victim | None, eps: float) -> float:
        """Return the accuracy that the judge keeps where the guide is climbed."""
        x, y, ids = self.batch.x, self.batch.y, self.batch.ids
        problem = Problem(x, y, Ball("linf", eps), Untargeted(), judge, guide=guide)
        with seeded("attacked"), frozen(self.victim.module):
            z = pgd(problem, rng=Draws.of(0, ids), steps=20)
            return float((judge(z).logits.argmax(1) == y).float().mean())


@pytest.fixture(scope="module")
def attacked() -> Attacked:
    return Attacked()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "parameters", "eps", "naive", "kept"),
    [
        (bit_depth, {"bits": 4}, 1, "judge", 0.1),
        (jpeg, {"quality": 75}, 1, "judge", 0.2),
        (jpeg, {"quality": 25}, 2, "judge", 0.2),
        # these have a gradient of their own: naive is who does not know of them
        (median_filter, {"size": 3}, 2, "oblivious", 0.1),
        (total_variation, {"weight": 0.03}, 4, "oblivious", 0.1),
    ],
)
def test_bpda_beats_the_naive_attack(
    attacked: Attacked,
    wrap: Callable[..., Defended],
    parameters: dict[str, Any],
    eps: float,
    naive: str,
    kept: float,
) -> None:
    defended = wrap(attacked.victim, **parameters)
    fool = defended.judge if naive == "judge" else attacked.victim
    blind = attacked.share(defended.judge, fool, eps / 255)
    seeing = attacked.share(defended.judge, defended.guide, eps / 255)
    assert seeing <= kept
    assert blind >= seeing + 0.25


def test_eot_beats_one_fixed_draw() -> None:
    """The attack spends all its steps: one that stops at the first lucky draw is no test."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(2, 256, generator=g)  # of mean 0, or brightness alone would decide
    victim = victim_of(Linear(w - w.mean(1, keepdim=True), torch.zeros(2)), size=(16, 16))
    x = 0.2 + 0.6 * torch.rand(64, 1, 16, 16, generator=g)
    defended = random_resize_pad(victim, smallest=0.8, draws=16)

    def fixed(x: Images) -> Images:
        with seeded("one draw"):
            return resize_pad(x, smallest=0.8)

    fair = replace(defended.judge, draws=256)
    with seeded("truth"):
        y = fair(x).logits.argmax(1)
    kept = {}
    for name, guide in {"one": replace(victim, before=fixed), "eot": None}.items():
        goal = LossOverride(Untargeted(), use_all_steps=True)
        problem = Problem(x, y, Ball("linf", 0.02), goal, defended.judge, guide=guide)
        with seeded("attacked"):
            z = pgd(problem, rng=draws(64), steps=10)
            kept[name] = float((fair(z).logits.argmax(1) == y).float().mean())
    assert kept["eot"] <= kept["one"] - 0.15
