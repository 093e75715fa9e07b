"""Plain data of the bench: Batch, Output, Verdict, and the names of tensor shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

Images = Float[Tensor, "b c *s"]
Logits = Float[Tensor, "b k *places"]  # *places: empty for labels and findings; as x for masks
Truth = Int[Tensor, "b *k"]
PerSample = Float[Tensor, " b"]
Rows = Int[Tensor, " rows"]
Channels = tuple[int, ...] | None


MOST_PIXELS = 2**20  # pixels forwarded at a time; a small network then fits into 2 GiB


def images_at_once(size: tuple[int, ...]) -> int:
    """Return how many images of this size are forwarded at a time, at most 64.

    >>> images_at_once((48, 64, 48))
    7
    """
    return max(1, min(64, MOST_PIXELS // math.prod(size)))


class Output(NamedTuple):
    """What a victim returns for a batch of images.

    `logits` is `(b, k)`, for masks `(b, k, *s)`. `suspicion` is `(b,)` where a detector guards the
    victim: the image is rejected above 0.
    """

    logits: Logits
    suspicion: Float[Tensor, " b"] | None = None


def joined_outputs(outputs: Sequence[Output]) -> Output:
    """Return the outputs of the chunks of a batch as one."""
    if len(outputs) == 1:
        return outputs[0]
    suspicion = [output.suspicion for output in outputs if output.suspicion is not None]
    logits = torch.cat([output.logits for output in outputs])
    return Output(logits, torch.cat(suspicion) if suspicion else None)


class Verdict(NamedTuple):
    """How far the attacker has come, per sample."""

    loss: Float[Tensor, " b"]  # what the attack maximises
    harm: Float[Tensor, " b"]  # how far the goal is reached; attacks return the most harmful image
    is_final: Bool[Tensor, " b"]  # the attack cannot gain more and may stop

    @property
    def success(self) -> Bool[Tensor, " b"]:
        """Whether the goal is reached. A mask goes on after that, until `is_final`."""
        return self.is_final | (self.harm > 0)


if TYPE_CHECKING:
    AnyImages = Images  # or StoredImages, which become images where rows are selected
    _Y = Truth
    _Ids = NDArray[np.character]
else:  # batches.checked checks the data of users, with better messages than a type has
    AnyImages = _Y = _Ids = Any


@dataclass(frozen=True)
class Batch:
    """Images in [0,1] with their truth.

    Attributes:
        x: `(b, c, *s)` float32 in [0,1]; for all images of a case, the `StoredImages` that become
            such a tensor where rows are selected.
        y: `(b,)` int64 class ids, `(b, k)` int64 0/1 findings or `(b, *s)` int64 masks of class
            ids, beside `StoredImages` int16; -1 = unlabelled.
        ids: `(b,)` sample ids.
        patients: `(b,)` patient ids, or None where images are treated as independent.
    """

    x: AnyImages
    y: _Y
    ids: _Ids
    patients: _Ids | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))
