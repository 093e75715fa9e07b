"""Datasets that Hugging Face's `datasets` has saved on disk with `save_to_disk`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.dataset import Dataset, SplitName
from robustbench_med.datasets.python_data import dataset_of_items
from robustbench_med.datasets.sources import pictures, words
from robustbench_med.datasets.sources.refs import UnreadableError
from robustbench_med.errors import DataError, NotInstalledError

_MARKS = ("dataset_dict.json", "state.json")


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in _MARKS)


def load_saved(path: Path) -> Dataset:
    """Return the dataset in a folder: pictures in a column of images, with a column of labels.

    Files outside the folder, which a column may name, are never opened.

    Raises:
        DataError: the folder is damaged, or has no such columns or splits.
        NotInstalledError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise NotInstalledError("datasets", str(path), "datasets") from None
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception:  # a damaged folder may raise anything
        raise DataError(f"{path}: expected a saved dataset, got one that is damaged") from None
    parts = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"test": saved}
    splits: dict[SplitName, SavedPictures] = {}
    for word, part in parts.items():
        split = next((s for s, known in words.SPLITS.items() if word.lower() in known), None)
        if split is None or split in splits:
            raise DataError(f"{path}: expected splits train, validation and test, got {word!r}")
        splits[split] = SavedPictures(part, f"{path} ({word})")
    name = "".join(c if c.isalnum() else "_" for c in path.resolve().name.lower())
    return dataset_of_items(splits, name=name.strip("_") or "data")


class SavedPictures:
    """The pictures and labels of one split, decoded where an item is read."""

    def __init__(self, data: Any, where: str) -> None:  # noqa: ANN401 - datasets has no types
        import datasets

        images = [n for n, f in data.features.items() if isinstance(f, datasets.Image)]
        labels = [n for n, f in data.features.items() if isinstance(f, datasets.ClassLabel)]
        if len(images) != 1 or len(labels) != 1:
            raise DataError(
                f"{where}: expected one column of images and one of ClassLabel, got "
                f"{len(images)} and {len(labels)} of {', '.join(data.features)[:200]}"
            )
        self.classes = list(data.features[labels[0]].names)
        self._where, self._image, self._label = where, images[0], labels[0]
        self._data = data.cast_column(images[0], datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], int]:
        item = self._data[row]
        content = item[self._image]["bytes"]
        if not content:
            raise DataError(
                f"{self._where}: row {row}: expected the bytes of a picture, got the name of a "
                "file: save the dataset with embed_external_files"
            )
        try:
            values = pictures.decode_bytes(io.BytesIO(content))
        except UnreadableError as error:
            raise DataError(f"{self._where}: row {row}: {error}") from None
        return values, -1 if item[self._label] is None else int(item[self._label])
