"""The cache of decoded images: each split is decoded once into a file whose rows are then read."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustbench_med.datasets.row_file import RowFile
from robustbench_med.datasets.sources.file_images import FileImages
from robustbench_med.datasets.sources.refs import ImageRef
from robustbench_med.files import write_text
from robustbench_med.paths import cache_root

VERSION = 2  # raised when a reader returns other values, or finds more in headers
_CHUNK = 4 * 2**20  # bytes that are read at a time
_DECODED_BYTES = 32 * 2**20  # of images that are decoded before they are written


def fingerprint(root: Path, files: Iterable[str], options: Sequence[object]) -> str:
    """Return a hash of what decoded images depend on: the files' paths, sizes and times."""
    digest = hashlib.sha256(repr((VERSION, str(root), *options)).encode())
    for name in files:
        try:
            stat = (root / name).stat()
        except OSError:
            stat = None
        state = None if stat is None else (stat.st_size, stat.st_mtime_ns)
        digest.update(f"{name!r} {state}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def decoded(images: FileImages, key: str) -> RowFile | FileImages:
    """Return the images as a row file in the cache folder, written now unless it is there.

    Where the folder cannot be written, the images stay in their files and are decoded again
    whenever rows are read.

    Raises:
        DataError: some files cannot be read.
    """
    target = _folder() / f"{key}.rows"
    rows = RowFile(target, 0, images.dtype, images.shape)
    if _is_sound(target):
        return rows
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    size = int(np.prod(images.shape[1:])) * images.dtype.itemsize
    step, checksum = max(1, _DECODED_BYTES // max(size, 1)), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for start in range(0, len(images), step):
                content = images[start : start + step].tobytes()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
        temporary.replace(target)
        write_text(target.with_suffix(".crc"), str(checksum))
    except OSError:
        return images
    finally:
        with suppress(OSError):
            temporary.unlink()
    return rows


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
        refs: the images.
        remarks: what looks wrong in their headers.
    """

    refs: list[ImageRef]
    remarks: list[str]


def read_listing(key: str) -> Listing | None:
    """Return the listing that was stored under a key; None if there is none."""
    try:
        stored = json.loads((_folder() / f"{key}.json").read_bytes())
        refs = [
            ImageRef(**{name: _frozen(value) for name, value in ref.items()})
            for ref in stored["refs"]
        ]
        return Listing(refs, list(map(str, stored["remarks"])))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def store_listing(key: str, listing: Listing) -> None:
    """Store a listing, which took a look into every file."""
    content = {"refs": [asdict(ref) for ref in listing.refs], "remarks": listing.remarks}
    with suppress(OSError):
        write_text(_folder() / f"{key}.json", json.dumps(content))


def _frozen(value: Any) -> Any:  # noqa: ANN401 - a value of JSON
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _folder() -> Path:
    return cache_root() / "decoded"


def _is_sound(path: Path) -> bool:
    """Whether a row file has the checksum that it was written with."""
    checksum = 0
    try:
        expected = int(path.with_suffix(".crc").read_text(encoding="ascii"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                checksum = zlib.crc32(chunk, checksum)
    except (OSError, ValueError):
        return False
    return checksum == expected
