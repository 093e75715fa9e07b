"""The arrays of `.npz` files with MedMNIST keys: images, labels, masks, names.

A file holds `{train,val,test}_images` and `*_labels` or `*_masks` (class ids a pixel, 255 =
ignored), and may hold `*_fov` (a field of view: masks are ignored where it is 0), `*_ids`,
`*_patients` and `info` (JSON text: classes, licence, source, and of masks `regions`, `spacing` in
mm, `channels`). A split that is not asked for is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.archive import MAX_BYTES, Header, Npz, damage, opened
from robustbench_med.datasets.dataset import IGNORED, UNLABELLED, Arrays, SplitName, mask_ids
from robustbench_med.errors import DataError

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MAX_CHANNELS = 16  # a longer last axis is a volume's third side
MIN_SIDE = 5  # of a volume: a shorter axis is colours or one-hot classes


def read(path: Path, split: SplitName, *, masks: bool = False, cap: int = MAX_BYTES) -> Arrays:
    """Return one split of a file; ids default to `test-000123`.

    Args:
        path: the file.
        split: train, val or test.
        masks: whether the truth is a mask, not a label.
        cap: bytes that one array may have.

    Raises:
        DataError: a missing key, a damaged file, or arrays of a kind that is no image, label or id.
    """
    with opened(path, cap=cap) as file:
        n = image_header(file, split).shape[0]
        labels = read_masks(file, split) if masks else read_labels(file, split)
        ids = _names(file, f"{split}_ids", n)
        patients = _names(file, f"{split}_patients", n)
        images = _images(file, split)
    if ids is None:
        ids = np.array([f"{split}-{row:06d}" for row in range(n)], dtype=np.str_)
    if len(labels) != n:
        key = f"{split}_{'masks' if masks else 'labels'}"
        raise DataError(f"{path}: {key}: expected {n} rows, one an image, got {len(labels)}")
    return Arrays(images, labels, ids, patients)


def image_header(file: Npz, split: SplitName) -> Header:
    """Return shape and dtype of a split's images.

    Raises:
        DataError: they are no uint8 or float images of two or three axes.
    """
    key = f"{split}_images"
    header = file.header(key)
    where, shape, dtype = f"{file.path}: {key}", header.shape, header.dtype
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(
            f"{where}: expected uint8 or float in [0,1], got {dtype}; rescale to [0,1] by the "
            "range of the whole set, not of each image"
        )
    if len(shape) not in (3, 4, 5) or min(shape[1:]) < 1:
        raise DataError(
            f"{where}: expected shape (n, h, w), (n, d, h, w) or either with channels last, "
            f"got {shape}"
        )
    return header


def axes_of(file: Npz, split: SplitName) -> tuple[tuple[int, ...], int]:
    """Return the size of a split's images and their number of channels.

    The masks tell which axes are pixels; without masks, a fourth axis of at most 16 is channels.

    Raises:
        DataError: as `image_header`, channels first or more than 16, or masks that are colours or
            one-hot.
    """
    shape = image_header(file, split).shape[1:]
    key = f"{split}_masks"
    if key in file.keys:
        colour = len(shape) > len(_pixels(file, key)) - 1
        if not colour and len(shape) == 3 and shape[-1] < MIN_SIDE:
            raise DataError(
                f"{file.path}: {key}: expected class ids of shape (n, h, w), got "
                f"{file.header(key).shape} for images of shape {shape}; save one id a pixel, "
                "neither one-hot nor colours"
            )
    else:
        colour = len(shape) == 4 or (len(shape) == 3 and shape[2] <= MAX_CHANNELS)
        if not colour and len(shape) == 3 and shape[0] < MIN_SIDE:
            raise DataError(
                f"{file.path}: {split}_images: expected channels last, got {shape} for an image; "
                "move them with numpy.moveaxis(images, 1, -1)"
            )
    size, channels = (shape[:-1], shape[-1]) if colour else (shape, 1)
    if channels > MAX_CHANNELS or len(size) not in (2, 3):
        raise DataError(
            f"{file.path}: {split}_images: expected two or three axes and at most {MAX_CHANNELS} "
            f"channels, got {shape} for an image"
        )
    return size, channels


def read_labels(file: Npz, split: SplitName) -> NDArray[np.int64]:
    """Return a split's labels: `(n,)` class ids, or `(n, k)` findings where k > 1.

    Raises:
        DataError: they are no integers, or have more than two axes.
    """
    key = f"{split}_labels"
    shape, dtype = file.header(key)
    if not np.can_cast(dtype, np.int64):
        raise DataError(
            f"{file.path}: {key}: expected integers or bool, got {dtype}; save them as int64"
        )
    if len(shape) not in (1, 2) or 0 in shape[1:]:
        raise DataError(
            f"{file.path}: {key}: expected shape (n,), (n, 1) or (n, findings), got {shape}"
        )
    labels = file.array(key).astype(np.int64)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def read_masks(file: Npz, split: SplitName) -> NDArray[np.int16]:
    """Return a split's masks `(n, *s)`: class ids, 255 or -1 = ignored, as outside the `*_fov`.

    Raises:
        DataError: they are no integers, hold 0 and 255 alone, or a field of view of another shape.
    """
    key, fov = f"{split}_masks", f"{split}_fov"
    dtype, shape = file.header(key).dtype, _pixels(file, key)
    if not np.can_cast(dtype, np.int64):
        raise DataError(
            f"{file.path}: {key}: expected class ids as integers, got {dtype}; save them as uint8"
        )
    if len(shape) not in (3, 4):
        raise DataError(
            f"{file.path}: {key}: expected shape (n, h, w) or (n, d, h, w), got {shape}"
        )
    stored = file.array(key).reshape(shape)
    masks = mask_ids(stored)
    if (stored == IGNORED).any() and not (masks > 0).any():
        raise DataError(
            f"{file.path}: {key}: expected class ids, got only 0 and 255 in the masks: "
            "255 = ignored; save the lesion as 1"
        )
    if fov in file.keys:
        seen = _pixels(file, fov)
        if seen != shape:
            raise DataError(
                f"{file.path}: {fov}: expected the shape of the masks {shape}, got {seen}"
            )
        masks[file.array(fov).reshape(shape) == 0] = UNLABELLED
    return masks


def _pixels(file: Npz, key: str) -> tuple[int, ...]:
    """Return the shape of masks without a last axis of one entry, as of one channel."""
    shape = file.header(key).shape
    return shape[:-1] if len(shape) in (4, 5) and shape[-1] == 1 else shape


def _images(file: Npz, split: SplitName) -> NDArray[np.uint8] | NDArray[np.float32]:
    images = file.array(f"{split}_images")
    if images.ndim > 1 + len(axes_of(file, split)[0]) and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    with np.errstate(over="ignore"):  # what does not fit becomes Inf, which the data contract names
        return np.ascontiguousarray(images, dtype=np.float32)


def _names(file: Npz, key: str, n: int) -> NDArray[Any] | None:  # of text
    if key not in file.keys:
        return None
    shape, dtype = file.header(key)
    if dtype.kind not in "USiu" or shape not in ((n,), (n, 1)):
        raise DataError(
            f"{file.path}: {key}: expected {n} names (text or integers), "
            f"got {dtype} of shape {shape}"
        )
    with damage(file.path, key):
        return file.array(key).reshape(n).astype(np.str_)
