"""The index of a card file: its images with labels, splits, ids and patients, not yet decoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.dataset import SplitName
from robustbench_med.datasets.sources import entries as entries_of
from robustbench_med.datasets.sources.entries import Entry
from robustbench_med.datasets.sources.readers import READERS, scan
from robustbench_med.datasets.sources.refs import ImageRef, walk
from robustbench_med.datasets.sources.spec import CardFile
from robustbench_med.errors import DataError

_STATED = 16  # sizes that the card states


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
        remarks: what looks wrong in the headers of the files.
    """

    card_file: CardFile
    entries: list[Entry]
    labels: NDArray[np.int64]
    splits: list[SplitName]
    ids: list[str]
    patients: list[str]
    remarks: list[str]

    def rows(self, split: SplitName) -> list[int]:
        """Return the places of a split's images."""
        return [row for row, name in enumerate(self.splits) if name == split]

    def subgroups(self, rows: Sequence[int]) -> dict[str, NDArray[np.character]]:
        """Return the subgroup of some images by the name of the column."""
        columns = self.card_file.source.columns
        names = () if columns is None else columns.groups
        return {
            name: np.array([self.entries[row].groups[place] for row in rows], dtype=np.str_)
            for place, name in enumerate(names)
        }

    def code(self) -> str:
        """Return 6 hexadecimal digits that depend on the data and not on where they are."""
        card = self.card_file.card.model_dump(mode="json", exclude={"title", "notes"})
        digest = hashlib.sha256(repr(sorted(card.items())).encode())
        for row, entry in enumerate(self.entries):
            files = dict.fromkeys(
                (*entry.ref.every_file, *(entry.mask.files if entry.mask else ()))
            )
            sizes = [(self.card_file.root / name).stat().st_size for name in files]
            label = self.labels[row].tolist()
            line = (self.ids[row], self.splits[row], self.patients[row], label, sizes)
            digest.update(repr(line).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:6]


def index_of(card_file: CardFile) -> Index:
    """Return the index of a card file.

    Raises:
        DataError: a file is missing or damaged, or labels or splits are not what the card states.
    """
    source, root = card_file.source, card_file.root
    reader = READERS[source.format]
    names = [name for name in walk(root) if source.reads(name) and reader.accepts(root, name)]
    if not names:
        raise DataError(f"{root}: expected {source.format} files below the folder, got none")
    listing = scan(
        root,
        names,
        source.format,
        volumes=source.images_as == "volumes",
        by_study=source.by_study,
    )
    masks = [ref for ref in listing.refs if entries_of.is_mask(ref.files[0], source)]
    images = [ref for ref in listing.refs if not entries_of.is_mask(ref.files[0], source)]
    entries, remarks = _entries(images, masks, card_file)
    if card_file.keeps_sizes:
        card_file = _with_sizes(card_file, [entry.ref.size for entry in entries])
    labels, truth = _labels(entries, card_file)
    return Index(
        card_file,
        entries,
        labels,
        entries_of.splits_of(entries, truth, source, str(root)),
        _ids(entries, card_file),
        entries_of.pseudonyms(entries),
        [*listing.remarks, *remarks],
    )


def _entries(
    images: Sequence[ImageRef], masks: Sequence[ImageRef], card_file: CardFile
) -> tuple[list[Entry], list[str]]:
    """Return the entries, and remarks on images that are left out."""
    source, root = card_file.source, card_file.root
    remarks = []
    if source.labels == "none":
        raise DataError(
            f"{root}: expected labels or masks, got neither: write a CSV table with a column of "
            "file names and one of labels into the folder, and inspect it again"
        )
    if source.labels == "folders":
        entries = entries_of.of_folders(images, source, root)
    elif source.columns is not None:
        entries = entries_of.of_table(images, masks or images, source, source.columns, root)
    elif source.labels == "dicom_seg":
        entries = [Entry(ref, mask=ref, patient=ref.patient) for ref in images if ref.mask]
        if len(entries) < len(images):
            count = len(images) - len(entries)
            remarks.append(f"{count} of {len(images)} images have no DICOM-SEG: they are left out")
        if not entries:
            raise DataError(f"{root}: expected DICOM-SEG files that refer to images, got none")
    else:
        entries = entries_of.of_masks(images, masks, source, root)
    return entries_of.with_patients(entries, source), remarks


def _with_sizes(card_file: CardFile, sizes: Sequence[tuple[int, ...]]) -> CardFile:
    """Return a card file whose card states the sizes that its images keep.

    Raises:
        DataError: some images have two axes and some have three.
    """
    distinct = sorted(set(sizes), key=lambda size: (-math.prod(size), size))
    axes = sorted({len(size) for size in distinct})
    if len(axes) > 1:
        raise DataError(
            f"{card_file.root}: expected images of two axes or of three, got both: name the others "
            "in `skip` of [source]"
        )
    # the largest, the smallest, and some between them
    places = np.unique(np.linspace(0, len(distinct) - 1, _STATED).round().astype(int))
    stated = tuple(distinct[place] for place in places.tolist())
    card = card_file.card.model_copy(update={"size": stated[0], "sizes": stated})
    return replace(card_file, card=card)


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
        entry.ref.files[0] + (f"#{entry.ref.frames[0]}" if entry.ref.frames else "")
        for entry in entries
    ]
