"""The cache folder: downloads, and phantoms that were drawn before."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from robustbench_med.datasets import phantoms
from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.files import write_bytes
from robustbench_med.paths import cache_root

DrawSplit = Callable[[SplitName], Arrays]

_SOURCES = Path(phantoms.__file__).parent
_DIGEST = hashlib.sha256().digest_size
_FIELDS = ("images", "labels", "ids", "patients")


def cache_dir() -> Path:
    """Return the folder of downloaded datasets; the first download creates it."""
    return cache_root() / "datasets"


def read_or_draw(name: str, draw: DrawSplit, split: SplitName) -> Arrays:
    """Return a split of a phantom from the cache folder, or draw it and store it there.

    A file whose checksum is wrong is drawn again. Where the folder cannot be written, every process
    draws for itself. Two processes that draw at the same time both write the same file.

    Args:
        name: registry name of the phantom.
        draw: its drawing function.
        split: the split to return.
    """
    path = cache_root() / "phantoms" / f"{name}-{split}-{phantom_key(name, split)}.bin"
    arrays = _read(path)
    if arrays is None:
        arrays = draw(split)
        with suppress(OSError):
            write_bytes(path, _pack(arrays))
    return arrays


def phantom_key(name: str, split: SplitName) -> str:
    """Return a hash of all that the images of a phantom depend on.

    That is the name, the split, the source code of all phantoms (which states seed and sizes), and
    the versions of the libraries that draw. A change to one phantom makes all be drawn again, so
    that no module which a phantom imports can be forgotten.
    """
    digest = hashlib.sha256(f"{name} {split} {_library_versions()}".encode())
    for source in sorted(_SOURCES.glob("*.py")):
        content = source.read_bytes()
        digest.update(f"\n{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


@cache
def _library_versions() -> str:
    return f"numpy {version('numpy')} scipy {version('scipy')}"


def _pack(arrays: Arrays) -> bytes:
    """Return a split as the bytes of an `.npz` file behind their SHA-256."""
    present = {name: getattr(arrays, name) for name in _FIELDS}
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in present.items() if array is not None})
    content = stream.getvalue()
    return hashlib.sha256(content).digest() + content


def _read(path: Path) -> Arrays | None:
    """Return the split in a file, or None where the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return Arrays(**{name: archive[name] for name in archive.files})
