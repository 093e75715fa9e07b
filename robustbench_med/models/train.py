"""Training of the shipped zoo: one seeded recipe a card, on balanced cross-entropy."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from robustbench_med.cards import DatasetCard, Measured, ModelCard, Recipe, Task
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError
from robustbench_med.metrics.classification import Predictions, score
from robustbench_med.models import weights
from robustbench_med.models.load import untrained
from robustbench_med.models.operating_point import youden
from robustbench_med.objectives import make
from robustbench_med.objectives.decide import decide, probabilities
from robustbench_med.types import Batch, Truth
from robustbench_med.victim import Victim, frozen


def train(
    card: ModelCard, data: Dataset, out: Path, *, progress: Callable[[float], None] = lambda _: None
) -> ModelCard:
    """Train the card's model, write weights and card to `out`, and return the card.

    Args:
        card: has a recipe.
        data: the dataset the card names; train is fitted on, val chooses the operating point, test
            is measured.
        out: folder for `NAME.safetensors` and `NAME.json`.
        progress: called with the share done, 0..1.

    Raises:
        SpecError: the card has no recipe.
    """
    if card.recipe is None:
        raise SpecError(f"expected a card with a recipe, got {card.name}")
    with _seeded(card.recipe.seed):
        victim = untrained(card, data.card)
        fit(victim, data.batch("train"), data.card, card.recipe, progress)
    out.mkdir(parents=True, exist_ok=True)
    name = f"{card.name}.safetensors"
    sha256 = weights.write(victim.module, out / name)
    found = card.model_copy(
        update={"weights": name, "sha256": sha256, "measured": measure(victim, data)}
    )
    (out / f"{card.name}.json").write_text(found.model_dump_json(indent=2) + "\n")
    return found


def measure(victim: Victim, data: Dataset) -> Measured:
    """Return the victim's scores on the test split at its operating point, and its cost."""
    with frozen(victim.module):
        val, test = data.batch("val"), data.batch("test")
        victim = victim.at(youden(victim.logits(val.x), val.y, data.card))
        logits = victim.logits(test.x)
        cost = _gradient_ms(victim, test, data.card.task)
    y, task = test.y.numpy(), data.card.task
    found = score(
        Predictions.of(y, decide(logits, task), probabilities(logits, task), data.card),
        data.card,
        clusters=None,
        weights=np.ones((1, len(y))),
    )
    return Measured(
        parameters=sum(p.numel() for p in victim.module.parameters()),
        balanced_accuracy=round(found["balanced_accuracy"].value, 4),
        accuracy=round(found["accuracy"].value, 4),
        gradient_ms=round(cost, 3),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads",
    )


def fit(
    victim: Victim,
    batch: Batch,
    card: DatasetCard,
    recipe: Recipe,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Train the victim's module on a batch, in place, by the recipe, with torch's generator."""
    module = victim.module.train()
    rounds = math.ceil(len(batch) / recipe.batch)
    optimizer = torch.optim.AdamW(module.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.epochs * rounds
    )
    balance = _balance(batch.y, card)
    for epoch in range(recipe.epochs):
        for i, rows in enumerate(torch.randperm(len(batch)).split(recipe.batch)):
            if len(rows) == 1:  # batch norm needs two: one image sits this epoch out
                schedule.step()
                progress((epoch + 1) / recipe.epochs)
                continue
            logits = victim(augment(batch.x[rows], recipe)).logits
            loss = _loss(logits, batch.y[rows], card, balance, recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress((epoch + (i + 1) / rounds) / recipe.epochs)


def _balance(y: Truth, card: DatasetCard) -> Float[Tensor, " k"]:
    """Return weights that make rare classes (or present findings) count as much as others."""
    if card.task == "multi_label":
        present = (y == 1).sum(0).clamp_min(1)
        return (y == 0).sum(0).clamp_min(1) / present
    count = torch.bincount(y[y >= 0], minlength=len(card.classes)).clamp_min(1)
    return count.sum() / (len(count) * count.float())


def _loss(
    logits: Float[Tensor, "b k"], y: Truth, card: DatasetCard, balance: Tensor, smoothing: float
) -> Float[Tensor, ""]:
    if card.task == "multi_label":
        known = (y >= 0).to(logits)
        truth = y.clamp_min(0).to(logits)
        each = functional.binary_cross_entropy_with_logits(
            logits, truth, pos_weight=balance, reduction="none"
        )
        return (each * known).sum() / known.sum().clamp_min(1)
    return functional.cross_entropy(
        logits, y, weight=balance, ignore_index=-1, label_smoothing=smoothing
    )


def augment(x: Float[Tensor, "b c h w"], recipe: Recipe) -> Float[Tensor, "b c h w"]:
    """Return a randomly moved copy of each image, one resampling for all moves together."""
    b = len(x)
    angle = (torch.rand(b) - 0.5) * (0.35 if "rotate" in recipe.augment else 0)  # +-10 degrees
    mirror = 1 - 2.0 * (torch.rand(b) < 0.5) if "flip" in recipe.augment else torch.ones(b)
    side = torch.tensor(x.shape[:1:-1])  # w, h: the order of affine_grid
    shift = (torch.rand(b, 2) - 0.5) * (0.1 if "shift" in recipe.augment else 0)  # of the side
    shift = (shift * side).round() / side * 2  # whole pixels: a lesion of two must not be blurred
    rotation = torch.stack(
        [angle.cos() * mirror, -angle.sin(), angle.sin() * mirror, angle.cos()], 1
    )
    theta = torch.cat([rotation.view(b, 2, 2), shift[:, :, None]], 2)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    moved = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if "contrast" in recipe.augment:
        gain = 1 + (torch.rand(b, 1, 1, 1) - 0.5) * 0.3
        moved = ((moved - 0.5) * gain + 0.5 + (torch.rand(b, 1, 1, 1) - 0.5) * 0.1).clamp(0, 1)
    return moved


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch and keep it to one thread inside the block; give both back after it.

    The order of sums depends on the number of threads, and with it the last bits of the weights.
    """
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)


def _gradient_ms(victim: Victim, batch: Batch, task: Task) -> float:
    x = batch.x[:64].clone().requires_grad_(True)
    objective = make("untargeted", task)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.autograd.grad(objective(victim(x), batch.y[: len(x)]).loss.sum(), x)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / len(x)
