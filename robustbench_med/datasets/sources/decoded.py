"""The cache of decoded images: each split is decoded once into a file whose rows are then read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustbench_med.datasets.file_state import CHECK_DATA, look_up
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.datasets.sources.file_images import FileImages
from robustbench_med.datasets.sources.refs import ImageRef
from robustbench_med.files import write_text
from robustbench_med.paths import cache_root

_log = logging.getLogger(__name__)

VERSION = 2  # raised when a reader returns other values, or finds more in headers
_CHUNK = 4 * 2**20  # bytes that are read at a time
_DECODED_BYTES = 32 * 2**20  # of images that are decoded before they are written


class Key(NamedTuple):
    """Where something that was read from files is stored.

    Attributes:
        code: a hash of the files' paths and states.
        is_kept: whether it may be taken from there; else it is read again.
    """

    code: str
    is_kept: bool


def fingerprint(root: Path, files: Iterable[str], options: Sequence[object]) -> Key:
    """Return the key of what is read from files, which is another one after any change of them.

    What is stored is not used where `CHECK_DATA` is set, nor where a file changed so shortly before
    that it may change again unseen: such a key is never that of files which are older.
    """
    digest = hashlib.sha256(repr((VERSION, str(root), *options)).encode())
    are_certain = True
    for name in files:
        state = look_up(root / name)
        are_certain = are_certain and state is not None and state.is_certain
        digest.update(f"{name!r} {state}".encode("utf-8", "surrogatepass"))
    return Key(digest.hexdigest()[:32], are_certain and not os.environ.get(CHECK_DATA))


def decoded(images: FileImages, key: Key) -> RowFile | FileImages:
    """Return the images as a row file in the cache folder, written now unless it is there.

    Where the folder cannot be written, the images stay in their files and are decoded again
    whenever rows are read.

    Raises:
        DataError: some files cannot be read.
    """
    target = _folder() / f"{key.code}.rows"
    rows = RowFile(target, 0, images.dtype, images.shape)
    stored = _stored_checksum(target)
    if key.is_kept and stored is not None:
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
        if checksum == stored:
            return rows
        if stored is not None:
            _say_changed(images.root)
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


def listed(key: Key, root: Path, look: Callable[[], Listing]) -> Listing:
    """Return the listing that is stored under a key, or look into every file and store it."""
    path = _folder() / f"{key.code}.json"
    stored = _read_listing(path)
    if key.is_kept and stored is not None:
        return stored
    listing = look()
    if listing != stored:
        if stored is not None:
            _say_changed(root)
        content = {"refs": [asdict(ref) for ref in listing.refs], "remarks": listing.remarks}
        with suppress(OSError):
            write_text(path, json.dumps(content))
    return listing


def _read_listing(path: Path) -> Listing | None:
    """Return a listing that was stored; None if there is none, or it is damaged."""
    try:
        stored = json.loads(path.read_bytes())
        refs = [
            ImageRef(**{name: _frozen(value) for name, value in ref.items()})
            for ref in stored["refs"]
        ]
        return Listing(refs, list(map(str, stored["remarks"])))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _frozen(value: Any) -> Any:  # noqa: ANN401 - a value of JSON
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _folder() -> Path:
    return cache_root() / "decoded"


def _say_changed(root: Path) -> None:
    _log.warning(
        "%s: files changed although their sizes and times did not: they were read again; records "
        "that were written before hold for the files as they were",
        root,
    )


def _stored_checksum(path: Path) -> int | None:
    """Return the checksum that a row file was written with; None unless it still has it."""
    checksum = 0
    try:
        expected = int(path.with_suffix(".crc").read_text(encoding="ascii"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                checksum = zlib.crc32(chunk, checksum)
    except (OSError, ValueError):
        return None
    return expected if checksum == expected else None
