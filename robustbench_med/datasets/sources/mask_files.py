"""Read the masks of a split as class ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.codes import IGNORED, UNLABELLED
from robustbench_med.datasets.labels import small_integers
from robustbench_med.datasets.masks import check_ignored
from robustbench_med.datasets.sources import nifti
from robustbench_med.datasets.sources.index import Index
from robustbench_med.datasets.sources.pictures import quiet
from robustbench_med.datasets.sources.readers import READERS
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    UnreadableError,
    check_values,
    refuse_unreadable,
    times,
)
from robustbench_med.datasets.sources.resize import resize_mask
from robustbench_med.datasets.sources.spec import CardFile
from robustbench_med.errors import DataError
from robustbench_med.sized_images import corner


def read_masks(index: Index, rows: Sequence[int]) -> NDArray[np.int16]:
    """Return masks as class ids; a pixel of 255 that is no class is ignored."""
    card, root = index.card_file.card, index.card_file.root
    values = index.card_file.source.mask_values
    size = _canvas([index.entries[row].ref for row in rows], index.card_file)
    masks = np.full((len(rows), *size), UNLABELLED, np.int16)
    failures: list[tuple[str, str]] = []
    decode = READERS[index.card_file.source.format].decode_mask
    with quiet():
        for place, row in enumerate(rows):
            ref, mask = index.entries[row].ref, index.entries[row].mask
            if mask is None:
                continue  # `_labels` refuses such data
            try:
                stored = _stored_ids(decode(root, mask), mask)
                if stored.shape != ref.size:
                    raise UnreadableError(
                        f"its size is {times(stored.shape)}, its image's {times(ref.size)}"
                    )
                if index.card_file.source.format == "nifti" and not nifti.same_grid(
                    root, ref, mask
                ):
                    raise UnreadableError("its affine is not that of its image")
                ids = class_ids(stored, values, len(card.classes))
                ids = ids if index.card_file.keeps_sizes else resize_mask(ids, card.size)
                masks[(place, *corner(ids.shape))] = ids
            except UnreadableError as error:
                failures.append((mask.files[0], str(error)))
    refuse_unreadable(failures, len(rows), root)
    if not values:
        sizes = [index.entries[row].ref.size for row in rows] if index.card_file.keeps_sizes else []
        _check_ignored(masks, root, sizes)
    return masks


def _canvas(refs: Sequence[ImageRef], card_file: CardFile) -> tuple[int, ...]:
    """Return the size that holds every mask; pixels outside of a smaller image are ignored."""
    if not card_file.keeps_sizes:
        return card_file.card.size
    return tuple(map(max, zip(*(ref.size for ref in refs), strict=True)))


def _check_ignored(masks: NDArray[np.int16], root: Path, sizes: Sequence[tuple[int, ...]]) -> None:
    """Refuse masks that seem to store a lesion as 255, unless `mask_values` states it.

    Args:
        masks: class ids, -1 where 255 was stored.
        root: the folder of the data.
        sizes: the size of each mask where images keep their own, outside of which all is -1.
    """
    stored = np.where(masks == UNLABELLED, IGNORED, masks)
    for place, size in enumerate(sizes):
        inside = np.zeros(masks.shape[1:], bool)
        inside[corner(size)] = True
        stored[place, ~inside] = UNLABELLED
    try:
        check_ignored(stored, f"{root}: masks")
    except DataError as error:
        raise DataError(f"{error}, or state mask_values = [0, 255] in [source]") from None


def _stored_ids(values: NDArray[Any], mask: ImageRef) -> NDArray[Any]:
    """Return the values of a mask as integers.

    Raises:
        UnreadableError: some are NaN, infinite or fractions.
    """
    check_values(values)
    try:
        return small_integers(values, mask.files[0])
    except DataError:
        raise UnreadableError("this mask holds fractions: save one class id per pixel") from None


def class_ids(stored: NDArray[Any], values: Sequence[int], k: int) -> NDArray[np.int16]:
    """Return the class of each stored value of a mask; 255 that is no class becomes -1, ignored.

    Args:
        stored: a mask.
        values: the stored value of each class; empty = the classes are stored as 0, 1, ...
        k: number of classes.

    Raises:
        UnreadableError: there is another value.
    """
    values = values or range(k)
    ids = np.full(stored.shape, UNLABELLED, np.int16)
    known = stored == IGNORED
    for class_id, value in enumerate(values):
        inside = stored == value
        ids[inside] = class_id
        known |= inside
    if not known.all():
        others = np.unique(stored[~known])
        listed = ", ".join(f"{value:g}" for value in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        smeared = "; a mask saved as JPEG is smeared: save it as PNG" if len(others) > 5 else ""
        raise UnreadableError(
            f"this mask holds {listed}{more}, which are no classes: state the stored value of each "
            f"class as mask_values in [source]{smeared}"
        )
    return ids
