"""Read stored masks: one class id per pixel or one-hot planes, with codes for ignored pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.codes import IGNORED, UNLABELLED
from robustbench_med.datasets.labels import one_hot, small_integers
from robustbench_med.errors import DataError

Size = tuple[int, ...]


def mask_ids(masks: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Return masks as class ids; -1 where a pixel is ignored, which is stored as 255 or as -1."""
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    # values out of range stay out of range
    ids: NDArray[np.int16] = np.clip(masks, low, high).astype(np.int16)
    ids[ids == IGNORED] = UNLABELLED
    return ids


def check_ignored(masks: NDArray[np.integer[Any]], where: str) -> None:
    """Refuse masks that seem to store a lesion as 255, which means "ignored".

    If some mask of the split holds 255 beside a class, 255 is a border or lies outside a field of
    view. If none does, masks of 0 and 255 alone are ambiguous.

    Args:
        masks: `(n, *s)` class ids as stored.
        where: file and key, for the error message.

    Raises:
        DataError: some masks hold 0 and 255 alone, and none holds 255 beside a class.
    """
    if not (masks == IGNORED).any():
        return
    rows = masks.reshape(len(masks), -1)
    ignored, classes = (rows == IGNORED).any(1), ((rows > 0) & (rows != IGNORED)).any(1)
    alone = ignored & ~classes & (rows == 0).any(1)
    if alone.any() and not (ignored & classes).any():
        count = "the masks" if alone.all() else f"{int(alone.sum())} of {len(rows)} masks"
        raise DataError(
            f"{where}: expected class ids, got only 0 and 255 in {count}: "
            "255 means ignored; save the lesion as 1 and ignored pixels as -1"
        )


def check_background(masks: NDArray[np.integer[Any]], where: str) -> None:
    """Refuse masks without any background pixel.

    Raises:
        DataError: class 0 does not occur, and another class does.
    """
    if masks.size and not (masks == 0).any() and (masks > 0).any():
        listed = ", ".join(map(str, np.unique(masks[masks != UNLABELLED])[:8]))
        raise DataError(
            f"{where}: expected masks whose background is 0, got {listed} without 0; count the "
            "classes from 0"
        )


def of_planes(
    values: NDArray[Any], size: Size, where: str, images: tuple[int, ...]
) -> tuple[NDArray[np.integer[Any]], str | None]:
    """Return masks `(n, *size)` of class ids, and a note if they were stored in another form.

    Args:
        values: `(n, *size)` class ids; a further axis may have length one or hold one-hot planes.
        size: size of an image.
        where: file and key, for error messages.
        images: shape of a stored image, for error messages.

    Raises:
        DataError: the values are no numbers, have another shape, or are planes that are not
            one-hot.
    """
    ids = small_integers(values, where)
    note = None if values.dtype.kind != "f" else f"{where}: whole {values.dtype} as class ids"
    shape = values.shape[1:]
    if shape == size:
        return ids, note
    for axis in (ids.ndim - 1, 1):
        sides = shape[:-1] if axis == ids.ndim - 1 else shape[1:]
        if sides != size:
            continue
        if ids.shape[axis] == 1:
            return ids.squeeze(axis), note
        if one_hot(ids, axis):
            found = ids.argmax(axis)
            return found, f"{where}: {ids.shape[axis]} one-hot planes read as class ids"
    expected_shape = "(n, h, w)" if len(size) == 2 else "(n, d, h, w)"
    raise DataError(
        f"{where}: expected class ids of shape {expected_shape}, got {values.shape} for images of "
        f"shape {images}; save one id per pixel, and not colours or planes that overlap or leave "
        "pixels out (one-hot planes must sum to 1 at every pixel)"
    )
