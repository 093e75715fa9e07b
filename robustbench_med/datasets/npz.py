"""Read images, labels, masks and names from `.npz` files with MedMNIST keys.

A file holds `{train,val,test}_images` and `*_labels` or `*_masks` (one class id per pixel, 255 =
ignored), and may hold `*_fov` (a field of view: masks are ignored where it is 0), `*_ids`,
`*_patients` (empty = unknown), `*_subgroup_NAME` (a column such as sex or age) and `info` (JSON
text, see info.py). Only the split that is needed is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.archive import MAX_BYTES, Header, Npz, damage, opened
from robustbench_med.datasets.codes import UNLABELLED
from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.info import EXAMPLE, bands, channel_count, native, read_info
from robustbench_med.datasets.labels import from_one_hot, integers
from robustbench_med.datasets.masks import check_ignored, mask_ids, of_planes
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.datasets.subgroups import named_groups
from robustbench_med.errors import DataError, MissingSplitError

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MAX_CHANNELS = 16  # a longer last axis is the third side of a volume
MIN_SIDE = 5  # shortest side of a volume; a shorter axis is colours or one-hot classes


def read(
    path: Path,
    split: SplitName,
    *,
    masks: bool = False,
    one_hot: bool = False,
    cap: int = MAX_BYTES,
) -> Arrays:
    """Return one split of a file; ids default to `test-000123`.

    Args:
        path: the file.
        split: train, val or test.
        masks: whether the truth is a mask and not a label.
        one_hot: whether labels of several columns are class labels, one-hot.
        cap: largest size of one array, in bytes.

    Raises:
        MissingSplitError: the file has no images of the split.
        DataError: a key is missing, the file is damaged, or an array is no image, label or id.
    """
    with opened(path, cap=cap) as file:
        if f"{split}_images" not in file.keys and any(
            f"{name}_images" in file.keys for name in SPLITS
        ):
            raise MissingSplitError(file.lacks(f"{split}_images"))
        n = image_header(file, split).shape[0]
        labels = read_masks(file, split)[0] if masks else read_labels(file, split)
        ids = _names(file, f"{split}_ids", n)
        patients = _patients(file, split, n)
        subgroups = _subgroups(file, split, n)
        images = _images(file, split, masks=masks)
    if one_hot and labels.ndim == 2:
        labels = from_one_hot(labels.astype(np.int64))
    if ids is None:
        ids = np.array([f"{split}-{row:06d}" for row in range(n)], dtype=np.str_)
    if len(labels) != n:
        key = f"{split}_{'masks' if masks else 'labels'}"
        raise DataError(f"{path}: {key}: expected {n} rows, one per image, got {len(labels)}")
    return Arrays(images, labels, ids, patients, subgroups)


def image_header(file: Npz, split: SplitName) -> Header:
    """Return shape and dtype of a split's images.

    Raises:
        DataError: the array is no images of two or three axes in uint8, floats, or the integers
            of a native range that `info` states.
    """
    key = f"{split}_images"
    header = file.header(key)
    where, shape, dtype = f"{file.path}: {key}", header.shape, header.dtype
    if dtype != np.uint8 and dtype.kind != "f" and not _is_native(file, dtype):
        raise DataError(
            f"{where}: expected uint8 or float in [0,1], got {dtype}; state what is stored in "
            f"info, {EXAMPLE}, or rescale to [0,1] by the range of all images (for 12 bits: "
            "images / 4095), and not by that of each image"
        )
    if len(shape) not in (3, 4, 5) or min(shape[1:]) < 1:
        raise DataError(
            f"{where}: expected shape (n, h, w), (n, d, h, w) or either with channels last, "
            f"got {shape}"
        )
    return header


def _is_native(file: Npz, dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" and native(file.path, read_info(file)) is not None


def axes_of(file: Npz, split: SplitName, *, masks: bool = False) -> tuple[tuple[int, ...], int]:
    """Return the size of a split's images and their number of channels.

    `channels` in `info` decides which axes are pixels, or else the shape of the masks. Without
    either, a last axis of at most 4 is channels, and one of 5 to 16 is ambiguous.

    Args:
        file: an open file.
        split: a split of the file.
        masks: whether the shape of the masks is used, if there are any.

    Raises:
        DataError: as `image_header`, or channels come first, there are more than 16, the masks
            have another shape, or a short last axis is ambiguous.
    """
    shape = image_header(file, split).shape[1:]
    where = f"{file.path}: {split}_images"
    stated = channel_count(file.path, read_info(file))
    if shape[0] == 1 and len(shape) > 2:  # one channel, first
        shape = shape[1:]
    if masks and stated is None and f"{split}_masks" in file.keys:
        return _as_masks(file, split, shape)
    size, channels = _as_stated(shape, stated, where)
    if stated is None and len(shape) == 3 and channels > 4:
        raise DataError(
            f"{where}: expected to know whether the last axis of {shape} is {channels} channels or "
            f'{channels} slices; say so in info: {{"channels": {channels}}} (or their names), or '
            '{"channels": 1} for a volume'
        )
    if channels > MAX_CHANNELS or len(size) not in (2, 3):
        raise DataError(
            f"{where}: expected two or three axes and at most {MAX_CHANNELS} channels, got {shape} "
            "for an image"
        )
    return size, channels


def _as_stated(
    shape: tuple[int, ...], stated: int | None, where: str
) -> tuple[tuple[int, ...], int]:
    """Return size and channels from the stated number of channels, or from the shape alone."""
    if stated == 1 and shape[-1] != 1:
        return shape, 1
    if stated is not None:
        if shape[-1] == stated and len(shape) > 2:
            return shape[:-1], stated
        if shape[0] == stated:
            raise _channels_first(shape, where)
        raise DataError(
            f"{where}: expected {stated} channels on the last axis as info states, got {shape} for "
            "an image"
        )
    colour = len(shape) == 4 or (len(shape) == 3 and shape[2] <= MAX_CHANNELS)
    if not colour and len(shape) == 3 and shape[0] < MIN_SIDE:
        raise _channels_first(shape, where)
    return (shape[:-1], shape[-1]) if colour else (shape, 1)


def _channels_first(shape: tuple[int, ...], where: str) -> DataError:
    return DataError(
        f"{where}: expected channels last, got {shape} for an image; "
        "move them with numpy.moveaxis(images, 1, -1)"
    )


def _as_masks(file: Npz, split: SplitName, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return size and channels from the shape of the masks, which may be one-hot planes."""
    key = f"{split}_masks"
    mask = file.header(key).shape[1:]
    readings = [(shape, 1), (shape[:-1], shape[-1])]
    readings = [
        reading for reading in readings if len(reading[0]) in (2, 3) and reading[1] <= MAX_CHANNELS
    ]
    for size, channels in readings:
        volume_of_colours = len(size) == 3 and channels == 1 and size[-1] < MIN_SIDE
        if not volume_of_colours and mask in (size, (*size, 1), (1, *size)):
            return size, channels
    for size, channels in readings:
        if size in (mask[:-1], mask[1:]) and len(mask) == len(size) + 1:
            return size, channels
    expected_shape = "(n, d, h, w)" if len(mask) == 3 and len(shape) > 3 else "(n, h, w)"
    raise DataError(
        f"{file.path}: {key}: expected class ids of shape {expected_shape}, got "
        f"{file.header(key).shape} for images of shape {shape}; save one id per pixel"
    )


def read_labels(file: Npz, split: SplitName) -> NDArray[np.int64]:
    """Return a split's labels: `(n,)` class ids, or `(n, k)` findings or one-hot where k > 1.

    -1 = unlabelled; it is stored as -1 or as torch's -100.

    Raises:
        DataError: the labels are no whole numbers, or have more than two axes.
    """
    key = f"{split}_labels"
    where, shape = f"{file.path}: {key}", file.header(key).shape
    if len(shape) not in (1, 2) or 0 in shape[1:]:
        raise DataError(f"{where}: expected shape (n,), (n, 1) or (n, findings), got {shape}")
    labels = integers(file.array(key), where)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def read_masks(file: Npz, split: SplitName) -> tuple[NDArray[np.int16], str | None]:
    """Return a split's masks `(n, *s)` of class ids, and a note if they were one-hot planes.

    Pixels of 255 or -1, and those outside the `*_fov`, are ignored: -1.

    Raises:
        DataError: the masks are no whole numbers or have another shape than the images, some hold
            0 and 255 alone, or a field of view has another shape.
    """
    key, fov = f"{split}_masks", f"{split}_fov"
    where, size = f"{file.path}: {key}", axes_of(file, split, masks=True)[0]
    images = file.header(f"{split}_images").shape[1:]
    stored, note = of_planes(file.array(key), size, where, images)
    check_ignored(stored, where)
    masks = mask_ids(stored)
    if fov in file.keys:
        shape = file.header(fov).shape
        if shape not in (masks.shape, (*masks.shape, 1)):
            raise DataError(
                f"{file.path}: {fov}: expected the shape of the masks {masks.shape}, got {shape}"
            )
        masks[file.array(fov).reshape(masks.shape) == 0] = UNLABELLED
    return masks, note


def _images(file: Npz, split: SplitName, *, masks: bool) -> NDArray[Any]:
    images: Any = file.rows(f"{split}_images")
    size, channels = axes_of(file, split, masks=masks)
    images = images.reshape((len(images), *size, *([channels] if channels > 1 else [])))
    if isinstance(images, RowFile):  # indexed by rows as an array is, see Arrays
        return cast("NDArray[np.uint8]", images)
    if images.dtype.kind in "iu":
        return np.ascontiguousarray(images, images.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):  # overflow becomes Inf, which the data contract refuses
        return np.ascontiguousarray(images, dtype=np.float32)


def _patients(file: Npz, split: SplitName, n: int) -> NDArray[Any] | None:  # of text
    """Return the patient of each image; an image of unknown patient counts as one of its own.

    Where no patient of the split is known, there are none.
    """
    patients = _names(file, f"{split}_patients", n)
    if patients is None or not (unknown := patients == "").any():
        return patients
    if unknown.all():
        return None
    alone = np.array([f"unknown-{split}-{row:06d}" for row in range(n)])
    return np.where(unknown, alone, patients)


def _subgroups(file: Npz, split: SplitName, n: int) -> dict[str, NDArray[Any]]:  # of text
    """Return the columns `*_subgroup_NAME` of a split by NAME; numbers may be bands, see info."""
    prefix, edges = f"{split}_subgroup_", bands(file.path, read_info(file))
    subgroups = {}
    for key in sorted(file.keys):
        cells = _names(file, key, n, kinds="USiuf") if key.startswith(prefix) else None
        if cells is not None:
            name = key.removeprefix(prefix)
            where = f"{file.path}: {key}"
            subgroups[name] = named_groups(name, cells.tolist(), edges.get(name), where)
    return subgroups


def _names(file: Npz, key: str, n: int, *, kinds: str = "USiu") -> NDArray[Any] | None:  # of text
    if key not in file.keys:
        return None
    shape, dtype = file.header(key)
    if dtype.kind not in kinds or shape not in ((n,), (n, 1)):
        numbers = "numbers" if "f" in kinds else "integers"
        raise DataError(
            f"{file.path}: {key}: expected {n} names (text or {numbers}), "
            f"got {dtype} of shape {shape}"
        )
    with damage(file.path, key):
        return file.array(key).reshape(n).astype(np.str_)
