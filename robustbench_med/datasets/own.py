"""Make the card of a user's own `.npz` file from its header, labels and `info`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard, Task
from robustbench_med.datasets import info as stated
from robustbench_med.datasets.archive import MAX_BYTES, Npz, opened
from robustbench_med.datasets.codes import MAX_IDS
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.datasets.labels import check_codes, check_numbering, one_hot_rows
from robustbench_med.datasets.masks import check_background
from robustbench_med.datasets.npz import (
    MAX_CHANNELS,
    SPLITS,
    axes_of,
    image_header,
    read_labels,
    read_masks,
)
from robustbench_med.errors import DataError

MAX_CLASSES = 10_000  # larger labels are no class ids but, for example, patient numbers
OWN_FILE_NOTE = "a user's own file, used without a known checksum"


class OwnFile(NamedTuple):
    """A user's file, as `describe` understands it.

    Attributes:
        card: made from the file.
        splits: splits in the file.
        one_hot: whether its labels are one-hot class labels.
    """

    card: DatasetCard
    splits: tuple[SplitName, ...]
    one_hot: bool


class _Truth(NamedTuple):
    """Labels or masks of every split, with the task that they stand for."""

    task: Task
    labels: list[NDArray[Any]]
    one_hot: bool
    notes: tuple[str, ...]


def card_of(path: Path, *, cap: int = MAX_BYTES) -> DatasetCard:
    """Return the card of a file; see `describe`."""
    return describe(path, cap=cap).card


def describe(path: Path, *, cap: int = MAX_BYTES) -> OwnFile:
    """Return the card, splits and label format of a file, from its header, labels and `info`.

    The names of the classes come from `classes` in `info`; by default they are "class 0", "class
    1", ... up to the highest label. `normal` in `info` is the index of the healthy class. Labels of
    several columns are one-hot class labels if every row of every split sums to one, else findings,
    which may occur together; `task` in `info` ("single-label", "multi-label", "segmentation")
    decides if it is stated. If any split has masks, the task is segmentation and every split needs
    masks; then class 0 is the background, and `info` may have `regions` (name -> class ids). For
    every task, `info` may state `spacing` (mm per pixel along each axis), `channels` (names or a
    number), `native_range` (the original values of [0,1]) and `bit_depth`; or `native` (unit, low,
    high, step) where images are stored in their own unit, as integers or floats.

    Args:
        path: a `.npz` file with MedMNIST keys.
        cap: largest size of one array, in bytes.

    Raises:
        DataError: the file cannot be read or has no split, it has fewer than two classes or masks
            with more than 255, or its labels or axes are ambiguous.
    """
    with opened(path, cap=cap) as file:
        splits = tuple(split for split in SPLITS if f"{split}_images" in file.keys)
        if not splits:
            file.header("test_images")
        info = stated.read_info(file)
        masks = _has_masks(file, splits, stated.task(info))
        stored = image_header(file, splits[-1]).dtype.kind == "u"
        size, channels = axes_of(file, splits[-1], masks=masks)
        shape = image_header(file, splits[-1]).shape[1:]
        truth = _masks(file, splits, info) if masks else _labels(file, splits, info)
        code = file.fingerprint()
    classes = stated.classes(path, info, masks=masks)
    if classes:
        _check_names(path, classes, truth)
    else:
        classes = _numbered(path, truth)
    if len(classes) < 2:
        raise DataError(
            f"{path}: expected at least two classes, got {len(classes)}; name them in info"
        )
    if masks and len(classes) > MAX_IDS:
        raise DataError(
            f"{path}: expected at most {MAX_IDS} classes of masks (ids 0..{MAX_IDS - 1}; 255 = "
            f"ignored), got {len(classes)}"
        )
    regions = stated.regions(path, info, len(classes)) if masks else {}
    card = DatasetCard(
        name=re.sub(r"[^0-9a-z_]+", "_", path.stem.lower()).strip("_") or "data",
        # two files of the same name get two boards; a moved file keeps its board
        title=f"{path.stem} (own file {code})",
        summary=stated.text(info.get("name", "")),
        source=stated.text(info.get("source", "")),
        modality=stated.text(info.get("modality", "not stated")),
        task=truth.task,
        classes=classes,
        regions=regions,
        normal=stated.normal(path, info, len(classes)),
        channels=channels,
        channel_names=stated.channel_names(path, info, channels),
        size=size,
        spacing=stated.spacing(path, info, len(size)),
        **_range(path, info, stored=stored),
        file=path.name,
        licence=stated.text(info.get("licence", "not stated")),
        notes=(
            OWN_FILE_NOTE,
            *truth.notes,
            *_axes_note(shape, size, channels, info, masks=masks),
            *_left_out(classes, regions),
        ),
    )
    return OwnFile(card, splits, truth.one_hot)


def _range(path: Path, info: dict[str, Any], *, stored: bool) -> dict[str, Any]:
    """Return the fields of a card on the values of pixels."""
    native = stated.native(path, info)
    if native is not None:
        return {"native": native}
    return {
        "bit_depth": stated.bit_depth(path, info, stored=stored),
        "native_range": stated.native_range(path, info, stored=stored),
    }


def _has_masks(file: Npz, splits: Sequence[SplitName], task: Task | None) -> bool:
    masks = any(f"{split}_masks" in file.keys for split in splits)
    if task == "segmentation" and not masks:
        file.header(f"{splits[-1]}_masks")
    if task in ("single_label", "multi_label"):
        return False
    for split in splits if masks else ():
        file.header(f"{split}_masks")
    return masks


def _masks(file: Npz, splits: Sequence[SplitName], info: dict[str, Any]) -> _Truth:
    every = [read_masks(file, split) for split in splits]
    masks: list[NDArray[Any]] = [mask for mask, _ in every]
    if not stated.classes(file.path, info, masks=True):
        ids = np.unique(np.concatenate([np.unique(mask) for mask in masks]))
        check_background(ids, str(file.path))
        check_numbering(ids[ids >= 0], str(file.path), masks=True)
    notes = [note for _, note in every if note is not None]
    if any(f"{split}_labels" in file.keys for split in splits):
        notes.append(
            "the file has labels beside its masks, which are scored alone; "
            '"task": "single-label" in info takes the labels'
        )
    return _Truth("segmentation", masks, False, tuple(_plain(file.path, notes)))


def _labels(file: Npz, splits: Sequence[SplitName], info: dict[str, Any]) -> _Truth:
    path, task = file.path, stated.task(info)
    labels: list[NDArray[Any]] = [read_labels(file, split) for split in splits]
    notes = [
        f"{split}_labels: whole {file.header(f'{split}_labels').dtype} as class ids"
        for split in splits
        if file.header(f"{split}_labels").dtype.kind == "f"
    ]
    if len(shapes := {rows.shape[1:] for rows in labels if len(rows)}) > 1:
        listed = ", ".join(
            f"{split} {rows.shape}" for split, rows in zip(splits, labels, strict=True)
        )
        raise DataError(
            f"{path}: expected labels of one kind in all splits, got {listed}; save class ids "
            "(n,) or findings (n, k) in each"
        )
    several = () not in shapes and bool(shapes)
    if not several:
        if task == "multi_label":
            raise DataError(
                f"{path}: expected labels (n, findings) as info states multi-label, got one column"
            )
        if not stated.classes(path, info):
            ids = np.unique(np.concatenate([np.unique(rows) for rows in labels]))
            k = int(ids.max(initial=0)) + 1
            for split, rows in zip(splits, labels, strict=True):
                check_codes(rows, k, f"{path}: {split}_labels", masks=False)
            check_numbering(ids[ids >= 0], str(path), masks=False)
        return _Truth("single_label", labels, False, tuple(notes))
    one_hot = all(one_hot_rows(rows) for rows in labels if len(rows))
    if task == "single_label" and not one_hot:
        raise DataError(
            f"{path}: expected one class per image as info states single-label, got rows that do "
            "not sum to one; save class ids (n,), or state multi-label"
        )
    if not one_hot or task == "multi_label":
        return _Truth("multi_label", labels, False, tuple(notes))
    k = labels[-1].shape[1]
    notes.append(
        f"labels of {k} columns are one-hot (every row sums to one) and read as one of {k} classes;"
        ' "task": "multi-label" in info reads them as findings'
    )
    return _Truth("single_label", labels, True, tuple(notes))


def _check_names(path: Path, classes: tuple[str, ...], truth: _Truth) -> None:
    """Raise DataError if there are more or fewer class names than columns of labels."""
    columns = {
        labels.shape[1]
        for labels in truth.labels
        if labels.ndim == 2 and truth.task != "segmentation"
    }
    if columns and columns != {len(classes)}:
        raise DataError(
            f"{path}: expected as many classes in info as labels have columns, got {len(classes)} "
            f"names for {max(columns)} columns"
        )


def _numbered(path: Path, truth: _Truth) -> tuple[str, ...]:
    word = "finding" if truth.task == "multi_label" else "class"
    count = 0
    for labels in truth.labels:
        if labels.ndim == 2 and truth.task != "segmentation":
            count = max(count, labels.shape[1])
        elif len(labels):
            count = max(count, int(labels.max()) + 1)
    if count > MAX_CLASSES:
        raise DataError(
            f"{path}: expected labels 0..{MAX_CLASSES - 1}, got {count - 1}; count from 0"
        )
    return tuple(f"{word} {index}" for index in range(count))


def _axes_note(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    channels: int,
    info: dict[str, Any],
    *,
    masks: bool,
) -> list[str]:
    """Return a note on how ambiguous axes were read."""
    if masks or info.get("channels") is not None or info.get("spacing") is not None:
        return []
    if len(shape) == 3 and channels in (2, 4):
        return [f"the last axis of images {shape} is taken for {channels} channels"]
    if len(size) == 3 and size[0] <= MAX_CHANNELS:
        return [f"images {shape} are taken for volumes of {size[0]} slices; channels stand last"]
    return []


def _left_out(classes: tuple[str, ...], regions: dict[str, tuple[int, ...]]) -> list[str]:
    """Return a note on the classes of masks that belong to no region."""
    inside = {class_id for ids in regions.values() for class_id in ids}
    names = [name for k, name in enumerate(classes) if k and k not in inside]
    if not regions or not names:
        return []
    return [f"in no region and not scored: {', '.join(names)}"]


def _plain(path: Path, notes: Sequence[str]) -> list[str]:
    """Return the notes without the path of the file, which must not enter a record."""
    return [note.removeprefix(f"{path}: ") for note in notes]
