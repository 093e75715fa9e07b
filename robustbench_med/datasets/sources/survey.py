"""Survey a dataset: what a person checks before it is used, as lines of a name and a text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets import inspection
from robustbench_med.datasets.codes import UNLABELLED
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.sources.draft import Draft
from robustbench_med.datasets.sources.index import Index
from robustbench_med.datasets.sources.load import SPLITS
from robustbench_med.datasets.sources.refs import times

Line = tuple[str, str]
_SHOWN = 8


def of_files(draft: Draft) -> Iterator[Line]:
    """Yield what the headers of the files say."""
    refs = draft.refs
    kinds = Counter(PurePosixPath(file).suffix.lower() for ref in refs for file in ref.files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN))
    count = len(draft.mask_refs) or len({ref.mask for ref in refs} - {""})
    masks = f" and {count} masks" if count else ""
    yield "files", f"{len(refs)} images{masks} ({listed})"
    yield "modality", str(draft.card.get("modality", "not stated"))
    sizes = Counter(ref.size for ref in refs)
    common = [f"{times(size)} ({count})" for size, count in sizes.most_common(_SHOWN)]
    more = f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else ""
    yield "size", (times(refs[0].size) if len(sizes) == 1 else ", ".join(common) + more)
    channels = Counter(ref.channels for ref in refs)
    yield (
        "channels",
        ", ".join(
            f"{c}" if len(channels) == 1 else f"{c} ({n})" for c, n in sorted(channels.items())
        ),
    )
    for key in dict.fromkeys(key for ref in refs for key, _ in ref.facts if key != "modality"):
        texts = Counter(text for ref in refs for name, text in ref.facts if name == key)
        counts = [f"{text} ({n})" for text, n in texts.most_common(_SHOWN)]
        yield key, next(iter(texts)) if len(texts) == 1 else ", ".join(counts)
    if draft.ends is not None:
        yield "stored", f"values {draft.ends[0]:g}..{draft.ends[1]:g}"
    spacings = Counter(ref.spacing for ref in refs)
    if set(spacings) == {None}:
        yield "spacing", "not stated"
    else:
        listed = ", ".join(
            "not stated" if mm is None else " x ".join(f"{side:g}" for side in mm)
            for mm, _ in spacings.most_common(_SHOWN)
        )
        yield "spacing", f"{listed} mm"


def of_splits(dataset: Dataset, splits: Sequence[SplitName]) -> Iterator[Line]:
    """Yield the images, classes and patients of each split, and the range of all values."""
    card = dataset.card
    for split in splits:
        arrays = dataset.arrays(split)
        yield split, f"{len(arrays)} images: {_counts(arrays, card)}{_patients(arrays)}"
    low, high = _range(dataset, splits)
    unit = "" if card.native is None else f" {card.native.unit}, in {card.native.text}"
    yield "values", f"{low:g}..{high:g}{unit}"


def of_dataset(dataset: Dataset, index: Index) -> Iterator[Line]:
    """Yield what splits, labels and pixels say; every image is decoded.

    Raises:
        DataError: an image cannot be read, or breaks the data contract.
    """
    yield "classes", f"{', '.join(dataset.card.classes)}, in this order of the model's outputs"
    yield from of_splits(dataset, [split for split in SPLITS if split in set(index.splits)])
    patients = {name for name in index.patients if name}
    yield (
        "patients",
        (
            f"{len(patients)}, {sum(not name for name in index.patients)} images of unknown patient"
            if patients
            else "not known: each image counts as a patient of its own"
        ),
    )


def warnings_of(dataset: Dataset, index: Index) -> Iterator[str]:
    """Yield what looks wrong and may still be right."""
    present = [split for split in SPLITS if split in set(index.splits)]
    for split in present:
        yield from inspection.inspect(dataset.arrays(split), dataset.card, split)
    yield from _copies(dataset, index, present)
    owners: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(index.patients, index.splits, strict=True):
        if patient:
            owners[patient].add(split)
    shared = sum(len(splits) > 1 for splits in owners.values())
    if shared:
        yield (
            f"{shared} of {len(owners)} patients are in several splits: clean scores are too good; "
            "[source.draw] in place of split_names divides by patient"
        )


def _copies(dataset: Dataset, index: Index, splits: list[SplitName]) -> Iterator[str]:
    """Yield copies of images across splits, and copies under different labels."""
    places: dict[int, list[int]] = defaultdict(list)
    for split in splits:
        rows = index.rows(split)
        row = 0
        for chunk in dataset.arrays(split).chunks():
            for image in chunk:
                places[hash(image.tobytes())].append(rows[row])
                row += 1
    copies = [rows for rows in places.values() if len(rows) > 1]
    across = [rows for rows in copies if len({index.splits[row] for row in rows}) > 1]
    if across:
        files = ", ".join(index.entries[row].ref.files[0] for row in across[0][:3])
        yield f"{len(across)} images have copies in another split, e.g. {files}"
    if dataset.card.task == "segmentation":
        return
    differing = [
        rows for rows in copies if len({str(index.labels[row].tolist()) for row in rows}) > 1
    ]
    if differing:
        files = ", ".join(index.entries[row].ref.files[0] for row in differing[0][:3])
        yield f"{len(differing)} images stand under different labels, e.g. {files}"


def _counts(arrays: Arrays, card: DatasetCard) -> str:
    labels = arrays.labels
    if card.task == "segmentation":
        counts = {
            name: int(np.isin(labels, ids).reshape(len(labels), -1).any(1).sum())
            for name, ids in card.parts.items()
        }
    elif card.task == "multi_label":
        counts = dict(zip(card.classes, (labels == 1).sum(0).tolist(), strict=True))
    else:
        counts = {name: int((labels == k).sum()) for k, name in enumerate(card.classes)}
    unknown = int((labels == UNLABELLED).reshape(len(labels), -1).all(1).sum())
    shown = [f"{name} {count}" for name, count in list(counts.items())[:_SHOWN]]
    more = [f"{len(counts) - _SHOWN} more"] if len(counts) > _SHOWN else []
    return ", ".join([*shown, *more, *([f"not known {unknown}"] if unknown else [])])


def _patients(arrays: Arrays) -> str:
    if arrays.patients is None:
        return ""
    count = len(set(arrays.patients.tolist()))
    return f"; {count} patient{'s' if count > 1 else ''}"


def _range(dataset: Dataset, splits: Sequence[SplitName]) -> tuple[float, float]:
    ends = [
        (float(chunk.min()), float(chunk.max()))
        for split in splits
        for chunk in dataset.arrays(split).chunks()
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)
