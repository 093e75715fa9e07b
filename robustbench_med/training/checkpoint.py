"""Checkpoints: the full state of a training, from which it continues to the same weights."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustbench_med.devices import device_of_module
from robustbench_med.errors import CheckpointError

_KEY = "training"  # key of the JSON in the file's metadata


class Saved(NamedTuple):
    """Path of a checkpoint, and the hash of card, recipe and data that it belongs to."""

    path: Path
    fingerprint: str


@dataclass
class State:
    """A training between two epochs.

    Attributes:
        module: the module in training.
        optimizer, schedule: optimizer of the module and schedule of its learning rate.
        ema: moving average of the module; None = off.
        pattern: last universal perturbation, if any.
        best: weights with the best validation score so far, if the recipe has a patience.
        score: their score.
        stale: epochs since then.
        epoch: number of completed epochs.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    ema: AveragedModel | None = None
    pattern: Tensor | None = None
    best: dict[str, Tensor] | None = None
    score: float = -1.0
    stale: int = 0
    epoch: int = 0


def write(saved: Saved, state: State) -> None:
    """Write the state and torch's generator to one file, in one step.

    The file is a safetensors file with tensors under prefixed names and the rest as JSON in its
    header.
    """
    tensors = {f"module.{key}": value for key, value in state.module.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{key}": value for key, value in state.ema.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in (state.best or {}).items()}
    if state.pattern is not None:
        tensors["pattern"] = state.pattern
    optimizer = state.optimizer.state_dict()
    for i, values in optimizer["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in values.items()}
    tensors["rng"] = torch.get_rng_state()
    device = device_of_module(state.module)
    if device.type == "cuda":  # dropout and attacks draw there
        tensors["rng_cuda"] = torch.cuda.get_rng_state(device)
    metadata = {
        "fingerprint": saved.fingerprint,
        "epoch": state.epoch,
        "score": state.score,
        "stale": state.stale,
        "groups": optimizer["param_groups"],
        "schedule": state.schedule.state_dict(),
    }
    temporary = saved.path.with_name(f".{saved.path.name}.{os.getpid()}.tmp")
    try:
        copies = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
        save_file(copies, temporary, metadata={_KEY: json.dumps(metadata)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(saved.path)
    finally:
        temporary.unlink(missing_ok=True)


def restore(saved: Saved, state: State) -> bool:
    """Restore a state and torch's generator from a checkpoint; return whether there is one.

    Raises:
        CheckpointError: the file is damaged, or belongs to another card, recipe or data.
    """
    if not saved.path.is_file():
        return False
    try:
        with safe_open(saved.path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        fingerprint = metadata["fingerprint"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"expected a readable checkpoint, got {saved.path} ({type(error).__name__}): remove it "
            "to train from the start"
        ) from None
    if fingerprint != saved.fingerprint:
        raise CheckpointError(
            f"expected a checkpoint of this card, recipe and data, got {saved.path} of another "
            "training: remove it, or write elsewhere with --out DIR"
        )
    _fill(state, tensors, metadata)
    torch.set_rng_state(tensors["rng"])
    device = device_of_module(state.module)
    if device.type == "cuda" and "rng_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng_cuda"], device)
    return True


def _fill(state: State, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    state.module.load_state_dict(_unprefixed("module.", tensors))
    if state.ema is not None:
        state.ema.load_state_dict(_unprefixed("ema.", tensors))
    state.best = _unprefixed("best.", tensors) or None
    state.pattern = tensors.get("pattern")
    slots: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    for key, value in _unprefixed("optimizer.", tensors).items():
        i, _, name = key.partition(".")
        parameter = parameters[int(i)]
        # keep the memory layout of the parameter: another layout may round sums differently
        restored = (
            torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        )
        slots.setdefault(int(i), {})[name] = restored.detach()
    state.optimizer.load_state_dict({"state": slots, "param_groups": metadata["groups"]})
    state.schedule.load_state_dict(metadata["schedule"])
    state.epoch, state.score, state.stale = metadata["epoch"], metadata["score"], metadata["stale"]


def _unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
