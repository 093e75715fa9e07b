"""Load the dataset that a card file describes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.codes import IGNORED, UNLABELLED
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.masks import check_ignored
from robustbench_med.datasets.own import OWN_FILE_NOTE
from robustbench_med.datasets.sources import entries as entries_of
from robustbench_med.datasets.sources import pictures
from robustbench_med.datasets.sources.decoded import decoded, fingerprint, read_refs, store_refs
from robustbench_med.datasets.sources.entries import Entry
from robustbench_med.datasets.sources.file_images import FileImages
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    UnreadableError,
    check_link,
    refuse_unreadable,
    walk,
)
from robustbench_med.datasets.sources.resize import resize, resize_mask
from robustbench_med.datasets.sources.spec import CardFile, read_card_file
from robustbench_med.errors import DataError, MissingSplitError

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
MOST_COMPARED = 2**26  # bytes; splits of more are not searched for common images
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue: ITU-R BT.601


@dataclass(frozen=True)
class Index:
    """All images of a card file, not yet decoded.

    Attributes:
        card_file: describes the data.
        entries: the images.
        labels: `(n,)` class ids or `(n, k)` findings; of masks `(n,)` zeros.
        splits: the split of each image.
        ids: a unique name of each image, as records have it.
        patients: a pseudonym of each image's patient; "" = not known.
    """

    card_file: CardFile
    entries: list[Entry]
    labels: NDArray[np.int64]
    splits: list[SplitName]
    ids: list[str]
    patients: list[str]

    def rows(self, split: SplitName) -> list[int]:
        """Return the places of a split's images."""
        return [row for row, name in enumerate(self.splits) if name == split]

    def code(self) -> str:
        """Return 6 hexadecimal digits that depend on the data and not on where they are."""
        card = self.card_file.card.model_dump(mode="json", exclude={"title", "notes"})
        digest = hashlib.sha256(repr(sorted(card.items())).encode())
        for row, entry in enumerate(self.entries):
            files = (*entry.ref.files, *(entry.mask.files if entry.mask else ()))
            sizes = [(self.card_file.root / name).stat().st_size for name in files]
            label = self.labels[row].tolist()
            line = (self.ids[row], self.splits[row], self.patients[row], label, sizes)
            digest.update(repr(line).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:6]


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
    )


def index_of(card_file: CardFile) -> Index:
    """Return all images of a card file with their labels, splits, ids and patients."""
    source, root = card_file.source, card_file.root
    names = [name for name in walk(root) if name not in source.skip and pictures.is_picture(name)]
    if not names:
        raise DataError(f"{root}: expected pictures below the folder, got none")
    refs = scan(root, names)
    masks = [ref for ref in refs if entries_of.is_mask(ref.files[0], source)]
    images = [ref for ref in refs if not entries_of.is_mask(ref.files[0], source)]
    entries = _entries(images, masks, card_file)
    labels, truth = _labels(entries, card_file)
    return Index(
        card_file,
        entries,
        labels,
        entries_of.splits_of(entries, truth, source, str(root)),
        _ids(entries, card_file),
        entries_of.pseudonyms(entries),
    )


def scan(root: Path, names: Sequence[str]) -> list[ImageRef]:
    """Return references to files from their headers, which are looked at once.

    Raises:
        DataError: headers cannot be read; the message names these files.
    """
    key = fingerprint(root, names, ("headers",))
    stored = read_refs(key)
    if stored is not None:
        return stored
    refs, failures = [], []
    with pictures.quiet():
        for name in names:
            try:
                check_link(root, name)
                refs.append(pictures.head(root, name))
            except UnreadableError as error:
                failures.append((name, str(error)))
    refuse_unreadable(failures, len(names), root)
    store_refs(key, refs)
    return refs


def card_of(index: Index) -> DatasetCard:
    """Return the card of a card file, with notes on what the reader changes in the images."""
    card = index.card_file.card
    images = [entry.ref for entry in index.entries]
    notes = [OWN_FILE_NOTE, *card.notes]
    resized = [ref for ref in images if ref.size != card.size]
    if resized:
        smallest, largest = min(ref.size for ref in resized), max(ref.size for ref in resized)
        stored_sizes = " to ".join(dict.fromkeys((_times(smallest), _times(largest))))
        notes.append(
            f"{len(resized)} of {len(images)} images were resized from {stored_sizes} to "
            f"{_times(card.size)} pixels, bilinearly (masks: nearest); the attacked image is the "
            "resized one"
        )
    for channels, count in sorted(Counter(ref.channels for ref in images).items()):
        if channels != card.channels:
            change = "made grey" if card.channels == 1 else f"repeated to {card.channels} channels"
            kind = "grey" if channels == 1 else f"of {channels} channels"
            notes.append(f"{count} of {len(images)} images are {kind} in their files and {change}")
    if index.card_file.source.draw is not None:
        draw = index.card_file.source.draw
        unit = "patient" if any(index.patients) else "image"
        notes.append(f"splits were drawn by {unit} with seed {draw.seed}")
    title = f"{card.title} (own data {index.code()})"
    return card.model_copy(update={"title": title, "notes": tuple(notes)})


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
    refs = tuple(index.entries[row].ref for row in rows)
    images = file_images(index.card_file, refs)
    files = [name for ref in refs for name in ref.files]
    key = fingerprint(images.root, files, (images.shape, str(images.dtype)))
    patients = np.array([index.patients[row] for row in rows], dtype=np.str_)
    if not any(index.patients):
        known = None
    else:
        alone = np.array([f"unknown-{split}-{row:06d}" for row in rows])
        known = np.where(patients == "", alone, patients)
    return Arrays(
        decoded(images, key),  # type: ignore[arg-type] # indexed by rows as an array is
        _masks(index, rows) if card.task == "segmentation" else index.labels[rows],
        np.array([index.ids[row] for row in rows], dtype=np.str_),
        known,
    )


def file_images(card_file: CardFile, refs: tuple[ImageRef, ...]) -> FileImages:
    """Return images as one array of the size and channels that the card states."""
    card = card_file.card
    shape = card.size if card.channels == 1 else (*card.size, card.channels)
    dtypes = {ref.dtype for ref in refs}
    if dtypes != {"uint8"}:
        raise DataError(
            f"{card_file.root}: expected pictures of 8 bits, got {', '.join(sorted(dtypes))}"
        )
    decode = partial(_decode, size=card.size, channels=card.channels)
    return FileImages(card_file.root, refs, (len(refs), *shape), np.dtype(np.uint8), decode)


def _decode(root: Path, ref: ImageRef, *, size: tuple[int, ...], channels: int) -> NDArray[Any]:
    values = resize(pictures.decode(root, ref), size)
    if ref.channels == channels:
        return values
    if channels == 1:
        equal = bool((values == values[..., :1]).all())
        grey = values[..., 0] if equal else np.rint(values.astype(np.float32) @ _LUMA)
        return grey.astype(values.dtype)
    if ref.channels == 1:
        return np.repeat(values[..., None], channels, -1)
    raise UnreadableError(f"it has {ref.channels} channels; the card states {channels}")


def _entries(
    images: Sequence[ImageRef], masks: Sequence[ImageRef], card_file: CardFile
) -> list[Entry]:
    source, root = card_file.source, card_file.root
    if source.labels == "none":
        raise DataError(
            f"{root}: expected labels or masks, got neither: write a CSV table with a column of "
            "file names and one of labels into the folder, and inspect it again"
        )
    if source.labels == "folders":
        entries = entries_of.of_folders(images, source, root)
    elif source.columns is not None:
        entries = entries_of.of_table(images, masks or images, source, source.columns, root)
    else:
        entries = entries_of.of_masks(images, masks, source, root)
    return entries_of.with_patients(entries, source)


def _labels(
    entries: list[Entry], card_file: CardFile
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels, and `(n, k)` whether an image is of a class or has a finding."""
    if card_file.card.task == "segmentation":
        missing = [entry.ref.files[0] for entry in entries if entry.mask is None]
        if missing:
            raise DataError(
                f"{card_file.root}: expected a mask for each image, got none for {missing[0]}"
            )
        zeros = np.zeros(len(entries), np.int64)
        return zeros, zeros[:, None]
    labels = entries_of.labels_of(entries, card_file)
    if labels.ndim == 2:
        return labels, (labels == 1).astype(np.int64)
    return labels, (labels[:, None] == np.arange(len(card_file.card.classes))).astype(np.int64)


def _ids(entries: Sequence[Entry], card_file: CardFile) -> list[str]:
    if card_file.source.ids == "number":
        return [f"image-{row:06d}" for row in range(len(entries))]
    return [
        entry.ref.files[0] + ("" if entry.ref.frame is None else f"#{entry.ref.frame}")
        for entry in entries
    ]


def _masks(index: Index, rows: Sequence[int]) -> NDArray[np.int16]:
    """Return masks as class ids; a pixel of 255 that is no class is ignored."""
    card, root = index.card_file.card, index.card_file.root
    values = index.card_file.source.mask_values
    masks = np.empty((len(rows), *card.size), np.int16)
    failures: list[tuple[str, str]] = []
    with pictures.quiet():
        for place, row in enumerate(rows):
            ref, mask = index.entries[row].ref, index.entries[row].mask
            if mask is None:
                continue  # `_labels` refuses such data
            try:
                stored = pictures.decode_mask(root, mask)
                if stored.shape != ref.size:
                    raise UnreadableError(
                        f"its size is {_times(stored.shape)}, its image's {_times(ref.size)}"
                    )
                masks[place] = resize_mask(class_ids(stored, values, len(card.classes)), card.size)
            except UnreadableError as error:
                failures.append((mask.files[0], str(error)))
    refuse_unreadable(failures, len(rows), root)
    if not values:
        _check_ignored(masks, root)
    return masks


def _check_ignored(masks: NDArray[np.int16], root: Path) -> None:
    """Refuse masks that seem to store a lesion as 255, unless `mask_values` states it."""
    try:
        check_ignored(np.where(masks == UNLABELLED, IGNORED, masks), f"{root}: masks")
    except DataError as error:
        raise DataError(f"{error}, or state mask_values = [0, 255] in [source]") from None


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


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
