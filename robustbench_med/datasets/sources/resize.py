"""Bring decoded images and masks to one size: images bilinearly, masks to the nearest pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, ...]


def resize(values: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return an image `(h, w)` or `(h, w, c)` of another size, in its type.

    Bilinear with antialiasing, as torchvision's `Resize` of pictures; integers are rounded.

    >>> resize(np.array([[0, 0, 10, 10]], np.uint8), (1, 2)).tolist()
    [[1, 9]]
    """
    if values.shape[: len(size)] == size:
        return values
    if values.ndim == 3:
        planes = [resize(values[..., plane], size) for plane in range(values.shape[-1])]
        return np.stack(planes, -1)
    height, width = size
    if values.dtype == np.uint8:
        return np.asarray(
            Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
        )
    plane = Image.fromarray(values.astype(np.float32))
    resized = np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR))
    if values.dtype.kind != "f":
        limits = np.iinfo(values.dtype)
        resized = np.clip(np.rint(resized), limits.min, limits.max)
    converted: NDArray[Any] = resized.astype(values.dtype)
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
