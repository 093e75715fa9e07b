"""Read the arrays of an `.npz` file one by one, and check everything that the file states.

Headers are read before arrays, and no array is read that is larger than the cap, holds Python
objects, or is not as long as its header says.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from robustbench_med.datasets.formats import foreign
from robustbench_med.datasets.row_file import RowFile, row_file
from robustbench_med.errors import DataError
from robustbench_med.paths import check_name

MAX_BYTES = 16 * 2**30  # the largest official array, pathmnist_224's training images, is 12.6 GiB
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,  # numpy's reader of odd headers
    struct.error,
    EOFError,
    ValueError,
    RecursionError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # an encrypted member
)


class Header(NamedTuple):
    """Shape and type that the header of an array states."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Npz:
    """An open `.npz` file; its arrays are read one at a time."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, cap: int) -> None:
        self.path = path
        self.keys = {name.removesuffix(".npy") for name in archive.namelist()}
        self._archive = archive
        self._cap = cap

    def header(self, key: str) -> Header:
        """Return shape and dtype of an array.

        Raises:
            DataError: there is no such key, or the array holds objects, is larger than the cap, or
                has another length than its header states.
        """
        if key not in self.keys:
            raise DataError(self.lacks(key))
        with damage(self.path, key), self._archive.open(f"{key}.npy") as stream:
            version = npy.read_magic(stream)
            reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = reader(stream)
            stored_bytes = self._archive.getinfo(f"{key}.npy").file_size - stream.tell()
        if dtype.hasobject:
            raise DataError(
                f"{self.path}: {key}: expected numbers or text, got Python objects (a pickle), "
                "which can run code and are never read; save plain arrays"
            )
        expected_bytes = math.prod(shape) * dtype.itemsize
        if expected_bytes > self._cap or stored_bytes > self._cap:
            raise DataError(
                f"{self.path}: {key}: expected at most {self._cap} bytes, got "
                f"{max(expected_bytes, stored_bytes)}; split the file"
            )
        if min(shape, default=0) < 0 or expected_bytes != stored_bytes:
            raise DataError(
                f"{self.path}: {key}: expected {expected_bytes} bytes as its header says, got "
                f"{stored_bytes}; the file is damaged: fetch it again"
            )
        return Header(tuple(map(int, shape)), dtype)

    def lacks(self, key: str) -> str:
        """Return the error message for a key that is missing from the file."""
        keys = ", ".join(sorted(self.keys)) or "none"
        return (
            f"{self.path}: expected the key {key!r}, got {keys[:500]}; "
            "save images and labels under the MedMNIST keys"
        )

    def fingerprint(self) -> str:
        """Return 6 hexadecimal digits that depend on the arrays, and not on their compression."""
        members = sorted(
            (member.filename, member.CRC, member.file_size) for member in self._archive.infolist()
        )
        return hashlib.sha256(repr(members).encode()).hexdigest()[:6]

    def array(self, key: str) -> NDArray[Any]:
        """Return an array.

        It is read to its last byte, so that the checksum of the archive is compared.

        Raises:
            DataError: as `header`, or the bytes are damaged.
        """
        self.header(key)
        with damage(self.path, key), self._archive.open(f"{key}.npy") as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array

    def rows(self, key: str) -> NDArray[Any] | RowFile:
        """Return an array; a large one stays in its file and is read by rows.

        Raises:
            DataError: as `array`.
        """
        self.header(key)
        with damage(self.path, key):
            found = row_file(self.path, self._archive, f"{key}.npy")
        return self.array(key) if found is None else found


@contextmanager
def opened(path: Path, *, cap: int = MAX_BYTES) -> Iterator[Npz]:
    """Open an `.npz` file for the length of the block.

    Args:
        path: the file.
        cap: largest size of one array, in bytes.

    Raises:
        DataError: the file is missing, or is a folder or no zip archive.
    """
    check_name(path)
    if path.exists() and (format_ := foreign(path)) is not None:
        raise DataError(f"{path}: expected a .npz file, got {format_}")
    if not path.is_file():
        raise DataError(f"{path}: expected a .npz file, got nothing there; check the path")
    with damage(path, "archive"):
        archive = zipfile.ZipFile(path)
    with archive:
        yield Npz(path, archive, cap)


@contextmanager
def damage(path: Path, what: str) -> Iterator[None]:
    """Raise a DataError of one line in place of the errors that a damaged file causes.

    Args:
        path: the file.
        what: name of the array that is read, or "archive".

    Raises:
        DataError: the file is damaged.
    """
    try:
        yield
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: {what}: expected a sound .npz file, got: {reason[:200]}; the file is damaged "
            "or no .npz: fetch it again or save it with numpy.savez_compressed"
        ) from None
