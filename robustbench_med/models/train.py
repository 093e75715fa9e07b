"""Training of the shipped zoo: one seeded recipe a card, on balanced cross-entropy or on masks."""

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

from robustbench_med.cards import DatasetCard, Measured, ModelCard, Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError
from robustbench_med.metrics.classification import Predictions, score
from robustbench_med.models import masks, weights
from robustbench_med.models.augment import augment, augment_masks
from robustbench_med.models.load import untrained
from robustbench_med.models.operating_point import youden
from robustbench_med.models.sliding import bare
from robustbench_med.objectives import make
from robustbench_med.objectives.decide import decide, probabilities
from robustbench_med.types import Batch, Logits, Truth, images_at_once
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
        fit(victim, data.batch("train"), data.card, card.recipe, progress, window=card.window)
    out.mkdir(parents=True, exist_ok=True)
    name = f"{card.name}.safetensors"
    sha256 = weights.write(bare(victim.module), out / name)
    found = card.model_copy(
        update={"weights": name, "sha256": sha256, "measured": measure(victim, data)}
    )
    (out / f"{card.name}.json").write_text(found.model_dump_json(indent=2) + "\n")
    return found


def measure(victim: Victim, data: Dataset) -> Measured:
    """Return the victim's scores on the test split at its operating point, and its cost."""
    masks_wanted = data.card.task == "segmentation"
    with frozen(victim.module):
        test = data.batch("test")
        if not masks_wanted:
            val = data.batch("val")
            victim = victim.at(youden(victim.logits(val.x), val.y, data.card))
        found = _dice(victim, test, data.card) if masks_wanted else _hits(victim, test, data.card)
        cost = _gradient_ms(victim, test, data.card)
    return Measured(
        parameters=sum(p.numel() for p in victim.module.parameters()),
        **{name: round(value, 4) for name, value in found.items()},
        gradient_ms=round(cost, 3),
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads",
    )


def _hits(victim: Victim, test: Batch, card: DatasetCard) -> dict[str, float]:
    logits, y = victim.logits(test.x), test.y.numpy()
    found = score(
        Predictions.of(y, decide(logits, card.task), probabilities(logits, card.task), card),
        card,
        clusters=None,
        weights=np.ones((1, len(y))),
    )
    return {name: found[name].value for name in ("balanced_accuracy", "accuracy")}


def _dice(victim: Victim, test: Batch, card: DatasetCard) -> dict[str, float]:
    return {"dice": masks.mean_dice(victim, test, card)}


def fit(
    victim: Victim,
    batch: Batch,
    card: DatasetCard,
    recipe: Recipe,
    progress: Callable[[float], None] = lambda _: None,
    *,
    window: tuple[int, ...] | None = None,
) -> None:
    """Train the victim's module on a batch, in place, by the recipe, with torch's generator.

    Args:
        victim: whose module is trained.
        batch: images and truth to fit.
        card: of the data.
        recipe: how.
        progress: called with the share done, 0..1.
        window: of masks: train on random windows of this size.
    """
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
            x, y = batch.x[rows], batch.y[rows]
            if card.task == "segmentation":
                x, y = augment_masks(x, y, recipe, window=window)
            else:
                x = augment(x, recipe)
            loss = _loss(victim(x).logits, y, card, balance, recipe.label_smoothing)
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
    logits: Logits, y: Truth, card: DatasetCard, balance: Tensor, smoothing: float
) -> Float[Tensor, ""]:
    if card.task == "segmentation":
        return masks.loss(logits, y)
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


def _gradient_ms(victim: Victim, batch: Batch, card: DatasetCard) -> float:
    x = batch.x[: images_at_once(card.size)].clone().requires_grad_(True)
    objective = make("untargeted", card.task, card=card)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.autograd.grad(objective(victim(x), batch.y[: len(x)]).loss.sum(), x)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / len(x)
