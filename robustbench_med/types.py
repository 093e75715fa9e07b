"""The words of the bench that are plain data: Batch, Output, Verdict; tensor shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from robustbench_med.datasets.dataset import Arrays

Images = Float[Tensor, "b c *s"]
Truth = Int[Tensor, "b *k"]
PerSample = Float[Tensor, " b"]
Rows = Int[Tensor, " rows"]
Channels = tuple[int, ...] | None


class Output(NamedTuple):
    """What a victim answers: logits `(b, k)`, and a suspicion `(b,)` where a detector guards it."""

    logits: Float[Tensor, "b k"]
    suspicion: Float[Tensor, " b"] | None = None


class Verdict(NamedTuple):
    """What the attacker has reached, per sample."""

    loss: Float[Tensor, " b"]  # to climb
    harm: Float[Tensor, " b"]  # how far the goal is reached; the candidate with the most is kept
    done: Bool[Tensor, " b"]  # nothing more to gain


@dataclass(frozen=True)
class Batch:
    """Images in [0,1] with their truth.

    Attributes:
        x: `(b, c, *s)` float32 in [0,1].
        y: `(b,)` int64 class ids or `(b, k)` int64 0/1 findings; -1 = unlabelled.
        ids: `(b,)` sample ids.
        patients: `(b,)` patient ids, or None where images are treated as independent.
    """

    x: Images
    y: Truth
    ids: NDArray[np.character]
    patients: NDArray[np.character] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


def to_batch(arrays: Arrays) -> Batch:
    """Return stored images as float32 in [0,1], channels first."""
    x = torch.from_numpy(arrays.images)
    x = x.float() if x.is_floating_point() else x.float().div_(255)
    x = x.unsqueeze(1) if x.ndim == 3 else x.movedim(-1, 1).contiguous()
    return Batch(x, torch.from_numpy(arrays.labels), arrays.ids, arrays.patients)
