"""Draft a card file from folders: of classes, of splits, and of masks beside images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from robustbench_med.datasets.sources import pictures, words
from robustbench_med.datasets.sources.draft import MOST_CLASSES, Draft, set_classes, split_names
from robustbench_med.datasets.sources.readers import READERS
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    UnreadableError,
    check_values,
    read_each,
)
from robustbench_med.errors import DataError


def _folder_splits(draft: Draft) -> set[str]:
    """Fill in the splits that folders state; return the names of these folders."""
    stored: set[str] = set()
    for ref in draft.refs:
        folders = PurePosixPath(ref.files[0]).parts[:-1]
        word = next((f for f in folders if split_names([f])), None)
        if word is None:
            return set()
        stored.add(word)
    if names := split_names(stored):
        draft.source["split_names"] = names
        draft.remarks.append(f"splits: folders {', '.join(names.values())}")
        return stored
    return set()


def from_masks(draft: Draft) -> bool:
    """Draft from masks in a folder of their own, or with names of their own."""
    folders = Counter(f for ref in draft.refs for f in PurePosixPath(ref.files[0]).parts[:-1])
    images = [name for name in folders if name.lower() in words.IMAGES]
    masks = [name for name in folders if name.lower() in words.MASKS]
    if len(images) == 1 and len(masks) == 1:
        draft.source |= {"labels": "masks", "images": images[0], "masks": masks[0]}
        inside = [masks[0] in PurePosixPath(ref.files[0]).parts[:-1] for ref in draft.refs]
        draft.remarks.append(f"masks: folder {masks[0]}, of the images in {images[0]}")
    elif not (suffix := _suffix(draft)):
        return False
    else:
        draft.source |= {"labels": "masks", "mask_suffix": suffix}
        inside = [_stem(ref).endswith(suffix) for ref in draft.refs]
        draft.remarks.append(f"masks: files whose name ends with {suffix}")
    draft.mask_refs = [ref for ref, is_mask in zip(draft.refs, inside, strict=True) if is_mask]
    draft.refs = [ref for ref, is_mask in zip(draft.refs, inside, strict=True) if not is_mask]
    if not draft.mask_refs or not draft.refs:
        raise DataError(f"{draft.root}: expected images and masks, got only one of them")
    if not draft.source.get("mask_suffix"):
        _pair_suffix(draft)
    _folder_splits(draft)
    set_mask_classes(draft)
    return True


def _stem(ref: ImageRef) -> str:
    return PurePosixPath(PurePosixPath(ref.files[0]).name.removesuffix(".gz")).stem


def _suffix(draft: Draft) -> str:
    stems = {_stem(ref) for ref in draft.refs}
    counts = Counter(
        suffix
        for stem in stems
        for suffix in words.SUFFIXES
        if stem.endswith(suffix) and stem.removesuffix(suffix) in stems
    )
    return counts.most_common(1)[0][0] if counts else ""


def _pair_suffix(draft: Draft) -> None:
    """Fill in what the names of masks have after those of images, if all have the same."""
    stems = {_stem(ref) for ref in draft.refs}
    masks = [_stem(ref) for ref in draft.mask_refs]
    if all(mask in stems for mask in masks):
        return
    for suffix in words.SUFFIXES:
        if all(mask.endswith(suffix) and mask.removesuffix(suffix) in stems for mask in masks):
            draft.source["mask_suffix"] = suffix


def set_mask_classes(draft: Draft) -> None:
    """Fill in the classes of masks from the values that they hold."""
    decode = READERS[draft.format].decode_mask

    def ids_of_mask(root: Path, ref: ImageRef) -> list[int]:
        values = decode(root, ref)
        check_values(values)
        if (values != np.rint(values)).any():
            raise UnreadableError("this mask holds fractions: save one class id per pixel")
        ids: list[int] = np.unique(values).astype(np.int64).tolist()
        return ids

    values: set[int] = set()
    with pictures.quiet():
        for ids in read_each(draft.root, draft.mask_refs, ids_of_mask):
            values.update(ids)
    ids = sorted(values)
    if len(ids) > MOST_CLASSES:
        raise DataError(
            f"{draft.root}: expected masks of class ids, got {len(ids)} different values; masks "
            "saved as JPEG are smeared: save them as PNG"
        )
    draft.card["task"] = "segmentation"
    if len(ids) == 2 and ids[0] == 0 and ids[1] > 1:
        draft.source["mask_values"] = ids
        draft.remarks.append(f"masks hold 0 and {ids[1]}: `mask_values` reads {ids[1]} as class 1")
        ids = [0, 1]
    elif ids == [0, 1] or ids == list(range(len(ids))):
        pass
    else:
        shown = ids[:-1] if ids[-1] == 255 else ids
        draft.source["mask_values"] = shown
        if shown != ids:
            draft.remarks.append("masks hold 255 beside classes: these pixels are ignored")
        draft.remarks.append(
            f"masks hold the values {', '.join(map(str, shown[:12]))}: `mask_values` gives that of "
            "each class"
        )
        ids = list(range(len(shown)))
    draft.card["classes"] = ["background", *(f"region {k}" for k in ids[1:])]


def from_folders(draft: Draft) -> bool:
    """Draft from folders of classes, below folders of splits if there are any."""
    splits = _folder_splits(draft)
    classes = set()
    for ref in draft.refs:
        folders = [f for f in PurePosixPath(ref.files[0]).parts[:-1] if f not in splits]
        if not folders:
            return False
        classes.add(folders[0])
    if len(classes) < 2:
        return False
    set_classes(draft, classes, "folders")
    draft.source["labels"] = "folders"
    draft.remarks.append("classes: the folders of the images")
    return True
