"""Bring decoded images and masks to one size: images bilinearly, masks to the nearest pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, ...]


def resize(values: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return an image `(h, w[, c])` or `(d, h, w[, c])` of another size, in its type.

    Bilinear with antialiasing, as torchvision's `Resize` of pictures, in the last two axes, and
    linear along the first of a volume; integers are rounded.

    >>> resize(np.array([[0, 0, 10, 10]], np.uint8), (1, 2)).tolist()
    [[1, 9]]
    """
    if values.shape[: len(size)] == size:
        return values
    if values.ndim > len(size):
        planes = [resize(values[..., plane], size) for plane in range(values.shape[-1])]
        return np.stack(planes, -1)
    if len(size) == 2:
        return _plane(values, size)
    floats = values.astype(np.float32)
    slices = [_plane(plane, size[1:]) for plane in floats]
    return _of_type(_along_first(np.stack(slices), size[0]), values.dtype)


def _plane(values: NDArray[Any], size: Size) -> NDArray[Any]:
    height, width = size
    stored = values if values.dtype == np.uint8 else values.astype(np.float32)
    picture = Image.fromarray(stored).resize((width, height), Image.Resampling.BILINEAR)
    return _of_type(np.asarray(picture), values.dtype)


def _along_first(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Interpolate linearly between slices whose centres are spread evenly."""
    old = len(values)
    places = np.clip((np.arange(count) + 0.5) * old / count - 0.5, 0, old - 1)
    below = places.astype(np.int64)
    above = np.minimum(below + 1, old - 1)
    part = (places - below).astype(np.float32)[:, None, None]
    between: NDArray[np.float32] = values[below] * (1 - part) + values[above] * part
    return between


def _of_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind != "f" and values.dtype != dtype:
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    converted: NDArray[Any] = values.astype(dtype)
    return converted


def resize_mask(ids: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return a mask of another size; each pixel has the id of the nearest one, ids never mix.

    >>> resize_mask(np.array([[0, 0, 7, 7]]), (2, 2)).tolist()
    [[0, 7], [0, 7]]
    """
    for axis, (old, new) in enumerate(zip(ids.shape, size, strict=True)):
        if old != new:
            centres = (np.arange(new) + 0.5) * old / new
            ids = ids.take(np.minimum(centres.astype(np.int64), old - 1), axis)
    return ids
