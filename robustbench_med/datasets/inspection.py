"""Inspect a split for empty images, absent classes and copies, before it is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.codes import UNLABELLED
from robustbench_med.datasets.dataset import Arrays
from robustbench_med.errors import DataError
from robustbench_med.sized_images import SizedImages, corner

FAINT = 16  # of 255; a note is made if the brightest pixel of a split is darker


def occurring(arrays: Arrays, card: DatasetCard) -> tuple[str, ...]:
    """Return the names of the classes, findings or regions that occur in a split, in order."""
    labels = arrays.labels
    if card.task == "multi_label":
        return tuple(
            n for n, there in zip(card.classes, (labels == 1).any(0), strict=True) if there
        )
    ids = np.unique(labels)
    if card.task == "segmentation":
        return tuple(name for name, inside in card.parts.items() if np.isin(ids, inside).any())
    return tuple(name for k, name in enumerate(card.classes) if k in ids)


def inspect(arrays: Arrays, card: DatasetCard, split: str) -> list[str]:
    """Return notes that a reader needs to interpret the scores of a split.

    Args:
        arrays: the split, which fulfils the card's contract.
        card: describes the data.
        split: name of the split.

    Raises:
        DataError: its images show nothing.
    """
    notes = [*_content(arrays, card, split), *_unlabelled(arrays, card, split)]
    return [*notes, *_absent(arrays, card, split)]


def shared(arrays: Arrays, other_arrays: Arrays, names: tuple[str, str]) -> list[str]:
    """Return notes on the images and patients that two splits have in common.

    Args:
        arrays: the split that is scored.
        other_arrays: another split.
        names: names of both splits.
    """
    notes, (split, other_split) = [], names
    keep_sizes = isinstance(arrays.images, SizedImages)
    if (
        keep_sizes or arrays.images.shape[1:] == other_arrays.images.shape[1:]
    ) and arrays.images.dtype == other_arrays.images.dtype:
        known = set(_digests(other_arrays))
        copies = sum(digest in known for digest in _digests(arrays))
        if copies:
            notes.append(
                f"{copies} of {len(arrays)} images of {split} are copies of images of {other_split}"
            )
    if arrays.patients is not None and other_arrays.patients is not None:
        both = np.intersect1d(arrays.patients.astype(str), other_arrays.patients.astype(str))
        if len(both):
            count = f"{len(both)} of {len(np.unique(arrays.patients))} patients"
            notes.append(f"{count} of {split} are in {other_split} too")
    return notes


def _content(arrays: Arrays, card: DatasetCard, split: str) -> Iterator[str]:
    """Yield notes on unusual images of a split.

    Raises:
        DataError: every image is of one value, all are one image, or the values are those of
            [0,1] cast to bytes, or scaled twice.
    """
    where, n = f"{card.name} ({split})", len(arrays)
    ends = [
        (chunk.reshape(len(chunk), -1).min(1), chunk.reshape(len(chunk), -1).max(1))
        for chunk in arrays.chunks()
    ]
    low, high = (np.concatenate(values) for values in zip(*ends, strict=True))
    flat = int((low == high).sum())
    if flat == n:
        value = low[0]
        whole = f"all {n} images are" if n > 1 else "the image is"
        same = f"{value} everywhere" if (low == value).all() else "of one value throughout"
        black = high.dtype == np.uint8 and not high.any()
        cast = " as [0,1] floats become when they are cast to uint8" if black else ""
        raise DataError(
            f"{where}: expected images with content, but {whole} {same}{cast}; save the images "
            "themselves, and [0,1] floats as float32"
        )
    stored, top = high.dtype == np.uint8, high.max()
    native = card.native
    if native is None and stored and top <= 1:
        raise DataError(
            f"{where}: expected uint8 grey levels in 0..255, got only 0 and 1, as happens if [0,1] "
            "floats are cast to uint8; save them as float32, or 0/1 pictures times 255"
        )
    if native is None and not stored and top * 255 <= 1:
        raise DataError(
            f"{where}: expected float images in [0,1], got at most {top}, as happens if images "
            "are divided by 255 twice; divide once"
        )
    digests = _digests(arrays)
    counts = Counter(digests)
    if n > 1 and len(counts) == 1:
        raise DataError(
            f"{where}: expected different images, but all {n} are copies of one; save every image"
        )
    if flat:
        yield f"{flat} of {n} images of {split} are of one value throughout: they show nothing"
    if (repeated := n - len(counts)) and repeated > max(flat - 1, 0):
        yield f"{repeated} of {n} images of {split} are copies of another of {split}"
    if native is not None:
        faint = (float(top) - native.low) * 255 < FAINT * (native.high - native.low)
        shown = f"{top:g} of {native.text}"
    else:
        faint = top < FAINT if stored else top * 255 < FAINT
        shown = f"{top} of 255" if stored else f"{top:.3g} of 1"
    if faint:
        yield f"the brightest pixel of {split} is {shown}: the images were perhaps scaled wrongly"
    elif _two_values(arrays, low.min(), top):
        yield f"the images of {split} hold two values alone, {low.min()} and {top}"


def _two_values(arrays: Arrays, low: np.generic, high: np.generic) -> bool:
    # the first images are nearly always enough to see another value
    return all(bool(((chunk == low) | (chunk == high)).all()) for chunk in arrays.chunks())


def _unlabelled(arrays: Arrays, card: DatasetCard, split: str) -> Iterator[str]:
    """Yield notes on images, findings and pixels without a label."""
    labels, n = arrays.labels, len(arrays)
    unknown = (labels == UNLABELLED).reshape(n, -1)
    without = int(unknown.all(1).sum())
    what = "mask" if card.task == "segmentation" else "label"
    if without:
        yield f"{without} of {n} images of {split} have no {what} (-1) and are not scored"
    whole = unknown.all(1)
    if isinstance(arrays.images, SizedImages) and card.task == "segmentation":
        unknown &= _inside(arrays.images, labels.shape[1:]).reshape(n, -1)
    some = unknown.any(1) & ~whole
    if not some.any():
        return
    fraction = unknown[some].mean()
    if card.task == "segmentation":
        yield (
            f"{fraction:.2%} of the pixels of {int(some.sum())} of {n} masks of {split} are "
            "ignored (-1, 255 or outside the field of view)"
        )
    else:
        count = int(unknown[some].sum())
        yield (
            f"{count} findings of {int(some.sum())} of {n} images of {split} are not known (-1) "
            "and not counted"
        )


def _inside(images: SizedImages, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixels of masks `(n, *size)` belong to their images, which may be smaller."""
    inside = np.zeros((len(images), *size), np.bool_)
    for which, part in enumerate(images.parts):
        rows = np.flatnonzero(images.part == which)
        inside[(rows, *corner(part.shape[1 : 1 + len(size)]))] = True
    return inside


def _absent(arrays: Arrays, card: DatasetCard, split: str) -> Iterator[str]:
    """Yield a note on the classes, findings or regions that a split lacks."""
    there = occurring(arrays, card)
    every = card.parts if card.task == "segmentation" else card.classes
    absent = [name for name in every if name not in there]
    if not absent:
        return
    listed = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
    if card.task == "segmentation" and not there:
        yield (
            f"no mask of {split} holds a region ({listed}): Dice says only whether any was called"
        )
    elif card.task == "segmentation":
        yield f"in no mask of {split}, and counted nowhere: {listed}"
    elif card.task == "multi_label":
        yield f"nowhere present in {split}, and left out of means over findings: {listed}"
    else:
        yield f"no image of {split} is of {listed}: left out of means over classes"


def _digests(arrays: Arrays) -> list[int]:
    return [hash(image.tobytes()) for chunk in arrays.chunks() for image in chunk]
