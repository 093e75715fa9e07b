"""Adversarial training against the same recipe with torchattacks' PGD in the loop."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import Arena, Plain
from robustbench_med.cards import Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.training.augment import augment
from robustbench_med.training.fit import fit
from robustbench_med.victim import Victim

EPS, STEPS, SHARE = 4 / 255, 7, 0.25
RECIPE = Recipe(epochs=1, batch=48, augment=("flip", "shift", "contrast"))
DEFENSE = f"pgd_at(eps={EPS}, steps={STEPS}, rel_stepsize={SHARE})"


@cache
def images() -> Dataset:
    """Return the dataset, drawn once: drawing it is not what is timed."""
    return load_dataset("phantom_fundus")


def ours(victim: Victim, *, precision: str = "float32") -> None:
    data = images()
    recipe = RECIPE.model_copy(update={"defense": DEFENSE, "precision": precision})
    fit(victim, data.batch("train"), data.card, recipe)


def ours_bfloat16(victim: Victim) -> None:
    ours(victim, precision="bfloat16")


def torchattacks(victim: Victim) -> None:
    """The loop a person writes around it: same images, steps, optimizer and schedule."""
    import torchattacks as peer

    batch = images().batch("train")
    plain = Plain(victim).train()
    attack = peer.PGD(plain, eps=EPS, alpha=EPS * SHARE, steps=STEPS)
    rounds = math.ceil(len(batch) / RECIPE.batch)
    optimizer = torch.optim.AdamW(plain.parameters(), RECIPE.lr, weight_decay=RECIPE.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE.lr, total_steps=rounds)
    for rows in torch.randperm(len(batch)).split(RECIPE.batch):
        x, y = augment(batch.x[rows], RECIPE), batch.y[rows]
        z = attack(x.clamp(0, 1), y)
        loss = torch.nn.functional.cross_entropy(plain(z), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("contender", [ours, ours_bfloat16, torchattacks])
def test_adversarial_training(
    contender: Callable[[Victim], None],
    halves: tuple[Arena, Arena],
    contest: Callable[..., None],
) -> None:
    """One epoch of PGD-7 training of a narrow ResNet on 900 images of 3 x 64 x 64.

    The last column is of the clean images under the victim it started from: nothing to compare.
    """
    arena = halves[1]
    images().batch("train")  # drawn before the clock starts

    def run() -> Tensor:
        module = copy.deepcopy(arena.victim.module).requires_grad_(True)
        torch.manual_seed(0)
        contender(replace(arena.victim, module=module))
        return arena.x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        contest("adversarial training", contender.__name__, run, arena=arena, rounds=2)
