"""A dataset: its splits as stored arrays, and as batches of images in [0,1]."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.datasets.codes import MAX_IDS, UNLABELLED
from robustbench_med.datasets.file_state import remembered
from robustbench_med.datasets.labels import check_codes, integers, small_integers
from robustbench_med.datasets.masks import check_ignored, mask_ids
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.datasets.subgroups import check_subgroups
from robustbench_med.errors import BenchError, DataError
from robustbench_med.sized_images import SizedImages, runs

if TYPE_CHECKING:
    from robustbench_med.datasets.geometry import Geometry
    from robustbench_med.types import Batch

    StoredArray = NDArray[np.uint8] | NDArray[np.float32]
else:  # a RowFile or SizedImages, which are read by rows as an array is, is no NDArray
    StoredArray = Any

_log = logging.getLogger(__name__)

SplitName = Literal["train", "val", "test"]
_AT_ONCE = 64  # images that are looked at together
ROUNDING = 1e-6  # float images may leave [0,1] by this much; they are clipped


@dataclass(frozen=True)
class Arrays:
    """The stored arrays of one split.

    Attributes:
        images: `(n, *s)` or `(n, *s, c)`, uint8 grey levels or colours 0..255, or float32 in [0,1];
            if the card states `native`, any integers or floats in its unit. Large ones of a file
            stay there as a `RowFile`, whose floats may be of any precision; images that keep their
            own sizes are `SizedImages`.
        labels: `(n,)` int64 class ids, `(n, k)` 0/1 findings, or `(n, *s)` int16 masks of class
            ids; -1 = unlabelled. Masks of smaller images are filled up with -1.
        ids: `(n,)` str, unique within the split.
        patients: `(n,)` str, or None where images must be treated as independent.
        subgroups: by the name of a column, such as sex or site, the subgroup of each image, `(n,)`
            str; "" = not known.
    """

    images: StoredArray
    labels: NDArray[np.int64] | NDArray[np.int16]
    ids: NDArray[np.character]
    patients: NDArray[np.character] | None = None
    subgroups: Mapping[str, NDArray[np.character]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self) -> Iterator[StoredArray]:
        """Yield all images in their stored type, a few of one size at a time."""
        each = (
            self.images.part
            if isinstance(self.images, SizedImages)
            else np.zeros(len(self), np.int64)
        )
        for run in runs(each):
            for start in range(run.start, run.stop, _AT_ONCE):
                yield self.images[start : min(start + _AT_ONCE, run.stop)]

    def fingerprint(self) -> str:
        """Return the SHA-256 of everything that a score depends on.

        Images in a file are read once for each state of the file.
        """
        if isinstance(self.images, SizedImages):
            return self._of_sizes(self.images)
        if not isinstance(self.images, RowFile):
            return self._fingerprint()
        others = replace(self, images=np.empty((0, 1), np.uint8))._fingerprint()
        what = f"fingerprint of {self.images} and {others}"
        return remembered(self.images.path, what, self._fingerprint)

    def _of_sizes(self, images: SizedImages) -> str:
        """Return the hash of images that keep their own sizes: of each size, and of their order."""
        none = np.empty((len(self), 0), np.int64)
        parts = [
            Arrays(part, none[: len(part)], np.empty(0, np.str_)).fingerprint()
            for part in images.parts
        ]
        others = replace(self, images=images.part)._fingerprint()  # type: ignore[arg-type]
        return hashlib.sha256(" ".join([*parts, others]).encode()).hexdigest()

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        digest.update(f"{self.images.shape}{self.images.dtype.kind}".encode())
        for images in self.chunks():
            digest.update(images.tobytes())
        for array in (self.labels, self.ids, self.patients):
            if array is not None:
                digest.update(f"{array.shape}{array.dtype.kind}".encode())
                digest.update(
                    "\0".join(array).encode() if array.dtype.kind == "U" else array.tobytes()
                )
        for name, groups in sorted(self.subgroups.items()):
            digest.update("\0".join([name, *map(str, groups)]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A card and the images that it describes; a split is read or drawn when it is first used.

    Attributes:
        card: describes the data.
        read: returns a split.
        compared: splits that are searched for images and patients of the scored split.
        placed: returns where an image lies in the patient, by its split and its id; None if that is
            not known.
    """

    card: DatasetCard
    read: Callable[[SplitName], Arrays]
    _splits: dict[SplitName, Arrays] = field(default_factory=dict)
    compared: tuple[SplitName, ...] = ()
    placed: Callable[[SplitName, str], Geometry | None] = lambda split, name: None  # noqa: E731

    def arrays(self, split: SplitName) -> Arrays:
        """Return the stored arrays of a split.

        Raises:
            DataError: the split violates the data contract or is empty.
        """
        if split not in self._splits:
            self._splits[split] = check(self._read(split), self.card, split)
        return self._splits[split]

    def _read(self, split: SplitName) -> Arrays:
        where = f"{self.card.name} ({split})"
        try:
            arrays = self.read(split)
        except BenchError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            if self.vouched:  # a bug of our own reader must stay visible
                raise
            raise DataError(
                f"{where}: expected read(split) to return Arrays, got "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(arrays, Arrays):
            raise DataError(
                f"{where}: expected read(split) to return Arrays(images, labels, ids), got "
                f"{type(arrays).__name__}"
            )
        return arrays

    @property
    def vouched(self) -> bool:
        """Whether a shipped card guarantees the content, by a checksum or a drawing function."""
        return bool(self.card.function or self.card.md5 or self.card.sha256)

    def scored_on(self, split: SplitName, *, also: tuple[SplitName, ...] = ()) -> Dataset:
        """Return the dataset with the card under which a split is scored.

        The card lists only the regions that occur in some mask of the split: a region that is
        absent from all masks would count as perfect in every image. The notes describe what a
        reader must know about the split. Shipped data have the notes of their card alone.

        Args:
            split: the split to score.
            also: further splits that a threshold is chosen on; they must have content too.

        Raises:
            DataError: a split violates the data contract, is empty, or its images show nothing.
        """
        from robustbench_med.datasets import inspection

        arrays, card = self.arrays(split), self.card
        notes: list[str] = []
        if not self.vouched:
            notes += inspection.inspect(arrays, card, split)
            for other in also:
                if other != split:
                    notes += inspection.inspect(self.arrays(other), card, other)
            notes += self._shared(arrays, split)
        there = inspection.occurring(arrays, card)
        if card.task != "segmentation":
            absent = tuple(name for name in card.classes if name not in there)
            card = card if absent == card.absent else card.model_copy(update={"absent": absent})
        elif 0 < len(there) < len(card.parts):
            regions = {name: card.parts[name] for name in there}
            card = card.model_copy(update={"regions": regions})
        new = tuple(note for note in notes if note not in card.notes)
        if new:
            card = card.model_copy(update={"notes": (*card.notes, *new)})
        return self if card is self.card else replace(self, card=card)

    def log_notes(self) -> None:
        """Log the notes on a person's own data, each once per process."""
        if not self.vouched:
            _log_notes(self.card.name, self.card.notes)

    def _shared(self, arrays: Arrays, split: SplitName) -> list[str]:
        """Return notes on the images and patients that other splits share with this one.

        Splits that cannot be read are skipped.
        """
        from robustbench_med.datasets import inspection

        notes: list[str] = []
        for other in self.compared:
            if other != split:
                with suppress(DataError):  # not cached: a run sends cached splits to its workers
                    there = self._splits.get(other) or self._read(other)
                    notes += inspection.shared(arrays, there, (split, other))
        return notes

    def batch(
        self, split: SplitName, *, n: int | None = None, seed: int = 0, stored: bool = False
    ) -> Batch:
        """Return `n` labelled images of a split (None = all) as one batch; `seed` selects them.

        With `stored`, its images are `StoredImages`: they are read where rows are selected.

        Raises:
            DataError: no image of the split is labelled.
        """
        arrays = self.arrays(split)
        labels = arrays.labels.reshape(len(arrays), -1)
        labelled = (labels != UNLABELLED).any(1)  # an image without any label can't be scored
        if not labelled.any():
            raise DataError(f"{self.card.name} ({split}): expected labels, got -1 for every image")
        rows = labelled.nonzero()[0]
        if n is not None and n < len(rows):
            rows = rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:n])]
        channels, native = self.card.channels, self.card.native
        return to_batch(arrays, rows, channels=channels, native=native, stored=stored)

    def subgroups(
        self, split: SplitName, ids: NDArray[np.character]
    ) -> dict[str, NDArray[np.character]]:
        """Return the subgroup of the images with these ids, by the name of the column."""
        arrays = self.arrays(split)
        if not arrays.subgroups:
            return {}
        order = np.argsort(arrays.ids, kind="stable")
        rows = order[np.searchsorted(arrays.ids, ids, sorter=order)]
        return {name: groups[rows] for name, groups in arrays.subgroups.items()}

    def few_images(self, split: SplitName, n: int = 4) -> Any:  # noqa: ANN401 - a tensor
        """Return a few labelled images of a split, `(n, c, *s)` in [0,1]."""
        from robustbench_med.stored_images import largest

        x = self.batch(split, n=n, stored=True).x
        return x[largest(x, n)]


_logged: set[tuple[str, str]] = set()


def _log_notes(name: str, notes: Iterable[str]) -> None:
    """Log notes, each once per process."""
    from robustbench_med.datasets.own import OWN_FILE_NOTE

    for note in notes:
        if note != OWN_FILE_NOTE and (name, note) not in _logged:
            _logged.add((name, note))
            _log.warning("%s: %s", name, note)


def to_batch(
    arrays: Arrays,
    rows: NDArray[np.int64],
    *,
    channels: int = 1,
    native: NativeRange | None = None,
    stored: bool = False,
) -> Batch:
    """Return some images as float32 in [0,1], channels first.

    Args:
        arrays: one split; several channels are the last axis of its images.
        rows: which images of the split.
        channels: number of channels of an image.
        native: the stored values behind 0 and 1, where the card states them.
        stored: whether images, and masks as int16, stay as they are stored until rows are read.
    """
    import torch

    from robustbench_med.stored_images import StoredImages
    from robustbench_med.types import Batch

    images = StoredImages(arrays.images, rows, channels, native=native)
    labels = torch.from_numpy(arrays.labels[rows])
    y = labels if stored and labels.dtype == torch.int16 else labels.long()
    patients = None if arrays.patients is None else arrays.patients[rows]
    if not stored and isinstance(arrays.images, SizedImages):
        raise DataError(
            "expected images of one size, as a tensor holds them, got images that keep their own: "
            'state size = [h, w] in place of size = "native" in the card file'
        )
    x: Any = images if stored else images[:]
    return Batch(x, y, arrays.ids[rows], patients)


def check(arrays: Arrays, card: DatasetCard, split: str) -> Arrays:
    """Return `arrays` if they fulfil the card's contract; labels as integers, masks as class ids.

    Raises:
        DataError: a rule is violated; the message states the rule, the value and a remedy.
    """
    where = f"{card.name} ({split})"
    n = len(arrays.images)
    if n == 0:
        raise DataError(f"{where}: expected at least one image, got none")
    images = _images(arrays, card, where)
    labels = _labels(arrays.labels, card, where, n)
    if len(arrays.ids) != n or len(np.unique(arrays.ids)) != n:
        raise DataError(
            f"{where}: expected one id per image, got {len(np.unique(arrays.ids))} for {n}"
        )
    if arrays.patients is not None and len(arrays.patients) != n:
        raise DataError(
            f"{where}: expected one patient per image, got {len(arrays.patients)} for {n}"
        )
    check_subgroups(arrays.subgroups, n, arrays.patients, where)
    if images is arrays.images and labels is arrays.labels:
        return arrays
    return replace(arrays, images=images, labels=labels)


def _images(arrays: Arrays, card: DatasetCard, where: str) -> StoredArray:
    images = arrays.images
    expected = (*card.size, card.channels) if card.channels > 1 else card.size
    if card.sizes:
        expected = (*images.shape[1 : 1 + len(card.size)], *expected[len(card.size) :])
    if images.shape[1:] != expected:
        raise DataError(f"{where}: expected images of shape {expected}, got {images.shape[1:]}")
    if card.native is not None:
        return _native_images(arrays, card.native, where)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(f"{where}: expected uint8 or float images in [0,1], got {images.dtype}")
    ends = np.array([(chunk.min(), chunk.max()) for chunk in arrays.chunks()])
    if not np.isfinite(ends).all():
        raise DataError(f"{where}: expected finite images, got NaN or Inf in some")
    low, high = ends[:, 0].min(), ends[:, 1].max()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(
            f"{where}: expected float images in [0,1], got {low!s}..{high!s}; "
            f"{_way(float(low), float(high))}"
        )
    if not isinstance(images, np.ndarray):  # rows that stay in files
        return images
    if low < 0 or high > 1:
        images = images.clip(0, 1)
    return images if images.dtype == np.float32 else images.astype(np.float32)


def _native_images(arrays: Arrays, native: NativeRange, where: str) -> StoredArray:
    """Return images in their own unit, if all of them lie in its range.

    Raises:
        DataError: a value is NaN or outside the range, or the type is not one of numbers.
    """
    images = arrays.images
    if images.dtype.kind not in "uif":
        raise DataError(
            f"{where}: expected integers or floats of {native.unit}, got {images.dtype}"
        )
    ends = [(float(chunk.min()), float(chunk.max())) for chunk in arrays.chunks()]
    low, high = np.array(ends).min(0)[0], np.array(ends).max(0)[1]
    if not np.isfinite([low, high]).all():
        raise DataError(f"{where}: expected finite images, got NaN or Inf in some")
    # a float may leave the range by a rounding error, and is clipped
    slack = ROUNDING * (native.high - native.low) if images.dtype.kind == "f" else 0
    if low < native.low - slack or high > native.high + slack:
        raise DataError(
            f"{where}: expected values in {native.text}, the range that the card states, got "
            f"{low:g}..{high:g}: state a wider range, or clip the images to it"
        )
    return images


def _way(low: float, high: float) -> str:
    """Return advice on how to bring images of a range into [0,1]."""
    if low > -0.5 and high < 1.5:
        return "clip the images if a filter or resampling has left values outside"
    if low >= 0 and high <= 255:
        return "divide grey levels 0..255 by 255, or save them as uint8"
    if low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return "divide images in [-1,1] by 2 and add 0.5; the model applies its own mean and std"
    if low < 0 and high < 50:
        return (
            "standardised images have lost their range: save them before mean and std are applied, "
            "which belong to the model"
        )
    return "rescale all images by one range, such as a window of HU, and clip them to it"


def _labels(
    stored: NDArray[Any], card: DatasetCard, where: str, n: int
) -> NDArray[np.int64] | NDArray[np.int16]:
    k, masks = len(card.classes), card.task == "segmentation"
    size = stored.shape[1:] if card.sizes else card.size
    shape = {"multi_label": (n, k), "segmentation": (n, *size)}.get(card.task, (n,))
    what, code = ("masks", " or 255") if masks else ("labels", "")
    if stored.shape != shape:
        raise DataError(f"{where}: expected {what} of shape {shape}, got {stored.shape}")
    labels: NDArray[np.int64] | NDArray[np.int16] = stored
    if not masks:
        labels = integers(stored, f"{where}: labels")
    elif stored.dtype != np.int16 or (stored > MAX_IDS - 1).any() or (stored < UNLABELLED).any():
        check_ignored(ids := small_integers(stored, f"{where}: masks"), f"{where}: masks")
        labels = mask_ids(ids)
    top = 1 if card.task == "multi_label" else k - 1
    least, most = int(labels.min()), int(labels.max())
    if least < UNLABELLED or most > top:
        raise DataError(
            f"{where}: expected {what} in 0..{top} (-1 = unlabelled{code}), got {least}..{most}"
        )
    check_codes(labels, 2 if card.task == "multi_label" else k, where, masks=masks)
    return labels
