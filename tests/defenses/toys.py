"""Toy images that detectors are fitted on: Gaussian noise, as many as a test needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from attacks.pgd import pgd
from robustbench_med.ball import Ball
from robustbench_med.cards import DatasetCard, Task
from robustbench_med.defense import Fitting
from robustbench_med.objectives import make
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Batch, Images
from robustbench_med.victim import Victim
from tests.toys import small_victim

EPS = 0.1


def gaussian_images(n: int, *, seed: int, channels: int = 1, axes: int = 2) -> Images:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, channels, *(8,) * axes)
    level = 0.3 + 0.4 * torch.rand(n, *[1] * (axes + 1), generator=generator)
    return (level + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)


def toy_victim(k: int = 2, *, channels: int = 1, axes: int = 2) -> Victim:
    """Return an untrained victim whose operating point calls each class about as often."""
    victim = small_victim(k, channels=channels, axes=axes)
    x = gaussian_images(200, seed=9, channels=channels, axes=axes)
    return victim.at(-victim.logits(x).median(0).values)


def toy_batch(
    victim: Victim, n: int, *, seed: int, task: Task = "single_label", patients: int = 0
) -> Batch:
    """Return images whose truth is what the victim calls them; with patients, so many of them."""
    c = victim.contract
    x = gaussian_images(n, seed=seed, channels=c.channels, axes=len(c.size))
    logits = victim.logits(x)
    y = (logits > 0).long() if logits.shape[1] == 1 or task == "multi_label" else logits.argmax(1)
    y = y[:, 0] if logits.shape[1] == 1 else y
    ids = np.array([f"s{seed}_{i}" for i in range(n)])
    owners = np.array([f"p{i % patients}" for i in range(n)]) if patients else None
    return Batch(x, y, ids, owners)


def toy_fitting(
    victim: Victim,
    *,
    train: int = 120,
    val: int = 60,
    task: Task = "single_label",
    patients: int = 0,
) -> Fitting:
    k = max(victim.logits(gaussian_images(1, seed=0, **_shape(victim))).shape[1], 2)
    card = DatasetCard(
        name="toy",
        title="Toy",
        modality="toy",
        task=task,
        classes=tuple(f"class_{i}" for i in range(k)),
        channels=victim.contract.channels,
        size=victim.contract.size,
    )

    def attacked(batch: Batch) -> Images:
        problem = Problem(batch.x, batch.y, Ball("linf", EPS), make("untargeted", task), victim)
        return pgd(problem, rng=Draws.of(0, map(str, batch.ids)), steps=5)

    return Fitting(
        toy_batch(victim, train, seed=1, task=task, patients=patients),
        toy_batch(victim, val, seed=2, task=task),
        card,
        0,
        attacked,
    )


def with_val(fitting: Fitting, val: Batch) -> Fitting:
    return replace(fitting, val=val)


def _shape(victim: Victim) -> dict[str, int]:
    return {"channels": victim.contract.channels, "axes": len(victim.contract.size)}
