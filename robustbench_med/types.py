"""The words of the bench that are plain data: Batch, Output, Verdict; tensor shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

Images = Float[Tensor, "b c *s"]
Logits = Float[Tensor, "b k *places"]  # none of labels and findings, those of x of masks
Truth = Int[Tensor, "b *k"]
PerSample = Float[Tensor, " b"]
Rows = Int[Tensor, " rows"]
Channels = tuple[int, ...] | None


MOST_PIXELS = 2**20  # of the images forwarded at a time: what a small network holds in 2 GiB


def images_at_once(size: tuple[int, ...]) -> int:
    """Return how many images of a size are forwarded at a time, 64 at most.

    >>> images_at_once((48, 64, 48))
    7
    """
    return max(1, min(64, MOST_PIXELS // math.prod(size)))


class Output(NamedTuple):
    """What a victim answers.

    Logits `(b, k)`, of masks `(b, k, *s)`; a suspicion `(b,)` where a detector guards it.
    """

    logits: Logits
    suspicion: Float[Tensor, " b"] | None = None


class Verdict(NamedTuple):
    """What the attacker has reached, per sample."""

    loss: Float[Tensor, " b"]  # to climb
    harm: Float[Tensor, " b"]  # how far the goal is reached; the candidate with the most is kept
    is_final: Bool[Tensor, " b"]  # nothing more to gain

    @property
    def success(self) -> Bool[Tensor, " b"]:
        """Whether the goal is reached. A mask goes on after that, until `is_final`."""
        return self.is_final | (self.harm > 0)


if TYPE_CHECKING:
    _X = Images
    _Y = Truth
    _Ids = NDArray[np.character]
else:  # what a person hands in is checked by batches.checked, whose message says more than a type
    _X = _Y = _Ids = Any


@dataclass(frozen=True)
class Batch:
    """Images in [0,1] with their truth.

    Attributes:
        x: `(b, c, *s)` float32 in [0,1].
        y: `(b,)` int64 class ids, `(b, k)` int64 0/1 findings or `(b, *s)` int64 masks of class
            ids; -1 = unlabelled.
        ids: `(b,)` sample ids.
        patients: `(b,)` patient ids, or None where images are treated as independent.
    """

    x: _X
    y: _Y
    ids: _Ids
    patients: _Ids | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))
