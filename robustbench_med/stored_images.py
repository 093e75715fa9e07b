"""Stored images: they stay in their stored type, and become float32 in [0,1] where rows are read.

A case may have any number of images. Only the rows of one shard or one batch are ever held as
float32 on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.cards import NativeRange
from robustbench_med.memory import limit_memory
from robustbench_med.sized_images import SizedImages, corner, runs
from robustbench_med.types import AnyImages, Images, Rows

if TYPE_CHECKING:
    _Stored = NDArray[Any] | SizedImages
else:  # images in a file are read by rows as an array is
    _Stored = Any

_BESIDE = 1 / 64  # steps; float32 puts a value of 16 bits up to 1/128 beside its step
SHARD_BYTES = 32 * 2**20  # of float32 images; JSMA and DeepFool use thirty times as much more


@dataclass(frozen=True)
class StoredImages:
    """Images of a split in their stored type, read by rows like a tensor `(n, c, *s)`.

    Images that keep their own sizes are read by rows of one size (`by_size`).

    Attributes:
        stored: `(m, *s)` or `(m, *s, c)`, uint8 grey levels or colours 0..255, or float32 in [0,1];
            with `native`, integers or floats in its unit. `SizedImages` where sizes differ.
        rows: `(n,)` which of the stored images these are.
        channels: number of channels of an image.
        device: where read rows go.
        native: the stored values behind 0 and 1, where the images are stored in their own unit.
    """

    stored: _Stored
    rows: NDArray[np.int64]
    channels: int = 1
    device: torch.device = torch.device("cpu")
    native: NativeRange | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images as a tensor, `(n, c, *s)`; where sizes differ, of the largest."""
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

    @property
    def part(self) -> NDArray[np.int64]:
        """`(n,)` numbers that tell images of different sizes apart."""
        if isinstance(self.stored, SizedImages):
            return self.stored.part[self.rows]
        return np.zeros(len(self), np.int64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """`(n, axes)` the size of each image in pixels."""
        axes = len(self.shape) - 2
        parts = self.stored.parts if isinstance(self.stored, SizedImages) else (self.stored,)
        each = np.array([part.shape[1 : 1 + axes] for part in parts], np.int64)
        return each[self.part]

    def split(self, size: int) -> Iterator[Images]:
        """Yield all images, at most `size` of one size at a time; one empty batch if none."""
        for run in runs(self.part):
            for start in range(run.start, max(run.stop, run.start + 1), size):
                yield self[start : min(start + size, run.stop)]

    def select(self, rows: Int[Tensor, " b"] | NDArray[np.int64]) -> StoredImages:
        """Return some of the images, which are not read yet."""
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        chosen = self.rows[index]
        if isinstance(self.stored, SizedImages) and len(np.unique(self.stored.part[chosen])) < 2:
            which = int(self.stored.part[chosen[0]]) if len(chosen) else 0
            return replace(self, stored=self.stored.parts[which], rows=self.stored.place[chosen])
        return replace(self, rows=chosen)

    def to(self, device: torch.device) -> StoredImages:
        """Return the images so that read rows go to `device`."""
        return replace(self, device=device)


def as_floats(stored: NDArray[np.uint8] | NDArray[np.float32], channels: int) -> Images:
    """Return stored images as float32 in [0,1], channels first."""
    x = _channels_first(torch.from_numpy(stored), channels)
    # floats may leave [0,1] by a rounding error, see `check` in datasets/dataset.py
    return x.float().clamp(0, 1) if x.is_floating_point() else x.float().div_(255)


def _channels_first(x: Tensor, channels: int) -> Tensor:
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


def in_order(parts: Sequence[Tensor], rows: Sequence[Tensor], *, dim: int = 0) -> Tensor:
    """Return arrays of images as one, in the order of their rows; see `joined`.

    Args:
        parts: arrays, one for each of `rows`.
        rows: the positions that the images of each array get.
        dim: the axis of the images.
    """
    whole, places = joined(parts, dim=dim), torch.cat(tuple(rows))
    if bool((places.diff() == 1).all()):
        return whole
    return whole.index_select(dim, places.argsort().to(whole.device))


def shards(rows: Rows, x: AnyImages, size: int | None = None) -> list[Tensor]:
    """Return the positions of rows in pieces, each of images of one size; one empty piece if none.

    Args:
        rows: indices of images.
        x: the images.
        size: largest number of images of a piece; None = as many as fit `SHARD_BYTES`.
    """
    return [
        piece
        for positions, shape in by_size(rows, x)
        for piece in positions.split(size or images_of_shard((x.shape[1], *shape)))
    ]


def by_size(rows: Rows, x: AnyImages) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Return the positions of the rows of each size, and that size `(*s,)`, the largest first.

    Args:
        rows: indices of images.
        x: the images.
    """
    positions = torch.arange(len(rows), device=rows.device)
    if not isinstance(x, StoredImages) or not isinstance(x.stored, SizedImages) or not len(rows):
        return [(positions, tuple(x.shape[2:]))]
    part = x.part[rows.cpu().numpy()]
    axes = len(x.shape) - 2
    return [
        (
            positions[torch.from_numpy(part == which).to(rows.device)],
            tuple(x.stored.parts[which].shape[1 : 1 + axes]),
        )
        for which in np.unique(part).tolist()
    ]


def largest(x: AnyImages, count: int) -> Rows:
    """Return the positions of at most `count` images, the first ones of the largest size."""
    return by_size(torch.arange(len(x), device=x.device), x)[0][0][:count]


def sizes_differ(x: AnyImages) -> bool:
    """Whether images keep their own sizes."""
    return isinstance(x, StoredImages) and isinstance(x.stored, SizedImages)


def cropped(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return masks `(b, *s)` or an image `(c, *s)` without what was added to smaller ones."""
    if tuple(masks.shape[1:]) == size:
        return masks
    return masks[(slice(None), *corner(size))]


def joined(parts: Sequence[Tensor], size: tuple[int, ...] | None = None, *, dim: int = 0) -> Tensor:
    """Return arrays of images as one; images of a smaller size are filled up with 0 at their ends.

    Args:
        parts: equal in all axes but `dim` and, where images keep their own sizes, their last.
        size: the last axes of the result; None = the largest of each.
        dim: the axis along which they are put together.
    """
    shapes = {tuple(part.shape[dim + 1 :]) for part in parts}
    if len(shapes) == 1 and (size is None or next(iter(shapes))[-len(size) :] == size):
        return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)
    least = tuple(map(max, zip(*shapes, strict=True)))
    whole = least if size is None else (*least[: len(least) - len(size)], *size)
    count = sum(part.shape[dim] for part in parts)
    out = parts[0].new_zeros((*parts[0].shape[:dim], count, *whole))
    start = 0
    for part in parts:
        inside = (slice(None),) * dim + (slice(start, start + part.shape[dim]),)
        out[inside + corner(part.shape[dim + 1 :])] = part
        start += part.shape[dim]
    return out


def images_of_shard(shape: tuple[int, ...]) -> int:
    """Return how many images of a shape `(c, *s)` fit `SHARD_BYTES`, and at least 1."""
    return max(1, SHARD_BYTES // (4 * math.prod(shape)))


def select_images(x: AnyImages, rows: Int[Tensor, " b"] | NDArray[np.int64]) -> AnyImages:
    """Return some images: of a tensor a copy, of `StoredImages` the same that are not read yet."""
    chosen: AnyImages = x.select(rows) if isinstance(x, StoredImages) else x[rows]
    return chosen
