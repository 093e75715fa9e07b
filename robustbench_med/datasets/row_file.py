"""Row file: a large array that stays in its file, of which only the rows in use are read.

An array of an `.npz` file that is stored without compression is read in place. A compressed one is
unpacked once into the cache folder.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from robustbench_med.datasets.file_state import remembered
from robustbench_med.errors import DataError
from robustbench_med.paths import cache_root

LEAST_BYTES = 64 * 2**20  # a smaller array is read whole
_CHUNK = 4 * 2**20  # bytes that are copied at a time
_LOCAL_HEADER = 30  # bytes of a zip's local header before name and extra field


@dataclass(frozen=True)
class RowFile:
    """An array `(n, ...)` in a file, which is indexed by rows as a NumPy array is.

    Attributes:
        path: the file.
        start: byte at which the first row begins.
        dtype: type of the values.
        shape: the shape of the array.
        state: size and time of the last change, in ns, of a file of the user's own, which may
            change during a run; None for one in the cache folder, which is named by its content.
    """

    path: Path
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    state: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return some rows, read now; a slice must have no step.

        Raises:
            DataError: the file has changed since it was opened, or on the machine of a worker is
                another one.
        """
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            rows = np.arange(start, max(stop, start))
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.path.open("rb", buffering=0) as file:
            if self.state not in (None, _state(file.fileno())):
                raise DataError(
                    f"{self.path}: expected the file that was opened first, by its size and time, "
                    "got another: run again; workers elsewhere need a copy with its time (cp -p)"
                )
            for place, first, count in _runs(rows):
                view = out[place : place + count].reshape(-1).view(np.uint8).data
                file.seek(self.start + first * size)
                if _fill(file, view) < len(view):
                    raise DataError(f"{self.path}: the file became shorter while it was read")
        return out

    def __str__(self) -> str:
        return f"{self.dtype.str} {self.shape} from byte {self.start}"

    def reshape(self, shape: tuple[int, ...]) -> RowFile:
        """Return the same rows with another shape of each."""
        return replace(self, shape=shape)


def _state(file: int) -> tuple[int, int]:
    stat = os.fstat(file)
    return stat.st_size, stat.st_mtime_ns


def _fill(file: Any, view: memoryview) -> int:  # noqa: ANN401 - a raw file
    """Read until the view is full or the file ends; return the number of bytes."""
    done = 0
    while done < len(view) and (count := file.readinto(view[done:])):
        done += count
    return done


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Yield each run of neighbouring rows: its place among `rows`, its first row and its length."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    for place, end in zip(edges[:-1], edges[1:], strict=True):
        if end > place:
            yield place, int(rows[place]), end - place


def row_file(path: Path, archive: zipfile.ZipFile, member: str) -> RowFile | None:
    """Return an array of an archive as a row file; None if it is small or not stored by rows.

    Its checksum in the archive is compared, for which it is read to its end, once for each state of
    the file.

    Args:
        path: the archive's file.
        archive: the open archive.
        member: name of the array in it.

    Raises:
        zipfile.BadZipFile: the bytes are damaged.
    """
    info = archive.getinfo(member)
    if info.file_size < LEAST_BYTES:
        return None
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = reader(stream)
        header = stream.tell()
        if is_fortran or not dtype.isnative:
            return None
        if info.compress_type == zipfile.ZIP_STORED:

            def compare() -> str:
                while stream.read(_CHUNK):  # the archive's reader compares the checksum at the end
                    pass
                return str(info.CRC)

            remembered(path, f"CRC-32 of {member}", compare)
            start = _content_start(path, info) + header
            with path.open("rb") as file:
                return RowFile(path, start, dtype, shape, _state(file.fileno()))
    unpacked = _unpacked(path, archive, info)
    return None if unpacked is None else RowFile(unpacked, header, dtype, shape)


def _content_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the byte at which the content of a stored member begins."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<HH", file.read(_LOCAL_HEADER)[26:30])
    return info.header_offset + _LOCAL_HEADER + int(name) + int(extra)


def _unpacked(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Path | None:
    """Return the unpacked member in the cache folder; None if it cannot be written there.

    The name of the file depends on the content, by size and checksum of the member. A file whose
    content has another checksum is unpacked again.
    """
    key = hashlib.sha256(f"{path.name} {info.filename} {info.CRC} {info.file_size}".encode())
    target = cache_root() / "unpacked" / f"{key.hexdigest()[:32]}.npy"
    if remembered(target, "CRC-32", lambda: str(_checksum(target))) == str(info.CRC):
        return target
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as stream, temporary.open("wb") as file:
            shutil.copyfileobj(stream, file, _CHUNK)
        temporary.replace(target)
    except OSError:
        return None
    finally:  # also where the archive is damaged
        with suppress(OSError):
            temporary.unlink()
    return target


def _checksum(path: Path) -> int | None:
    """Return the CRC-32 of a file, as archives have it; None if it cannot be read."""
    crc = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
    except OSError:
        return None
    return crc
