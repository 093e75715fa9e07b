"""Load the dataset that a card file describes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.geometry import Geometry
from robustbench_med.datasets.own import OWN_FILE_NOTE
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.datasets.sources.decoded import decoded, fingerprint
from robustbench_med.datasets.sources.file_images import FileImages
from robustbench_med.datasets.sources.grid import check_grid, rounding_note
from robustbench_med.datasets.sources.index import Index, index_of
from robustbench_med.datasets.sources.mask_files import read_masks
from robustbench_med.datasets.sources.native import stored_type
from robustbench_med.datasets.sources.pixels import pixels_of
from robustbench_med.datasets.sources.placed import geometry_of
from robustbench_med.datasets.sources.refs import ImageRef, times
from robustbench_med.datasets.sources.spec import CardFile, read_card_file
from robustbench_med.errors import MissingSplitError
from robustbench_med.sized_images import SizedImages

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MOST_COMPARED = 2**26  # bytes; splits of more are not searched for common images


def load_card_file(path: Path) -> Dataset:
    """Return the dataset of a card file such as `mine.toml`.

    Raises:
        DataError: a file is missing or damaged, or labels, masks or splits are not what it states.
        SpecError: a setting of the card file is wrong.
    """
    return dataset_of(index_of(read_card_file(path)))


def dataset_of(index: Index) -> Dataset:
    """Return the dataset whose images have been listed."""
    card = card_of(index)
    present = tuple(split for split in SPLITS if split in set(index.splits))
    size = math.prod((*card.size, card.channels, len(index.entries)))
    return Dataset(
        card,
        partial(read_split, index),
        compared=present if size <= MOST_COMPARED else (),
        placed=partial(_placed, index),
    )


def _placed(index: Index, split: SplitName, name: str) -> Geometry | None:
    """Return where an image lies in the patient, at the size to which the reader brings it."""
    card_file = index.card_file
    for row in index.rows(split):
        if index.ids[row] == name:
            ref = index.entries[row].ref
            known = geometry_of(card_file.root, ref, card_file.source.format)
            size = ref.size if card_file.keeps_sizes else card_file.card.size
            return None if known is None else known.resized(ref.size, size)
    return None


def card_of(index: Index) -> DatasetCard:
    """Return the card of a card file, with notes on what the reader changes in the images."""
    card, source = index.card_file.card, index.card_file.source
    images = [entry.ref for entry in index.entries]
    if source.scale == "each" and "bit_depth" not in card.model_fields_set:
        stored_bits = 8 if all(ref.dtype == "uint8" for ref in images) else 16
        card = card.model_copy(update={"bit_depth": stored_bits})
    notes = [OWN_FILE_NOTE, *card.notes]
    resized = [ref for ref in images if ref.size != card.size]
    if index.card_file.keeps_sizes:
        count, ends = len({ref.size for ref in images}), (card.sizes[-1], card.sizes[0])
        listed = " to ".join(map(times, ends))
        different = f", {count} different sizes from {listed}" if count > 1 else ""
        notes.append(
            f"{len(images)} images keep their own size{different}: each is attacked as it is in "
            "its file, in batches of one size"
        )
    elif resized:
        smallest, largest = min(ref.size for ref in resized), max(ref.size for ref in resized)
        stored_sizes = " to ".join(dict.fromkeys((times(smallest), times(largest))))
        notes.append(
            f"{len(resized)} of {len(images)} images were resized from {stored_sizes} to "
            f"{times(card.size)} pixels, bilinearly (masks: nearest); the attacked image is the "
            "resized one"
        )
    for channels, count in sorted(Counter(ref.channels for ref in images).items()):
        if channels != card.channels:
            change = "made grey" if card.channels == 1 else f"repeated to {card.channels} channels"
            kind = "grey" if channels == 1 else f"of {channels} channels"
            notes.append(f"{count} of {len(images)} images are {kind} in their files and {change}")
    inverted = sum(("photometric", "MONOCHROME1") in ref.facts for ref in images)
    if inverted:
        notes.append(
            f"{inverted} of {len(images)} images are MONOCHROME1, bright where values are low: "
            "they were inverted"
        )
    if source.clip and card.native is not None:
        notes.append(f"values outside {card.native.text} were clipped to it")
    if card.native is not None:
        notes += _of_steps(card.native, images, str(index.card_file.path))
    if source.scale == "each":
        notes.append(
            "each image was scaled from its own lowest to its own highest value, and is rounded to "
            f"{card.bit_depth} bits of that range, which may be finer than its file"
        )
    if source.draw is not None and max(source.draw.fractions.values()) < 1:
        unit = "patient" if any(index.patients) else "image"
        notes.append(f"splits were drawn by {unit} with seed {source.draw.seed}")
    notes += index.remarks
    title = f"{card.title} (own data {index.code()})"
    return card.model_copy(update={"title": title, "notes": tuple(notes)})


def _images(card_file: CardFile, refs: Sequence[ImageRef]) -> RowFile | FileImages | SizedImages:
    """Return the images of files, decoded into the cache folder."""
    if not card_file.keeps_sizes:
        return _decoded(card_file, refs, card_file.card.size)
    sizes = [ref.size for ref in refs]
    if len(set(sizes)) == 1:
        return _decoded(card_file, refs, sizes[0])
    distinct = sorted(set(sizes), key=lambda size: (-math.prod(size), size))
    part = np.array([distinct.index(size) for size in sizes], np.int64)
    place = np.zeros(len(refs), np.int64)
    parts = []
    for which, size in enumerate(distinct):
        rows = np.flatnonzero(part == which)
        place[rows] = np.arange(len(rows))
        parts.append(_decoded(card_file, [refs[row] for row in rows.tolist()], size))
    return SizedImages(tuple(parts), part, place)


def _decoded(
    card_file: CardFile, refs: Sequence[ImageRef], size: tuple[int, ...]
) -> RowFile | FileImages:
    """Return the images of files at one size, decoded into the cache folder."""
    images = pixels_of(card_file, tuple(refs), size)
    order = [(ref.files, ref.frames) for ref in images.refs]
    files = dict.fromkeys(name for ref in images.refs for name in ref.files)
    key = fingerprint(images.root, files, (order, images.shape, repr(images.decode)))
    return decoded(images, key)


def _of_steps(native: NativeRange, images: Sequence[ImageRef], where: str) -> list[str]:
    """Return notes on the step of a card, where files have other values."""
    notes = [check_grid(native, images, where)]
    if stored_type(native).kind != "f":
        notes.append(rounding_note(native, images))
    return [note for note in notes if note]


def read_split(index: Index, split: SplitName) -> Arrays:
    """Return a split; its images stay in the cache folder.

    Raises:
        MissingSplitError: there is no image of the split.
        DataError: a file cannot be read, or a mask holds values that are no class.
    """
    rows, card = index.rows(split), index.card_file.card
    if not rows:
        raise MissingSplitError(
            f"{card.name} ({split}): expected images, got none: the card file has "
            f"{', '.join(dict.fromkeys(index.splits)) or 'no split'}"
        )
    refs = [index.entries[row].ref for row in rows]
    patients = np.array([index.patients[row] for row in rows], dtype=np.str_)
    if not any(index.patients):
        known = None
    else:
        alone = np.array([f"unknown-{split}-{row:06d}" for row in rows])
        known = np.where(patients == "", alone, patients)
    return Arrays(
        _images(index.card_file, refs),  # type: ignore[arg-type] # indexed by rows as arrays are
        read_masks(index, rows) if card.task == "segmentation" else index.labels[rows],
        np.array([index.ids[row] for row in rows], dtype=np.str_),
        known,
        index.subgroups(rows),
    )
