"""Estimate the time and the memory of a training from one step, before it starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn

from robustbench_med.cards import DatasetCard, Recipe
from robustbench_med.devices import device_of_module
from robustbench_med.training.fit import Task, batch_loss, is_monitored, parts_of, task_of
from robustbench_med.training.validation import STEPS
from robustbench_med.types import Batch
from robustbench_med.victim import Victim

GIB = 2**30
_FORWARD = 1 / 3  # time of a forward pass, of that forward and backward


class TrainingCost(NamedTuple):
    """The expected cost of a training; it stops earlier where the recipe has a patience.

    Attributes:
        images: number of training images.
        epochs: number of epochs.
        steps: steps of the optimizer in an epoch.
        batch: images of a step.
        parts: parts of a batch.
        epoch_seconds: time of an epoch in seconds, validation included.
        bytes: memory of weights, gradients, optimizer and the values between the layers.
        free: free memory of the device in bytes.
        device: name of the device.
    """

    images: int
    epochs: int
    steps: int
    batch: int
    parts: int
    epoch_seconds: float
    bytes: int
    free: int
    device: str

    def __str__(self) -> str:
        split = f" in {self.parts} parts" if self.parts > 1 else ""
        line = (
            f"{self.images} images, {self.epochs} epochs of {self.steps} steps of {self.batch} "
            f"images{split}: about {_words(self.epoch_seconds)} an epoch, "
            f"{_words(self.epochs * self.epoch_seconds)} in all, and {self.bytes / GIB:.1f} GiB "
            f"of memory on {self.device}"
        )
        if self.bytes <= self.free:
            return line
        return (
            f"{line}, of which {self.free / GIB:.1f} GiB are free: --accumulate "
            f"{2 * self.parts} splits each batch into smaller parts"
        )


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(
    victim: Victim,
    batch: Batch,
    card: DatasetCard,
    recipe: Recipe,
    *,
    window: tuple[int, ...] | None = None,
    n_val: int = 0,
) -> TrainingCost:
    """Return the expected cost of `fit`, measured by two steps on a copy of the module.

    Neither the victim nor torch's generators change.

    Args:
        victim: the victim on its device.
        batch: the training images.
        card: describes the data.
        recipe: states how to train.
        window: size of the windows of a segmenter.
        n_val: number of validation images.
    """
    device = device_of_module(victim.module)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        trial = replace(victim, module=copy.deepcopy(victim.module).train())
        task = task_of(trial, batch, card, recipe, window)
        rows = torch.arange(len(batch))[: recipe.batch]
        part = parts_of(rows, recipe.accumulate)[0]
        for _ in range(2):  # the first call is slow
            plain, kept = _step(task._replace(setup=None), part, device)
        seconds = plain if task.setup is None else _step(task, part, device)[0]
    validation = 0.0
    if is_monitored(recipe):
        passes = _FORWARD + (STEPS if task.setup is not None and task.setup.ball else 0)
        validation = n_val / len(part) * plain * passes
    weights = sum(p.numel() * p.element_size() for p in victim.module.parameters())
    copies = 4 + bool(recipe.ema) + bool(recipe.patience)  # with gradients and two of AdamW
    return TrainingCost(
        images=len(batch),
        epochs=recipe.epochs,
        steps=task.rounds,
        batch=len(rows),
        parts=len(parts_of(rows, recipe.accumulate)),
        epoch_seconds=seconds * len(batch) / len(part) + validation,
        # a defense keeps the values of clean and attacked images
        bytes=copies * weights + kept * (1 if task.setup is None else 2),
        free=_free(device),
        device=str(device),
    )


def _step(task: Task, part: Tensor, device: torch.device) -> tuple[float, int]:
    """Return the time of a step in seconds, and the bytes that autograd keeps during it."""
    pattern = None
    if task.setup is not None and task.setup.fitting is not None:
        pattern = torch.zeros_like(task.batch.x[part[:1]][0])
    with _kept(task.victim.module) as kept:
        start = _now(device)
        batch_loss(task, part, pattern).backward()
        return _now(device) - start, sum(kept.values())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _kept(module: nn.Module) -> Iterator[dict[int, int]]:
    """Yield the bytes that autograd keeps for the backward pass, by storage; without weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _free(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
