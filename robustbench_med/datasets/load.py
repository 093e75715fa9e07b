"""Load a dataset by its registry name or the path of a file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.access import BUILT
from robustbench_med.datasets.cache import DrawSplit, cache_dir, read_or_draw
from robustbench_med.datasets.checksum import verify
from robustbench_med.datasets.dataset import Arrays, Dataset, SplitName
from robustbench_med.datasets.download import download
from robustbench_med.datasets.foreign import refused
from robustbench_med.datasets.labels import join_classes
from robustbench_med.datasets.npz import read
from robustbench_med.datasets.own import describe
from robustbench_med.datasets.python_data import MapStyle, dataset_of_items, is_map_style
from robustbench_med.datasets.saved_data import is_saved, load_saved
from robustbench_med.datasets.sources.load import load_card_file
from robustbench_med.errors import DataError
from robustbench_med.paths import check_name

FOLDER = "ROBUSTBENCH_MED_DATA"
_PHANTOMS = "datasets.phantoms."  # the modules whose source code `phantom_key` covers
MOST_COMPARED = 2**26  # bytes; splits of larger files are not searched for common images


if TYPE_CHECKING:
    Name = str | Path | MapStyle | Mapping[str, MapStyle]
else:  # foreign.py refuses other types in one line
    Name = Any


def load_dataset(
    name: Name,
    *,
    data: str | Path | None = None,
    classes: Sequence[str] = (),
    normal: int | None = None,
) -> Dataset:
    """Return a dataset; its images are read or drawn when a split is first used.

    The file of a card is searched in `data`, in the folder named by ROBUSTBENCH_MED_DATA and in the
    cache; if it has an official address, it is downloaded into the cache. Its checksum is compared
    in every process that loads it.

    Args:
        name: a registry name, the path of a user's own `.npz` file with MedMNIST keys, of a card
            file such as `mine.toml`, which `inspect` writes for a folder, or of a folder that
            Hugging Face's `datasets` has saved.
            Or a map-style dataset of torch, MAITE or Hugging Face, which is the test split, or a
            dict of them by split; see `python_data.dataset_of_items`.
        data: folder that holds the file of a named dataset, or the file itself.
        classes: names of the classes of a map-style dataset, which has none itself.
        normal: index of its healthy class.

    Raises:
        UnknownNameError: there is neither such a name nor such a file.
        DataError: the file is missing or damaged; the message says how to get it.
        ChecksumError: the file does not have the checksum of its card.
    """
    if is_map_style(name) or (isinstance(name, Mapping) and all(map(is_map_style, name.values()))):
        return dataset_of_items(name, classes=tuple(classes), normal=normal)
    if not isinstance(name, str | os.PathLike):
        raise refused(name)
    if classes or normal is not None:
        raise DataError(f"expected no classes and normal of {name}, whose card states them")
    name, data = str(check_name(name)), None if data is None else check_name(data)
    if name.endswith(".toml"):
        return load_card_file(Path(name).expanduser())
    if is_saved(Path(name).expanduser()) and name not in registry.names("datasets"):
        return load_saved(Path(name).expanduser())
    if name.endswith(".npz") or (name not in registry.names("datasets") and Path(name).exists()):
        return _own_dataset(Path(name).expanduser())
    entry = registry.entry_of("datasets", name)
    if entry is not None and entry.item is not None:
        added: Dataset = replace(entry.item, _splits={})
        return added
    card: DatasetCard = registry.find("datasets", name)
    if card.function:
        draw = partial(_draw, card.function)
        is_shipped = card.function.startswith(_PHANTOMS)
        return Dataset(card, partial(read_or_draw, card.name, draw) if is_shipped else draw)
    path = _locate(card, data)
    verify(path, card)
    return Dataset(card, partial(_read_verified, path, card))


def _draw(function: str, split: SplitName) -> Arrays:
    """Return a split from the function that a card names as `module:function`."""
    module, _, name = function.partition(":")
    draw: DrawSplit = getattr(importlib.import_module(f"robustbench_med.{module}"), name)
    return draw(split)


def _own_dataset(path: Path) -> Dataset:
    own_file = describe(path)
    masks = own_file.card.task == "segmentation"
    small = path.stat().st_size <= MOST_COMPARED
    reader = partial(read, path, masks=masks, one_hot=own_file.one_hot)
    return Dataset(own_file.card, reader, compared=own_file.splits if small else ())


def _read_verified(path: Path, card: DatasetCard, split: SplitName) -> Arrays:
    verify(path, card)  # costs time only if the file was replaced since it was loaded
    arrays = read(path, split, masks=card.task == "segmentation")
    if not card.stored_ids:
        return arrays
    labels = join_classes(arrays.labels, card.stored_ids, f"{card.name} ({split})")
    return replace(arrays, labels=labels)


def _locate(card: DatasetCard, data: Path | None) -> Path:
    folders = [] if data is None else [_folder(card, data)]
    if os.environ.get(FOLDER):
        folders.append(Path(os.environ[FOLDER]).expanduser())
    folders.append(cache_dir())
    for folder in folders:
        if (folder / card.file).is_file():
            return folder / card.file
    if card.url:
        return download(card)
    looked = ", ".join(map(str, folders))
    if card.name in BUILT:
        way = f"`dataset build {card.name} --from FOLDER` makes it of its official download"
    else:
        way = f"its images come from {card.source}"
    raise DataError(
        f"{card.name}: expected {card.file} in {looked}, got no such file and it has no official "
        f"address: pass the folder of {card.file} as --data DIR, or set {FOLDER} to it; {way}"
    )


def _folder(card: DatasetCard, data: Path) -> Path:
    if data.is_file() and data.name == card.file:
        return data.parent
    if not data.is_dir():
        kind = "a file with another name" if data.is_file() else "nothing there"
        raise DataError(
            f"{card.name}: expected --data to be a folder or {card.file}, got {data} ({kind}); "
            "to use a file as your own data, pass its path in place of the dataset's name"
        )
    return data
