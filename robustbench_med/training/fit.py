"""Fit: the loop over epochs and batches, plain or with a defense that trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robustbench_med.cards import DatasetCard, Recipe
from robustbench_med.errors import DivergedError
from robustbench_med.training import checkpoint, masks
from robustbench_med.training.adversarial_setup import (
    AdversarialSetup,
    Loss,
    adversarial_setup,
    fitted,
)
from robustbench_med.training.augment import augment, augment_masks
from robustbench_med.training.checkpoint import Saved, State
from robustbench_med.training.validation import validate
from robustbench_med.types import Batch, Logits, Truth
from robustbench_med.victim import Victim

Progress = Callable[[float], None]


class _Task(NamedTuple):
    """What does not change while a victim is trained."""

    victim: Victim
    batch: Batch
    card: DatasetCard
    recipe: Recipe
    window: tuple[int, ...] | None
    hard: AdversarialSetup | None
    loss: Loss
    rounds: int  # batches an epoch


def fit(
    victim: Victim,
    batch: Batch,
    card: DatasetCard,
    recipe: Recipe,
    progress: Progress = lambda _: None,
    *,
    window: tuple[int, ...] | None = None,
    val: Batch | None = None,
    saved: Saved | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Train the victim's module on a batch, in place, by the recipe, with torch's generator.

    Args:
        victim: whose module is trained.
        batch: images and truth to fit.
        card: of the data.
        recipe: how.
        progress: called with the share done, 0..1.
        window: of masks: train on random windows of this size.
        val: validation images, watched every epoch where the recipe has a defense or a patience.
        saved: where a checkpoint is written every epoch, and gone on from; None = nowhere.
        tell: called with a line an epoch that was watched.

    Raises:
        SpecError: the recipe's defense is unknown or does not fit the data.
        CheckpointError: the checkpoint is damaged or of another training.
        DivergedError: the loss or a weight became NaN or Inf.
    """
    hard = None
    if recipe.defense:
        hard = adversarial_setup(recipe.defense, card, windowed=window is not None)
    rounds = math.ceil(len(batch) / recipe.batch)
    balance = _balance(batch.y, card)
    loss = partial(_loss, card=card, balance=balance, smoothing=recipe.label_smoothing)
    task = _Task(victim, batch, card, recipe, window, hard, loss, rounds)
    watched = val if hard is not None or recipe.patience else None
    if _fast(recipe) and len(card.size) == 2:
        victim.module.to(memory_format=torch.channels_last)
    victim.module.train()
    state = _fresh(task)
    if saved is not None and checkpoint.restore(saved, state):
        tell(f"goes on after epoch {state.epoch} of {recipe.epochs}, from {saved.path}")
    while state.epoch < recipe.epochs and not (recipe.patience and state.stale >= recipe.patience):
        start = time.perf_counter()
        mean = _epoch(task, state, progress, saved)
        state.epoch += 1
        if watched is not None:
            seen = _watched(task, state, watched)
            seconds = time.perf_counter() - start
            tell(f"epoch {state.epoch}/{recipe.epochs}: loss {mean:.3f}, {seen}, {seconds:.1f} s")
        if saved is not None:
            checkpoint.write(saved, state)
    _finish(task, state)


def _fast(recipe: Recipe) -> bool:
    """Whether sums may be ordered for speed: older recipes keep their weights to the bit."""
    return bool(recipe.defense) or recipe.precision != "float32"


def _fresh(task: _Task) -> State:
    module, recipe = task.victim.module, task.recipe
    optimizer = torch.optim.AdamW(module.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.epochs * task.rounds
    )
    ema = None
    if recipe.ema:
        averaged = get_ema_multi_avg_fn(recipe.ema)
        ema = AveragedModel(module, multi_avg_fn=averaged, use_buffers=True)
    return State(module, optimizer, schedule, ema)


def _epoch(task: _Task, state: State, progress: Progress, saved: Saved | None) -> float:
    """Train one epoch and return its mean loss."""
    recipe, epoch, found = task.recipe, state.epoch, []
    fitting = task.hard.fitting if task.hard is not None else None
    if fitting is not None and epoch % fitting.every == 0:
        state.pattern = fitted(fitting, task.victim, task.batch, task.card)
    for i, rows in enumerate(torch.randperm(len(task.batch)).split(recipe.batch)):
        if len(rows) == 1:  # batch norm needs two: one image sits this epoch out
            state.schedule.step()
            progress((epoch + 1) / recipe.epochs)
            continue
        loss = _descended(task, rows, state.pattern)
        found.append(float(loss.detach()))
        if not math.isfinite(found[-1]):
            raise _diverged("loss", found[-1], state, recipe, saved)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.schedule.step()
        if state.ema is not None:
            state.ema.update_parameters(state.module)
        progress((epoch + (i + 1) / task.rounds) / recipe.epochs)
    if not all(bool(p.isfinite().all()) for p in state.module.parameters()):
        raise _diverged("weights", math.nan, state, recipe, saved)
    return sum(found) / max(len(found), 1)


def _descended(task: _Task, rows: Tensor, pattern: Tensor | None) -> Tensor:
    """Return the loss of a batch, augmented, in the recipe's precision."""
    x, y = task.batch.x[rows], task.batch.y[rows]
    if task.card.task == "segmentation":
        x, y = augment_masks(x, y, task.recipe, window=task.window)
    else:
        x = augment(x, task.recipe)
    half = task.recipe.precision == "bfloat16"
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
        if task.hard is None:
            return task.loss(task.victim(x).logits, y)
        return task.hard.loss(task.victim, x, y, task.loss, pattern)


def _watched(task: _Task, state: State, val: Batch) -> object:
    """Return the scores on validation, and keep the weights if they are the best so far."""
    module = state.module if state.ema is None else state.ema.module
    victim = replace(task.victim, module=module)
    seen = validate(victim, val, task.card, task.hard, state.pattern)
    if seen.kept > state.score:
        state.score, state.stale = seen.kept, 0
        if task.recipe.patience:
            state.best = {key: value.clone() for key, value in module.state_dict().items()}
    else:
        state.stale += 1
    return seen


def _finish(task: _Task, state: State) -> None:
    """Leave the weights the recipe asks for in the victim's module."""
    if state.best is not None:
        state.module.load_state_dict(state.best)
    elif state.ema is not None:
        state.module.load_state_dict(state.ema.module.state_dict())
    if _fast(task.recipe):
        state.module.to(memory_format=torch.contiguous_format)


def _diverged(
    what: str, value: float, state: State, recipe: Recipe, saved: Saved | None
) -> DivergedError:
    kept = "no checkpoint is kept"
    if saved is not None and state.epoch:
        kept = f"the last good checkpoint, after epoch {state.epoch}, is {saved.path}"
    return DivergedError(
        f"expected finite {what}, got {value} in epoch {state.epoch + 1} of {recipe.epochs}: "
        f"{kept}; lower the recipe's lr"
    )


def _balance(y: Truth, card: DatasetCard) -> Float[Tensor, " k"]:
    """Return weights that make rare classes (or present findings) count as much as others."""
    if card.task == "multi_label":
        present = (y == 1).sum(0).clamp_min(1)
        return (y == 0).sum(0).clamp_min(1) / present
    count = torch.bincount(y[y >= 0], minlength=len(card.classes)).clamp_min(1)
    return count.sum() / (len(count) * count.float())


def _loss(
    logits: Logits, y: Truth, *, card: DatasetCard, balance: Tensor, smoothing: float
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
