"""The training loop over epochs and batches, plain or with a training defense."""

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
    fit_universal,
)
from robustbench_med.training.augment import augment, augment_masks
from robustbench_med.training.checkpoint import Saved, State
from robustbench_med.training.validation import validate
from robustbench_med.types import Batch, Logits, Truth
from robustbench_med.victim import Victim

Progress = Callable[[float], None]


class Task(NamedTuple):
    """The constants of one training.

    Attributes:
        victim: the victim whose module is trained.
        batch: the training images, which stay stored until rows of them are read.
        card: describes the data.
        recipe: states how to train.
        window: size of the random windows that a segmenter is trained on.
        setup: the training defense; None without one.
        loss: the loss of the recipe.
        rounds: batches per epoch.
    """

    victim: Victim
    batch: Batch
    card: DatasetCard
    recipe: Recipe
    window: tuple[int, ...] | None
    setup: AdversarialSetup | None
    loss: Loss
    rounds: int


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
    log: Callable[[str], None] = lambda _: None,
) -> None:
    """Train the victim's module in place by a recipe, with torch's generator.

    Args:
        victim: its module is trained.
        batch: training images with their truth.
        card: describes the data.
        recipe: states how to train.
        progress: called with the completed fraction, 0..1.
        window: size of the random windows that a segmenter is trained on.
        val: validation images, scored after every epoch if the recipe has a defense or a patience.
        saved: checkpoint that is written after every epoch and continued from; None = none.
        log: called with a line after every epoch that was validated.

    Raises:
        SpecError: the recipe's defense is unknown or does not fit the data.
        CheckpointError: the checkpoint is damaged or belongs to another training.
        DivergedError: the loss or a weight became NaN or Inf.
    """
    task = task_of(victim, batch, card, recipe, window)
    monitored = val if is_monitored(recipe) else None
    if _fast(recipe) and len(card.size) == 2:
        victim.module.to(memory_format=torch.channels_last)
    victim.module.train()
    state = _new_state(task)
    if saved is not None and checkpoint.restore(saved, state):
        log(f"continues after epoch {state.epoch} of {recipe.epochs}, from {saved.path}")
    while state.epoch < recipe.epochs and not (recipe.patience and state.stale >= recipe.patience):
        start = time.perf_counter()
        mean = _epoch(task, state, progress, saved)
        state.epoch += 1
        if monitored is not None:
            scores = _validate(task, state, monitored)
            seconds = time.perf_counter() - start
            log(f"epoch {state.epoch}/{recipe.epochs}: loss {mean:.3f}, {scores}, {seconds:.1f} s")
        if saved is not None:
            checkpoint.write(saved, state)
    _finish(task, state)


def task_of(
    victim: Victim,
    batch: Batch,
    card: DatasetCard,
    recipe: Recipe,
    window: tuple[int, ...] | None,
) -> Task:
    """Return the constants of a training; the arguments are those of `fit`.

    Raises:
        SpecError: as `fit`.
    """
    setup = None
    if recipe.defense:
        setup = adversarial_setup(recipe.defense, card, windowed=window is not None)
    rounds = math.ceil(len(batch) / recipe.batch)
    balance = _balance(batch.y, card).to(batch.x.device)
    loss = partial(_loss, card=card, balance=balance, smoothing=recipe.label_smoothing)
    return Task(victim, batch, card, recipe, window, setup, loss, rounds)


def is_monitored(recipe: Recipe) -> bool:
    """Whether a training is validated after every epoch."""
    return bool(recipe.defense or recipe.patience)


def _fast(recipe: Recipe) -> bool:
    """Whether settings that are faster but round differently are allowed; plain recipes may not."""
    return bool(recipe.defense) or recipe.precision != "float32"


def _new_state(task: Task) -> State:
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


def _epoch(task: Task, state: State, progress: Progress, saved: Saved | None) -> float:
    """Train one epoch and return its mean loss."""
    recipe, epoch, losses = task.recipe, state.epoch, []
    fitting = task.setup.fitting if task.setup is not None else None
    if fitting is not None and epoch % fitting.every == 0:
        state.pattern = fit_universal(fitting, task.victim, task.batch, task.card)
    for i, rows in enumerate(torch.randperm(len(task.batch)).split(recipe.batch)):
        if len(rows) == 1:  # batch norm needs two images: a single one is skipped
            state.schedule.step()
            progress((epoch + 1) / recipe.epochs)
            continue
        losses.append(0.0)
        state.optimizer.zero_grad()
        for part in parts_of(rows, recipe.accumulate):
            loss = batch_loss(task, part, state.pattern)
            if len(part) < len(rows):
                loss = loss * (len(part) / len(rows))
            losses[-1] += float(loss.detach())
            if not math.isfinite(losses[-1]):
                raise _diverged("loss", losses[-1], state, recipe, saved)
            loss.backward()
        state.optimizer.step()
        state.schedule.step()
        if state.ema is not None:
            state.ema.update_parameters(state.module)
        progress((epoch + (i + 1) / task.rounds) / recipe.epochs)
    if not all(bool(p.isfinite().all()) for p in state.module.parameters()):
        raise _diverged("weights", math.nan, state, recipe, saved)
    return sum(losses) / max(len(losses), 1)


def parts_of(rows: Tensor, accumulate: int) -> tuple[Tensor, ...]:
    """Return the rows of a batch in parts, each of two or more, as batch norm needs.

    >>> [len(part) for part in parts_of(torch.arange(7), 4)]
    [3, 2, 2]
    """
    return rows.tensor_split(max(1, min(accumulate, len(rows) // 2)))


def batch_loss(task: Task, rows: Tensor, pattern: Tensor | None) -> Tensor:
    """Return the loss of an augmented batch, in the precision of the recipe."""
    x = task.batch.x[rows]
    y = task.batch.y[rows].to(x.device)
    if task.card.task == "segmentation":
        x, y = augment_masks(x, y, task.recipe, window=task.window)
    else:
        x = augment(x, task.recipe)
    half = task.recipe.precision == "bfloat16"
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
        if task.setup is None:
            return task.loss(task.victim(x).logits, y)
        return task.setup.loss(task.victim, x, y, task.loss, pattern)


def _validate(task: Task, state: State, val: Batch) -> object:
    """Return the validation scores, and store the weights if they are the best so far."""
    module = state.module if state.ema is None else state.ema.module
    victim = replace(task.victim, module=module)
    scores = validate(victim, val, task.card, task.setup, state.pattern)
    if scores.monitored > state.score:
        state.score, state.stale = scores.monitored, 0
        if task.recipe.patience:
            state.best = {key: value.clone() for key, value in module.state_dict().items()}
    else:
        state.stale += 1
    return scores


def _finish(task: Task, state: State) -> None:
    """Load the best or averaged weights into the victim's module, as the recipe states."""
    if state.best is not None:
        state.module.load_state_dict(state.best)
    elif state.ema is not None:
        state.module.load_state_dict(state.ema.module.state_dict())
    if _fast(task.recipe):
        state.module.to(memory_format=torch.contiguous_format)


def _diverged(
    what: str, value: float, state: State, recipe: Recipe, saved: Saved | None
) -> DivergedError:
    remedy = "there is no checkpoint"
    if saved is not None and state.epoch:
        remedy = f"the last good checkpoint, after epoch {state.epoch}, is {saved.path}"
    return DivergedError(
        f"expected finite {what}, got {value} in epoch {state.epoch + 1} of {recipe.epochs}: "
        f"{remedy}; lower the recipe's lr"
    )


def _balance(y: Truth, card: DatasetCard) -> Float[Tensor, " k"]:
    """Return weights with which rare classes, or positive findings, count as much as others."""
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
        losses = functional.binary_cross_entropy_with_logits(
            logits, truth, pos_weight=balance, reduction="none"
        )
        return (losses * known).sum() / known.sum().clamp_min(1)
    return functional.cross_entropy(
        logits, y, weight=balance, ignore_index=-1, label_smoothing=smoothing
    )
