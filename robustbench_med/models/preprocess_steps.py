"""Steps: differentiable operations on images `(b, c, *s)`, which a preprocess is a chain of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.types import Images


@dataclass(frozen=True)
class Affine:
    """`x * factor + offset`, one number or one per channel."""

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, x: Images) -> Images:
        """Return scaled images."""
        return x * _per_channel(self.factor, x) + _per_channel(self.offset, x)


@dataclass(frozen=True)
class Window:
    """`x * factor + offset`, limited to [0,1]; several windows make channels of one channel."""

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, x: Images) -> Float[Tensor, "b n *s"]:
        """Return what the windows show, in [0,1]."""
        return (x * _per_channel(self.factor, x) + _per_channel(self.offset, x)).clamp(0, 1)


@dataclass(frozen=True)
class Clip:
    """Limit values to an interval."""

    low: float
    high: float

    def __call__(self, x: Images) -> Images:
        """Return limited images."""
        return x.clamp(self.low, self.high)


@dataclass(frozen=True)
class Resize:
    """Resize every axis linearly, as one product with a matrix each.

    Products have the same gradient in every run, which torch's interpolation on CUDA has not.
    """

    size: tuple[int, ...]
    antialias: bool

    def __call__(self, x: Images) -> Float[Tensor, "b c *t"]:
        """Return resized images."""
        for axis, side in enumerate(self.size, start=2):
            if x.shape[axis] != side:
                matrix = _matrix(x.shape[axis], side, self.antialias, x.dtype, x.device)
                x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return x.contiguous()


@dataclass(frozen=True)
class ResizeShorter:
    """Resize every axis so that the shortest has a given length; the shape of an image stays."""

    side: int
    antialias: bool

    def __call__(self, x: Images) -> Float[Tensor, "b c *t"]:
        """Return resized images."""
        return Resize(shorter_side(tuple(x.shape[2:]), self.side), self.antialias)(x)


def shorter_side(size: tuple[int, ...], side: int) -> tuple[int, ...]:
    """Return the size whose shortest axis has a given length, in the shape of another.

    >>> shorter_side((240, 320), 120)
    (120, 160)
    """
    return tuple(max(1, round(length * side / min(size))) for length in size)


@dataclass(frozen=True)
class Crop:
    """Cut out the centre."""

    size: tuple[int, ...]

    def __call__(self, x: Images) -> Float[Tensor, "b c *t"]:
        """Return the centre."""
        for axis, side in enumerate(self.size, start=2):
            x = x.narrow(axis, round((x.shape[axis] - side) / 2), side)
        return x


@dataclass(frozen=True)
class Stack:
    """Repeat one channel."""

    channels: int

    def __call__(self, x: Images) -> Float[Tensor, "b n *s"]:
        """Return images of several equal channels."""
        return x.expand(-1, self.channels, *x.shape[2:])


def _per_channel(values: tuple[float, ...], x: Images) -> Tensor | float:
    if len(values) == 1:
        return values[0]
    return x.new_tensor(values).view(1, -1, *[1] * (x.ndim - 2))


@cache
def _matrix(
    old: int, new: int, antialias: bool, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "new old"]:
    """Return the matrix that resizes an axis linearly.

    Pixels are areas: pixel i covers [i, i + 1]. With `antialias` a smaller image averages over all
    pixels that one of its own covers, as PIL does.
    """
    scale = old / new
    support = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old)[None] + 0.5 - centres) / support)
    weights /= weights.sum(1, keepdims=True)
    with torch.inference_mode(False):  # a tensor made in that mode could not be differentiated
        return torch.from_numpy(weights).to(device, dtype)
