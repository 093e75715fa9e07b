"""A loaded dataset: splits of stored images with labels and ids, and batches of them in [0,1]."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import DataError

if TYPE_CHECKING:
    from robustbench_med.types import Batch

SplitName = Literal["train", "val", "test"]
UNLABELLED = -1
IGNORED = 255  # the same in stored masks, whose class ids are bytes
MAX_IDS = IGNORED  # classes that such bytes tell apart


@dataclass(frozen=True)
class Arrays:
    """One split as it is stored.

    Attributes:
        images: `(n, *s)` or `(n, *s, c)`, uint8 grey levels or colours 0..255, or float32 in [0,1].
        labels: `(n,)` int64 class ids, `(n, k)` 0/1 findings, or `(n, *s)` int16 masks of class
            ids; -1 = unlabelled.
        ids: `(n,)` str, unique within the split.
        patients: `(n,)` str, or None where images must be treated as independent.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int64] | NDArray[np.int16]
    ids: NDArray[np.character]
    patients: NDArray[np.character] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: NDArray[np.int64]) -> Arrays:
        """Return the given rows."""
        patients = None if self.patients is None else self.patients[rows]
        return Arrays(self.images[rows], self.labels[rows], self.ids[rows], patients)

    def fingerprint(self) -> str:
        """Return the SHA-256 of everything a score depends on."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels, self.ids, self.patients):
            if array is not None:
                digest.update(f"{array.shape}{array.dtype.kind}".encode())
                digest.update(
                    "\0".join(array).encode() if array.dtype.kind == "U" else array.tobytes()
                )
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A card with the images behind it; a split is read or drawn when first asked for."""

    card: DatasetCard
    read: Callable[[SplitName], Arrays]
    _splits: dict[SplitName, Arrays] = field(default_factory=dict)

    def arrays(self, split: SplitName) -> Arrays:
        """Return the stored arrays of a split.

        Raises:
            DataError: the split breaks the data contract or is empty.
        """
        if split not in self._splits:
            found = self.read(split)
            if self.card.task == "segmentation":
                found = replace(found, labels=mask_ids(found.labels))
            self._splits[split] = check(found, self.card, split)
        return self._splits[split]

    def batch(self, split: SplitName, *, n: int | None = None, seed: int = 0) -> Batch:
        """Return `n` labelled images of a split (None = all), drawn by `seed`, as one batch.

        Raises:
            DataError: no image of the split is labelled.
        """
        from robustbench_med.types import to_batch

        arrays = self.arrays(split)
        labels = arrays.labels.reshape(len(arrays), -1)
        labelled = (labels != UNLABELLED).any(1)  # an image without any label can't be scored
        if not labelled.any():
            raise DataError(f"{self.card.name} ({split}): expected labels, got -1 for every image")
        if not labelled.all():
            arrays = arrays.take(labelled.nonzero()[0])
        if n is not None and n < len(arrays):
            rows = np.random.default_rng(seed).permutation(len(arrays))[:n]
            arrays = arrays.take(np.sort(rows))
        return to_batch(arrays, channels=self.card.channels)


def mask_ids(masks: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Return masks as class ids, -1 where they are to be ignored: stored as 255, or as -1."""
    low, high = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    found: NDArray[np.int16] = np.clip(masks, low, high).astype(
        np.int16
    )  # what is out of range stays out of range
    found[found == IGNORED] = UNLABELLED
    return found


def check(arrays: Arrays, card: DatasetCard, split: str) -> Arrays:
    """Return `arrays` if they keep the card's contract.

    Raises:
        DataError: the rule that is broken, the value found and what to do.
    """
    where = f"{card.name} ({split})"
    n, k = len(arrays.images), len(card.classes)
    if n == 0:
        raise DataError(f"{where}: expected at least one image, got none")
    expected = (*card.size, card.channels) if card.channels > 1 else card.size
    if arrays.images.shape[1:] != expected:
        raise DataError(
            f"{where}: expected images of shape {expected}, got {arrays.images.shape[1:]}"
        )
    if arrays.images.dtype.kind == "f":
        if not np.isfinite(arrays.images).all():
            raise DataError(f"{where}: expected finite images, got NaN or Inf in some")
        low, high = arrays.images.min(), arrays.images.max()
        if low < 0 or high > 1:
            raise DataError(f"{where}: expected float images in [0,1], got {low:g}..{high:g}")
    shape = {"multi_label": (n, k), "segmentation": (n, *card.size)}.get(card.task, (n,))
    what, stored = ("masks", " or 255") if card.task == "segmentation" else ("labels", "")
    if arrays.labels.shape != shape:
        raise DataError(f"{where}: expected {what} of shape {shape}, got {arrays.labels.shape}")
    top = 1 if card.task == "multi_label" else k - 1
    least, most = int(arrays.labels.min()), int(arrays.labels.max())
    if least < UNLABELLED or most > top:
        raise DataError(
            f"{where}: expected {what} in 0..{top} (-1 = unlabelled{stored}), got {least}..{most}"
        )
    if len(np.unique(arrays.ids)) != n:
        raise DataError(
            f"{where}: expected one id an image, got {len(np.unique(arrays.ids))} for {n}"
        )
    return arrays
