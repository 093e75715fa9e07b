"""Recognise what is in a folder, and draft its card file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from robustbench_med.datasets.sources import pictures, tables
from robustbench_med.datasets.sources.draft import Draft
from robustbench_med.datasets.sources.draft_folders import from_folders, from_masks
from robustbench_med.datasets.sources.draft_table import from_table
from robustbench_med.datasets.sources.load import scan
from robustbench_med.datasets.sources.refs import ImageRef, read_each, walk
from robustbench_med.errors import DataError

_FEW_PATIENTS = 3  # fewer cannot be divided into three splits


def draft_of(path: Path, *, size: list[int] | None = None) -> Draft:
    """Return the draft of a folder, or of a CSV table and the folder that it is in.

    Args:
        path: the folder or the table.
        size: the size to which images are resized; None = the images must agree in it.

    Raises:
        DataError: there is nothing that can be read, or a file is damaged.
    """
    is_table = path.suffix.lower() in tables.SUFFIXES and path.is_file()
    root = path.parent if is_table else path
    names = list(walk(root))
    readable = [name for name in names if pictures.is_picture(name)]
    if not readable:
        raise DataError(_nothing(root, names))
    refs = scan(root, readable)
    draft = Draft(root, refs)
    draft.card = {"name": _name(root), "title": root.resolve().name or "data"}
    draft.card["modality"] = "not stated"
    draft.source = {"format": "pictures"}
    csvs = [path.name] if is_table else [n for n in names if n.lower().endswith(tables.SUFFIXES)]
    if not (from_table(draft, csvs) or from_masks(draft) or from_folders(draft)):
        draft.source |= {"labels": "none"}
        draft.card |= {"task": "single_label", "classes": ["class 0", "class 1"]}
        draft.missing.append(
            "labels or masks: put the images of each class into a folder of its name, or write a "
            "CSV table with a column of file names and one of labels beside them, or masks of the "
            "same names into a folder `masks` beside `images`"
        )
    if "split_names" not in draft.source:
        draft.source["draw"] = {"train": 0.6, "val": 0.2, "test": 0.2, "seed": 0}
    elif "test" not in draft.source["split_names"]:
        draft.missing.append(
            "a test split: the data have "
            + ", ".join(draft.source["split_names"])
            + '; set split_names, e.g. test = "val", or delete it and add [source.draw]'
        )
    _sizes(draft, size)
    return draft


def _nothing(root: Path, names: Sequence[str]) -> str:
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    inside = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no file"
    return f"{root}: expected images below the folder, got {inside}"


def _name(root: Path) -> str:
    return re.sub(r"[^0-9a-z_]+", "_", root.resolve().name.lower()).strip("_") or "data"


def _sizes(draft: Draft, size: list[int] | None) -> None:
    """Fill in size and channels, where the images agree."""
    sizes = Counter(ref.size for ref in draft.refs)
    if size is not None or len(sizes) == 1:
        draft.card["size"] = size or list(draft.refs[0].size)
    else:
        smallest, largest = min(sizes), max(sizes)
        draft.missing.append(
            f"size = [h, w]: the images have {len(sizes)} sizes, from {_times(smallest)} to "
            f"{_times(largest)}; the reader resizes them to the one that you state"
        )
    channels = Counter(ref.channels for ref in draft.refs)
    draft.card["channels"] = next(iter(channels)) if len(channels) == 1 else _mixed(draft)


def _mixed(draft: Draft) -> int:
    """Return the channels of images of which some are grey and some have colours."""
    coloured = [ref for ref in draft.refs if ref.channels > 1]
    with pictures.quiet():
        grey = all(read_each(draft.root, coloured, is_grey))
    counts = (
        f"{len(draft.refs) - len(coloured)} images are grey and {len(coloured)} have 3 channels"
    )
    if grey:
        draft.remarks.append(f"{counts}, all equal: channels = 1 reads all of them as grey")
        return 1
    draft.remarks.append(f"{counts}: channels = 3 repeats the grey ones")
    return 3


def is_grey(root: Path, ref: ImageRef) -> bool:
    """Whether the channels of a picture are equal everywhere."""
    values = pictures.decode(root, ref)
    return bool((values == values[..., :1]).all())


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
