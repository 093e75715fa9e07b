"""Stored images: they stay in their stored type, and become float32 in [0,1] where rows are read.

A case may have any number of images. Only the rows of one shard or one batch are ever held as
float32 on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.cards import NativeRange
from robustbench_med.memory import limit_memory
from robustbench_med.types import AnyImages, Images, Rows

_BESIDE = 1 / 64  # steps; float32 puts a value of 16 bits up to 1/128 beside its step
SHARD_BYTES = 32 * 2**20  # of float32 images; JSMA and DeepFool use thirty times as much more


@dataclass(frozen=True)
class StoredImages:
    """Images of a split in their stored type, read by rows like a tensor `(n, c, *s)`.

    Attributes:
        stored: `(m, *s)` or `(m, *s, c)`, uint8 grey levels or colours 0..255, or float32 in [0,1];
            with `native`, integers or floats in its unit.
        rows: `(n,)` which of the stored images these are.
        channels: number of channels of an image.
        device: where read rows go.
        native: the stored values behind 0 and 1, where the images are stored in their own unit.
    """

    stored: NDArray[Any]
    rows: NDArray[np.int64]
    channels: int = 1
    device: torch.device = torch.device("cpu")
    native: NativeRange | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images as a tensor, `(n, c, *s)`."""
        size = self.stored.shape[1:] if self.channels == 1 else self.stored.shape[1:-1]
        return len(self), self.channels, *size

    def __getitem__(self, rows: Rows | slice | int) -> Images:
        """Return some images, float32 in [0,1] on the device; for an integer a single one."""
        if isinstance(rows, int):
            return self[rows : rows + 1][0]
        limit_memory()
        picked = self.rows[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        stored = self.stored[picked]
        if self.native is None:
            return as_floats(stored, self.channels).to(self.device)
        x = torch.from_numpy(stored).to(self.device)  # moved in the stored type, which is smaller
        return _channels_first(to_image_units(x, self.native), self.channels)

    def split(self, size: int) -> Iterator[Images]:
        """Yield all images, `size` at a time; one empty batch if there are none."""
        for start in range(0, max(len(self), 1), size):
            yield self[start : start + size]

    def select(self, rows: Int[Tensor, " b"] | NDArray[np.int64]) -> StoredImages:
        """Return some of the images, which are not read yet."""
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        return replace(self, rows=self.rows[index])

    def to(self, device: torch.device) -> StoredImages:
        """Return the images so that read rows go to `device`."""
        return replace(self, device=device)


def as_floats(stored: NDArray[np.uint8] | NDArray[np.float32], channels: int) -> Images:
    """Return stored images as float32 in [0,1], channels first."""
    x = _channels_first(torch.from_numpy(stored), channels)
    # floats may leave [0,1] by a rounding error, see `check` in datasets/dataset.py
    return x.float().clamp(0, 1) if x.is_floating_point() else x.float().div_(255)


def _channels_first(x: Tensor, channels: int) -> Images:
    return x.unsqueeze(1) if channels == 1 else x.movedim(-1, 1).contiguous()


def to_image_units(stored: Tensor, native: NativeRange) -> Float[Tensor, "..."]:
    """Return stored values as float32 in [0,1]; a new tensor.

    The value `low + k * step` becomes k / levels, the same float32 as rounding an attacked image to
    stored values gives, on every device.

    >>> hu = NativeRange(unit="HU", low=-1024, high=3071)
    >>> to_image_units(torch.tensor([-1024, 3071], dtype=torch.int16), hu)
    tensor([0., 1.])
    """
    steps = stored.to(torch.float32, copy=True).sub_(native.low)
    if native.step != 1:
        steps.div_(steps.new_tensor(native.step))
    if stored.is_floating_point():  # a float may lie beside a whole step by a rounding error
        whole = steps.round()
        steps = torch.where((steps - whole).abs() < _BESIDE, whole, steps)
    # by a tensor: by a number, CUDA would multiply with the reciprocal
    return steps.div_(steps.new_tensor(native.levels)).clamp_(0, 1)


def to_stored(x: Images, native: NativeRange) -> Float[Tensor, "..."]:
    """Return the nearest stored values `low + k * step` of images in [0,1], as float64.

    >>> hu = NativeRange(unit="HU", low=-1024, high=3071)
    >>> to_stored(torch.tensor([[0.25001]]), hu)
    tensor([[0.]], dtype=torch.float64)
    """
    return (x * native.levels).round().double() * native.step + native.low


def shards(rows: Rows, shape: tuple[int, ...]) -> tuple[Rows, ...]:
    """Return rows in pieces whose images fit `SHARD_BYTES`; one empty piece if there are none.

    Args:
        rows: indices.
        shape: `(n, c, *s)` of the images.
    """
    pieces: tuple[Rows, ...] = rows.split(images_of_shard(shape[1:]))
    return pieces


def images_of_shard(shape: tuple[int, ...]) -> int:
    """Return how many images of a shape `(c, *s)` fit `SHARD_BYTES`, and at least 1."""
    return max(1, SHARD_BYTES // (4 * math.prod(shape)))


def select_images(x: AnyImages, rows: Int[Tensor, " b"] | NDArray[np.int64]) -> AnyImages:
    """Return some images: of a tensor a copy, of `StoredImages` the same that are not read yet."""
    chosen: AnyImages = x.select(rows) if isinstance(x, StoredImages) else x[rows]
    return chosen
