"""Recognise what is in a folder, and draft its card file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from robustbench_med.datasets.sources import dicom, dicom_series, native, pictures, tables
from robustbench_med.datasets.sources.draft import Draft
from robustbench_med.datasets.sources.draft_folders import from_folders, from_masks
from robustbench_med.datasets.sources.draft_table import from_table
from robustbench_med.datasets.sources.grid import grid_of
from robustbench_med.datasets.sources.native import Ends
from robustbench_med.datasets.sources.readers import READERS, scan
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    check_values,
    read_each,
    times,
    walk,
)
from robustbench_med.datasets.sources.spec import EACH, NATIVE
from robustbench_med.errors import DataError

_FEW_PATIENTS = 3  # fewer cannot be divided into three splits
_SAME = 1e-4  # mm by which equal spacings may differ


def draft_of(path: Path, *, size: list[int] | str | None = None, volumes: bool = False) -> Draft:
    """Return the draft of a folder, of a CSV table and the folder that it is in, or of an image.

    Args:
        path: the folder, the table, or the file of an image.
        size: the size to which images are resized; "native" = each keeps its own; None = the
            images must agree in it.
        volumes: whether a DICOM series is one image; else each slice is one.

    Raises:
        DataError: there is nothing that can be read, a file is damaged, or images have several
            sizes and none is stated.
    """
    is_table = path.suffix.lower() in tables.SUFFIXES and path.is_file()
    root = path if path.is_dir() else path.parent
    names = list(walk(root)) if is_table or path.is_dir() else [path.name]
    format_name, readable = _format(root, names)
    listing = scan(root, readable, format_name, volumes=volumes)
    draft = Draft(root, format_name, listing.refs)
    draft.card = {"name": _name(root), "title": root.resolve().name or "data"}
    draft.card["modality"] = _modality(draft.refs)
    draft.source = {"format": format_name}
    windows = {dict(ref.facts).get("window", "") for ref in draft.refs}
    draft.window = windows.pop() if len(windows) == 1 else ""
    if format_name == "dicom":
        draft.source["images_as"] = "volumes" if volumes else "slices"
    if format_name != "pictures":
        draft.source["ids"] = "number"
    if path.is_file() and not is_table:
        draft.source["only"] = [path.name]
    csvs = [path.name] if is_table else [n for n in names if n.lower().endswith(tables.SUFFIXES)]
    _truth(draft, csvs)
    _splits(draft)
    _sizes(draft, size)
    _values(draft)
    return draft


def _format(root: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the format of most files of a folder, and these files.

    Raises:
        DataError: none can be read.
    """
    readable = {
        key: [name for name in names if reader.accepts(root, name)]
        for key, reader in READERS.items()
    }
    most = max(readable, key=lambda key: len(readable[key]))
    if readable[most]:
        return most, readable[most]
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    inside = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3)) or "no file"
    raise DataError(f"{root}: expected images, got {inside}")


def _name(root: Path) -> str:
    return re.sub(r"[^0-9a-z_]+", "_", root.resolve().name.lower()).strip("_") or "data"


def _modality(refs: Sequence[ImageRef]) -> str:
    known = Counter(text for ref in refs for key, text in ref.facts if key == "modality")
    return ", ".join(sorted(known)) or "not stated"


def _truth(draft: Draft, csvs: Sequence[str]) -> None:
    """Fill in where labels or masks are."""
    if _from_segmentations(draft) or from_table(draft, csvs):
        return
    if from_masks(draft) or from_folders(draft):
        return
    draft.source |= {"labels": "none"}
    draft.card |= {"task": "single_label", "classes": ["class 0", "class 1"]}
    draft.missing.append(
        "labels or masks: put the images of each class into a folder of its name, or write a CSV "
        "table with a column of file names and one of labels (or of masks) beside them, or masks "
        "of the same names into a folder `masks` beside `images`"
    )


def _from_segmentations(draft: Draft) -> bool:
    """Draft from DICOM-SEG files that refer to the images."""
    masks = sorted({ref.mask for ref in draft.refs} - {""})
    if not masks:
        return False
    codes: dict[int, tuple[str, str]] = {}
    for name in masks:
        codes |= dicom_series.segment_codes(dicom.read_header(draft.root, name))
    numbers = sorted(codes)
    classes = ["background"]
    for number in numbers:
        name = dicom_series.structure_name(*codes[number]) or f"segment {number}"
        classes.append(name if name not in classes else f"{name} {number}")
    draft.source["labels"] = "dicom_seg"
    if numbers != list(range(1, len(numbers) + 1)):
        draft.source["mask_values"] = [0, *numbers]
    draft.card |= {"task": "segmentation", "classes": classes}
    draft.remarks.append(
        f"masks: {len(masks)} DICOM-SEG file{'s' if len(masks) > 1 else ''}, each frame matched to "
        "its image by SOPInstanceUID; classes named by the codes of their structures"
    )
    return True


def _splits(draft: Draft) -> None:
    """Draw splits, unless the data state them."""
    source = draft.source
    if "split_names" not in source:
        owners = {ref.patient or ref.files[0] for ref in draft.refs}
        if len(owners) < _FEW_PATIENTS:
            source["draw"] = {"train": 0.0, "val": 0.0, "test": 1.0, "seed": 0}
            draft.remarks.append(
                f"{len(owners)} patient{'s' if len(owners) > 1 else ''}: too few to divide, so all "
                "images are test"
            )
        else:
            source["draw"] = {"train": 0.6, "val": 0.2, "test": 0.2, "seed": 0}
    elif "test" not in source["split_names"]:
        draft.missing.append(
            "a test split: the data have "
            + ", ".join(source["split_names"].values())
            + '; set split_names, e.g. test = "val", or delete it and add [source.draw]'
        )


def _sizes(draft: Draft, size: list[int] | str | None) -> None:
    """Fill in size, channels and spacing, where the images agree.

    Raises:
        DataError: the images have several sizes, and it is not stated what becomes of them.
    """
    sizes = Counter(ref.size for ref in draft.refs)
    if size is None and len(sizes) > 1:
        common = times(sizes.most_common(1)[0][0])
        raise DataError(
            f"{draft.root}: expected images of one size, got {len(sizes)} sizes from "
            f"{times(min(sizes))} to {times(max(sizes))}: add --size {NATIVE}, and each image "
            f"keeps its own, or a size such as --size {common}, to which the reader resizes them"
        )
    draft.card["size"] = size or list(draft.refs[0].size)
    channels = Counter(ref.channels for ref in draft.refs)
    draft.card["channels"] = next(iter(channels)) if len(channels) == 1 else _mixed(draft)
    spacings = [ref.spacing for ref in draft.refs]
    first = spacings[0]
    if (len(sizes) > 1 and size != NATIVE) or first is None:
        return
    if all(mm is not None and np.allclose(mm, first, atol=_SAME) for mm in spacings):
        shown = draft.refs[0].size if size == NATIVE else draft.card["size"]
        ratio = np.divide(draft.refs[0].size, shown)
        draft.card["spacing"] = [round(float(mm), 6) for mm in np.multiply(first, ratio)]
    else:
        draft.remarks.append("spacings differ: none is stated, and distances are in pixels")


def _mixed(draft: Draft) -> int:
    """Return the channels of images of which some are grey and some have colours."""
    coloured = [ref for ref in draft.refs if ref.channels > 1]
    decode = READERS[draft.format].decode

    def is_grey(root: Path, ref: ImageRef) -> bool:
        values = decode(root, ref)
        return bool((values == values[..., :1]).all())

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


def _values(draft: Draft) -> None:
    """Fill in the native range of images that are stored in their own unit."""
    if all(ref.dtype == "uint8" for ref in draft.refs):
        return
    decode = READERS[draft.format].decode

    def ends_of(root: Path, ref: ImageRef) -> tuple[Ends, bool]:
        values: Any = decode(root, ref)
        check_values(values)
        whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
        return Ends(float(values.min()), float(values.max())), whole

    with pictures.quiet():
        results = read_each(draft.root, draft.refs, ends_of)
    ends = [each for each, _ in results]
    low, high = min(e.low for e in ends), max(e.high for e in ends)
    draft.ends = low, high
    modality = str(draft.card["modality"])
    integers = all(whole for _, whole in results)
    if draft.format == "nifti" and integers and native.is_like_hu(low, high):
        modality = draft.card["modality"] = "CT"
        draft.remarks.append(f"values {low:g}..{high:g} are taken for HU of a CT")
    if modality != "CT" and native.is_unlike(ends):
        widest, narrowest = max(ends, key=lambda e: e.high), min(ends, key=lambda e: e.high)
        draft.source["scale"] = "each"
        draft.card["native_range"] = EACH
        widest_range = max(e.high - e.low for e in ends)
        draft.card["bit_depth"] = min(16, int(widest_range).bit_length()) if integers else 16
        draft.remarks.append(
            f"values reach {narrowest.high:g} in one image and {widest.high:g} in another: "
            'scale = "each" scales each image by its own range'
        )
        return
    shared_grid = grid_of(draft.refs)
    chosen_range = native.native_of(ends, modality=modality, integers=integers, grid=shared_grid)
    draft.card["native"] = chosen_range.model_dump()
    if low < chosen_range.low or high > chosen_range.high:
        draft.source["clip"] = True
        draft.remarks.append(
            f"values are {low:g}..{high:g}: clip = true clips them to {chosen_range.text}, whose "
            "ends are 0 and 1"
        )
    if modality == "CT" and chosen_range.unit != "HU":
        draft.remarks.append("a CT without values of air: these are perhaps no HU")
