"""Build the file of a named dataset from its official download, to the byte."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.builds import hippocampus
from robustbench_med.errors import ChecksumError, DataError
from robustbench_med.files import write_bytes

Arrays = dict[str, NDArray[Any]]
BUILDS: Mapping[str, Callable[[Path], Arrays]] = {"hippocampus_3d": hippocampus.build}
ORIGINS = {"hippocampus_3d": hippocampus.ORIGIN}  # what a person downloads and unpacks


def build(name: str, folder: Path, out: Path) -> Path:
    """Write the `.npz` file of a named dataset, made of its official download, and return its path.

    Nothing is written unless its SHA-256 is that of the dataset's card.

    Args:
        name: registry name of the dataset.
        folder: the folder of the unpacked download.
        out: folder of the new file.

    Raises:
        UnknownNameError: there is no such dataset.
        DataError: it cannot be built, or a file of the download is missing or damaged.
        ChecksumError: the result is not the file of the card.
    """
    card: DatasetCard = registry.find("datasets", name)
    if name not in BUILDS:
        raise DataError(f"{name}: expected a dataset that can be built, got one {reason(card)}")
    if not folder.is_dir():
        raise DataError(f"{name}: expected the folder of {ORIGINS[name]}, got none at {folder}")
    content = packed(BUILDS[name](folder))
    digest = hashlib.sha256(content).hexdigest()
    if digest not in card.sha256:
        raise ChecksumError(
            f"{name}: expected sha256 {card.sha256[0][:12]}..., got {digest[:12]}...: the files in "
            f"{folder} are not those of {ORIGINS[name]}, or another zlib compressed them"
        )
    return write_bytes(out / card.file, content)


def reason(card: DatasetCard) -> str:
    """Return why a dataset is not built, and where it comes from."""
    if card.function:
        return "that is drawn: it needs no file"
    if card.url:
        return f"whose official file is used as it is: {card.url}"
    return f"whose images were selected and resized by steps that nobody recorded: {card.source}"


def packed(arrays: Arrays) -> bytes:
    """Return arrays as an `.npz` file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
