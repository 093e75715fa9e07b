"""The card of a user's own `.npz` file, from what the file says of itself."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.archive import MAX_BYTES, Npz, opened
from robustbench_med.datasets.dataset import MAX_IDS
from robustbench_med.datasets.npz import SPLITS, axes_of, image_header, read_labels, read_masks
from robustbench_med.errors import DataError

MAX_INFO = 2**20  # bytes; the longest seen has 3 kB
MAX_CLASSES = 10_000  # more are not class ids but something else, such as patient numbers


def card_of(path: Path, *, cap: int = MAX_BYTES) -> DatasetCard:
    """Return a card made of a file's header, labels and `info`.

    Class names come from `classes` in `info`, else they are "class 0", "class 1", ... up to the
    highest label; `normal` in `info` is the index of the healthy class. Labels of several columns
    are findings, which may occur together. Masks in any split make it a segmentation, whose every
    split needs them; there class 0 is the background, and `info` may hold `regions` (name -> class
    ids), `spacing` (mm a pixel along each axis) and `channels` (names).

    Args:
        path: a `.npz` file with MedMNIST keys.
        cap: bytes that one array may have.

    Raises:
        DataError: the file cannot be read, holds no split, has fewer than two classes, or masks of
            more than 255.
    """
    with opened(path, cap=cap) as file:
        splits = [split for split in SPLITS if f"{split}_images" in file.keys]
        if not splits:
            file.header("test_images")
        masks = any(f"{split}_masks" in file.keys for split in splits)
        for split in splits if masks else ():
            file.header(f"{split}_masks")
        dtype = image_header(file, splits[-1]).dtype
        size, channels = axes_of(file, splits[-1])
        info = _info(file)
        labels = [(read_masks if masks else read_labels)(file, split) for split in splits]
    several = not masks and any(found.ndim == 2 for found in labels)
    classes = _classes(path, info) or _numbered(path, labels)
    if len(classes) < 2:
        raise DataError(
            f"{path}: expected at least two classes, got {len(classes)}; name them in info"
        )
    if masks and len(classes) > MAX_IDS:
        raise DataError(
            f"{path}: expected at most {MAX_IDS} classes of masks (ids 0..{MAX_IDS - 1}; 255 = "
            f"ignored), got {len(classes)}"
        )
    stored = dtype.kind == "u"
    return DatasetCard(
        name=re.sub(r"[^0-9a-z_]+", "_", path.stem.lower()).strip("_") or "data",
        title=f"{path.stem} (own file)",
        summary=_text(info.get("name", "")),
        source=_text(info.get("source", "")),
        modality=_text(info.get("modality", "not stated")),
        task="segmentation" if masks else "multi_label" if several else "single_label",
        classes=classes,
        regions=_regions(path, info, len(classes)) if masks else {},
        normal=_normal(path, info, len(classes)),
        channels=channels,
        channel_names=_channel_names(path, info, channels),
        size=size,
        spacing=_spacing(path, info, len(size)),
        bit_depth=8
        if stored
        else 16,  # float images come from clinical formats, which store up to 16
        native_range="grey level 0..255" if stored else "float 0..1",
        file=path.name,
        licence=_text(info.get("licence", "not stated")),
        notes=("a user's own file, used without a known checksum",),
    )


def _info(file: Npz) -> dict[str, Any]:
    if "info" not in file.keys:
        return {}
    shape, dtype = file.header("info")
    if dtype.kind != "U" or shape != () or dtype.itemsize > MAX_INFO:
        raise DataError(
            f"{file.path}: info: expected one JSON text of at most {MAX_INFO} bytes, "
            f"got {dtype} of shape {shape}"
        )
    try:
        found = json.loads(str(file.array("info")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path}: info: expected JSON text, got: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file.path}: info: expected a JSON object, got {type(found).__name__}")
    return found


def _classes(path: Path, info: dict[str, Any]) -> tuple[str, ...]:
    classes = info.get("classes", [])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{path}: info: expected classes to be a list of names, got {classes!r}")
    return tuple(classes)


def _numbered(path: Path, labels: Sequence[NDArray[np.integer[Any]]]) -> tuple[str, ...]:
    word, count = "class", 0
    for found in labels:
        if found.ndim == 2:
            word, count = "finding", max(count, found.shape[1])
        elif len(found):
            count = max(count, int(found.max()) + 1)
    if count > MAX_CLASSES:
        raise DataError(
            f"{path}: expected labels 0..{MAX_CLASSES - 1}, got {count - 1}; count from 0"
        )
    return tuple(f"{word} {index}" for index in range(count))


def _normal(path: Path, info: dict[str, Any], k: int) -> int | None:
    normal = info.get("normal")
    if normal is None or (type(normal) is int and 0 <= normal < k):
        return normal
    raise DataError(
        f"{path}: info: expected normal to be a class 0..{k - 1} or null, got {normal!r}"
    )


def _regions(path: Path, info: dict[str, Any], k: int) -> dict[str, tuple[int, ...]]:
    regions = info.get("regions", {})
    fine = isinstance(regions, dict) and all(
        isinstance(ids, list) and ids and all(type(one) is int and 0 < one < k for one in ids)
        for ids in regions.values()
    )
    if not fine:
        raise DataError(
            f"{path}: info: expected regions as lists of class ids in 1..{k - 1} by name, got "
            f"{regions!r}"
        )
    return {name: tuple(ids) for name, ids in regions.items()}


def _spacing(path: Path, info: dict[str, Any], axes: int) -> tuple[float, ...] | None:
    spacing = info.get("spacing")
    if spacing is None:
        return None
    fine = isinstance(spacing, list) and len(spacing) == axes
    if not fine or not all(
        # a comparison refuses NaN and Infinity, and an integer that no float holds
        type(mm) in (int, float) and 0 < mm <= sys.float_info.max
        for mm in spacing
    ):
        raise DataError(
            f"{path}: info: expected spacing as {axes} numbers > 0 (mm a pixel), got {spacing!r}"
        )
    return tuple(map(float, spacing))


def _channel_names(path: Path, info: dict[str, Any], channels: int) -> tuple[str, ...]:
    names = info.get("channels", [])
    fine = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not fine or len(set(names)) not in (0, channels) or len(names) not in (0, channels):
        raise DataError(
            f"{path}: info: expected channels as {channels} names, each another, got {names!r}"
        )
    unfit = [name for name in names if not _choosable(name)]
    if unfit:
        raise DataError(
            f"{path}: info: expected channel names that a case can choose: not empty, without '+', "
            f"'=' and outer blanks, and not 'all'; got {unfit[0]!r}"
        )
    return tuple(names)


def _choosable(name: str) -> bool:
    return name not in ("", "all") and name == name.strip() and not set(name) & set("+=")


def _text(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
