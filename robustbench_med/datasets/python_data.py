"""Datasets that a script passes as objects: map-style ones of torch, MAITE and Hugging Face.

Each item is read once, into a temporary row file; then the bench reads rows of it.
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.codes import UNLABELLED
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.labels import check_numbering, from_one_hot, integers, one_hot_rows
from robustbench_med.datasets.masks import check_background
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.errors import DataError, MissingSplitError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
NOTE = "a dataset that was passed as a Python object"
_CHANNELS = (1, 3, 4)
_KEYS = ("label", "target", "labels", "mask", "seg", "y")  # of an item that is a dict


class Item(NamedTuple):
    """One item: its image with channels last, its label or mask, and its name if it has one."""

    image: NDArray[Any]
    truth: NDArray[Any]
    name: str


@runtime_checkable
class MapStyle(Protocol):
    """A dataset with items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...  # noqa: ANN401 - anybody's item


def is_map_style(data: object) -> bool:
    """Whether an object has items by number, as `torch.utils.data.Dataset` and MAITE state it."""
    has_items = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    is_array = hasattr(data, "shape") and not hasattr(data, "features")  # `datasets` have both
    has_items = has_items and not isinstance(data, type)
    return has_items and not is_array and not isinstance(data, str | bytes | list | tuple | Mapping)


def dataset_of_items(
    data: object,
    *,
    name: str | None = None,
    classes: tuple[str, ...] = (),
    normal: int | None = None,
) -> Dataset:
    """Return a dataset whose splits are map-style datasets of images with labels or masks.

    Args:
        data: a map-style dataset, which is the test split, or a dict of them by split. An item is
            `(image, label)`, `(image, label, metadata)` or a dict with "image" and "label" or
            "mask". Images are uint8 or floats in [0,1]: `(c, h, w)` or `(c, d, h, w)` as torch has
            them, `(h, w)`, `(h, w, 3)`, or pictures of Pillow. A label is a class id, a
            one-hot row, a row of findings, or a mask of the image's size.
        name: name of the dataset in records; by default that of its class.
        classes: names of the classes; by default those that the dataset states, or numbers.
        normal: index of the healthy class.

    Raises:
        DataError: an item is no image with a label, or items do not fit each other.
    """
    splits: dict[SplitName, Any] = dict(data) if isinstance(data, Mapping) else {"test": data}
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        raise DataError(f"expected splits {', '.join(SPLITS)}, got {', '.join(map(str, unknown))}")
    first = next(iter(splits.values()))
    name = name or _name_of(first)
    arrays = {split: _read(part, f"{name} ({split})", split) for split, part in splits.items()}
    card = _card(name, arrays, classes or _stated_classes(first), normal)

    def read(split: SplitName) -> Arrays:
        if split not in arrays:
            listed = ", ".join(arrays)
            raise MissingSplitError(f"{name} ({split}): expected a split, got only {listed}")
        return arrays[split]

    return Dataset(card, read, compared=tuple(arrays))


def _name_of(data: object) -> str:
    metadata = getattr(data, "metadata", None)
    stated = metadata.get("id") if isinstance(metadata, Mapping) else None
    text = str(stated or type(data).__name__).lower()
    return re.sub(r"[^0-9a-z_]+", "_", text).strip("_") or "data"


def _stated_classes(data: object) -> tuple[str, ...]:
    """Return the class names of torchvision's `classes` or of MAITE's `index2label`."""
    metadata = getattr(data, "metadata", None)
    by_index = metadata.get("index2label") if isinstance(metadata, Mapping) else None
    if isinstance(by_index, Mapping) and sorted(by_index) == list(range(len(by_index))):
        return tuple(str(by_index[index]) for index in range(len(by_index)))
    classes = getattr(data, "classes", ())
    if isinstance(classes, list | tuple) and all(isinstance(text, str) for text in classes):
        return tuple(classes)
    return ()


def _read(data: Any, where: str, split: SplitName) -> Arrays:  # noqa: ANN401 - anybody's dataset
    """Read each item of a split once.

    Raises:
        DataError: there is no item, or one is no image with a label or does not fit the others.
    """
    if not is_map_style(data):
        raise DataError(f"{where}: expected items by number, got {type(data).__name__}")
    count = len(data)
    if count == 0:
        raise DataError(f"{where}: expected at least one image, got none")
    descriptor, name = tempfile.mkstemp(prefix="robustbench_med-", suffix=".rows")
    path = Path(name)
    truths, names, first = [], [], None
    try:
        with os.fdopen(descriptor, "wb") as handle:
            for row, item in enumerate(_items(data, count, where)):
                first = item if first is None else first
                if (item.image.shape, item.image.dtype) != (first.image.shape, first.image.dtype):
                    raise DataError(
                        f"{where}: expected images of one shape and type, got "
                        f"{first.image.dtype} {first.image.shape} and {item.image.dtype} "
                        f"{item.image.shape} (item {row}): add a transform that resizes them"
                    )
                if item.truth.shape != first.truth.shape:
                    raise DataError(
                        f"{where}: expected labels of one shape, got {first.truth.shape} and "
                        f"{item.truth.shape} (item {row})"
                    )
                handle.write(item.image.tobytes())
                truths.append(item.truth)
                names.append(item.name or f"{split}-{row:06d}")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    shape, dtype = cast("Item", first).image.shape, cast("Item", first).image.dtype
    images = RowFile(path, 0, dtype, (count, *shape))
    arrays = Arrays(
        images,  # type: ignore[arg-type] # indexed by rows as an array is
        _truth(np.stack(truths), where),
        np.array(names, dtype=np.str_),
    )
    weakref.finalize(arrays, path.unlink, missing_ok=True)
    return arrays


def _items(data: Any, count: int, where: str) -> Iterator[Item]:  # noqa: ANN401
    for row in range(count):
        yield _item(data[row], f"{where}: item {row}")


def _item(item: object, where: str) -> Item:
    """Return an item's image and label as arrays.

    Raises:
        DataError: it has neither form.
    """
    metadata: object = None
    if isinstance(item, Mapping) and "image" in item:
        key = next((key for key in _KEYS if key in item), None)
        if key is None:
            raise DataError(f"{where}: expected one of {', '.join(_KEYS)} beside image, got none")
        image, truth = item["image"], item[key]
    elif isinstance(item, tuple | list) and len(item) in (2, 3):
        image, truth = item[0], item[1]
        metadata = item[2] if len(item) > 2 else None
    else:
        raise DataError(
            f"{where}: expected (image, label), (image, label, metadata) or a dict with image and "
            f"label, got {type(item).__name__}"
        )
    name = metadata.get("id", "") if isinstance(metadata, Mapping) else ""
    return Item(_image(image, where), _numbers(truth, where), str(name))


def _numbers(value: Any, where: str) -> NDArray[Any]:  # noqa: ANN401
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: expected numbers, got {type(value).__name__}")
    return array


def _image(value: Any, where: str) -> NDArray[Any]:  # noqa: ANN401
    """Return an image `(*s)` or `(*s, c)`, of uint8 or float32."""
    values = _numbers(value, where)
    is_picture = hasattr(value, "getbands")
    if values.ndim in (3, 4) and not is_picture and values.shape[0] in _CHANNELS:
        values = np.moveaxis(values, 0, -1)
    elif values.ndim == 3 and values.shape[-1] not in _CHANNELS:
        raise DataError(
            f"{where}: expected an image (c, h, w), (h, w), (h, w, c) or a volume (1, d, h, w), "
            f"got {values.shape}"
        )
    if values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise DataError(f"{where}: expected an image of two or three axes, got {values.shape}")
    if values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.dtype != np.uint8:
        if values.dtype.kind != "f":
            raise DataError(
                f"{where}: expected uint8, or floats in [0,1], got {values.dtype}: add a transform "
                "that divides by the range of all images"
            )
        values = values.astype(np.float32)
    return np.ascontiguousarray(values)


def _truth(stored: NDArray[Any], where: str) -> NDArray[Any]:
    """Return `(n,)` class ids, `(n, k)` findings or `(n, *s)` masks."""
    ids = integers(stored, f"{where}: labels")
    if ids.ndim > 1 and all(side == 1 for side in ids.shape[1:]):
        ids = ids.reshape(len(ids))
    if ids.ndim > 2 and ids.shape[1] == 1:
        ids = ids[:, 0]
    return from_one_hot(ids) if one_hot_rows(ids) else ids


def _card(
    name: str, arrays: Mapping[SplitName, Arrays], classes: tuple[str, ...], normal: int | None
) -> DatasetCard:
    first = next(iter(arrays.values()))
    shape, ndim = first.images.shape[1:], first.labels.ndim
    masks = ndim > 2
    if {a.labels.ndim for a in arrays.values()} != {ndim}:
        raise DataError(f"{name}: expected labels of one kind in all splits")
    size = first.labels.shape[1:] if masks else shape[:-1] if shape[-1] in (3, 4) else shape
    channels = 1 if len(shape) == len(size) else shape[-1]
    ids = np.unique(np.concatenate([np.unique(a.labels) for a in arrays.values()]))
    if not classes:
        if ndim == 2:
            count = first.labels.shape[1]
        else:
            known = ids[ids != UNLABELLED]
            if masks:
                check_background(known, name)
            check_numbering(known, name, masks=masks)
            count = max(int(ids.max()) + 1, 2)
        classes = tuple(f"{'finding' if ndim == 2 else 'class'} {k}" for k in range(count))
    return DatasetCard(
        name=name,
        title=name,
        modality="not stated",
        task="segmentation" if masks else "multi_label" if ndim == 2 else "single_label",
        classes=classes,
        normal=normal,
        channels=channels,
        size=size,
        bit_depth=8 if first.images.dtype == np.uint8 else 16,
        native_range="grey level 0..255" if first.images.dtype == np.uint8 else "float 0..1",
        notes=(NOTE,),
    )
