"""The card of a user's own `.npz` file, from what the file says of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.npz import MAX_BYTES, SPLITS, Npz, image_header, opened, read_labels
from robustbench_med.errors import DataError

MAX_INFO = 2**20  # bytes; the longest seen has 3 kB
MAX_CLASSES = 10_000  # more are not class ids but something else, such as patient numbers


def card_of(path: Path, *, cap: int = MAX_BYTES) -> DatasetCard:
    """Return a card made of a file's header, labels and `info`.

    Class names come from `classes` in `info`, else they are "class 0", "class 1", ... up to the
    highest label; `normal` in `info` is the index of the healthy class. Labels of several columns
    are findings, which may occur together.

    Args:
        path: a `.npz` file with MedMNIST keys.
        cap: bytes that one array may have.

    Raises:
        DataError: the file cannot be read, holds no split, or has fewer than two classes.
    """
    with opened(path, cap=cap) as file:
        splits = [split for split in SPLITS if f"{split}_images" in file.keys]
        if not splits:
            file.header("test_images")
        (_, height, width, *channels), dtype = image_header(file, splits[-1])
        info = _info(file)
        labels = [read_labels(file, split) for split in splits]
    several = any(found.ndim == 2 for found in labels)
    classes = _classes(path, info) or _numbered(path, labels)
    if len(classes) < 2:
        raise DataError(
            f"{path}: expected at least two classes, got {len(classes)}; name them in info"
        )
    stored = dtype.kind == "u"
    return DatasetCard(
        name=re.sub(r"[^0-9a-z_]+", "_", path.stem.lower()).strip("_") or "data",
        title=f"{path.stem} (own file)",
        summary=_text(info.get("name", "")),
        source=_text(info.get("source", "")),
        modality=_text(info.get("modality", "not stated")),
        task="multi_label" if several else "single_label",
        classes=classes,
        normal=_normal(path, info, len(classes)),
        channels=channels[0] if channels else 1,
        size=(height, width),
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


def _numbered(path: Path, labels: list[NDArray[np.int64]]) -> tuple[str, ...]:
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


def _text(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
