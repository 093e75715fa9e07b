"""Candidates: adversarial images that several cases share, kept in a file of the cache folder."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch

from robustbench_med.errors import ResultsError
from robustbench_med.paths import cache_root
from robustbench_med.types import Images

IN_MEMORY = 64 * 2**20  # bytes; so many are held in memory before the file is written
FOLDER = "crafted"
_FORGOTTEN = 7 * 24 * 3600.0  # seconds after which a file of a run that nobody resumed is removed


@dataclass
class Candidates:
    """Adversarial images as float32, found by the keys of their random draws.

    They lie in a file without a name in the cache folder, which the system removes with the
    process however it ends. Those of a few images stay in memory. After `resume` the file has a
    name, so that another process can go on with it.

    Attributes:
        keys: the keys of all images, in the order in which they were added.
        checksums: the checksum of each image.
        name: the name of the file; empty if it has none.
    """

    keys: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    name: str = ""
    _places: dict[int, int] = field(default_factory=dict)
    _lost: set[int] = field(default_factory=set)  # keys whose image is gone
    _unchecked: set[int] = field(default_factory=set)  # keys of another process's images
    _shape: tuple[int, ...] = ()
    _file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: int) -> bool:
        return key in self._places

    def resume(self, name: str, keys: Sequence[int], checksums: Sequence[int]) -> None:
        """Go on where these keys had been added, perhaps by another process.

        Images that cannot be read any more are lost: their keys are here, and they are missing.

        Args:
            name: the name of the file in which they lie.
            keys: all keys, in the order in which they were added.
            checksums: the checksum of each image.
        """
        mine = self.keys if name == self.name else []
        same = next((i for i, (a, b) in enumerate(zip(mine, keys, strict=False)) if a != b), None)
        same = min(len(mine), len(keys)) if same is None else same
        if name != self.name:
            self._close()
            self.name = name
        self._lost &= set(keys[:same])
        self._unchecked = (self._unchecked & set(keys[:same])) | set(keys[same:])
        self.keys, self.checksums = list(keys), list(checksums)
        self._places = {key: place for place, key in enumerate(keys)}

    def missing(self, keys: Sequence[int], shape: tuple[int, ...] = ()) -> list[int]:
        """Return the positions of the keys that have no image.

        Args:
            keys: keys of images.
            shape: `(c, *s)` of an image, by which a file of another process is read.
        """
        self._check([key for key in keys if key in self._unchecked], shape)
        return [i for i, key in enumerate(keys) if key not in self._places or key in self._lost]

    def add(self, keys: Sequence[int], z: Images) -> None:
        """Keep images `(b, c, *s)` under new keys, or under those of lost images.

        Raises:
            ResultsError: they cannot be written.
        """
        file = self._open(tuple(z.shape[1:]))
        size = 4 * math.prod(self._shape)
        count, places, checksums = len(self.keys), [], []
        for key in keys:
            known = self._places.get(key)
            places.append(count if known is None else known)
            count += known is None
        try:
            for place, image in zip(places, z.float().cpu(), strict=True):
                # a write that failed may have left a part of an image behind
                file.seek(place * size)
                content = image.numpy().tobytes()
                file.write(content)
                checksums.append(zlib.crc32(content))
            file.flush()
        except OSError as error:
            raise ResultsError(
                f"expected to keep {z.nbytes} bytes of adversarial images in the cache folder "
                f"{cache_root()}, got: {error.strerror}; make room there, or name another folder "
                "in ROBUSTBENCH_MED_CACHE"
            ) from None
        for key, place, checksum in zip(keys, places, checksums, strict=True):
            if place == len(self.keys):
                self.keys.append(key)
                self.checksums.append(checksum)
                self._places[key] = place
            self.checksums[place] = checksum
            self._lost.discard(key)

    def read(self, keys: Sequence[int]) -> Images:
        """Return the images of some keys, `(b, c, *s)`, on the CPU.

        Raises:
            KeyError: there is no image under a key.
        """
        if (file := self._file) is None or not self._lost.isdisjoint(keys):
            raise KeyError(keys)
        out = torch.empty(len(keys), *self._shape)
        for image, key in zip(out.numpy(), keys, strict=True):
            content = self._content(file, self._places[key])
            image[...] = np.frombuffer(content, np.float32).reshape(self._shape)
        return out

    def _content(self, file: IO[bytes], place: int) -> bytes:
        size = 4 * math.prod(self._shape)
        file.seek(place * size)
        return file.read(size)

    def _check(self, keys: Sequence[int], shape: tuple[int, ...]) -> None:
        """Find out which images of another process are still there."""
        if not keys:
            return
        file = self._open(shape)
        for key in keys:
            place = self._places[key]
            content = self._content(file, place)
            if not content or zlib.crc32(content) != self.checksums[place]:
                self._lost.add(key)
        self._unchecked.difference_update(keys)

    def _open(self, shape: tuple[int, ...]) -> IO[bytes]:
        if self._file is None:
            self._file = _named(self.name) if self.name else _temporary()
            self._shape = shape
            weakref.finalize(self, self._file.close)
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def remove_file(name: str) -> None:
    """Remove the file of candidates of this name, if it is on this machine."""
    with contextlib.suppress(OSError):
        _path(name).unlink()


def _path(name: str) -> Path:
    return cache_root() / FOLDER / f"{name}.bin"


def _named(name: str) -> IO[bytes]:
    """Return the file of a name, which another process may have begun; else one without a name."""
    path = _path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob("*.bin"):
            with contextlib.suppress(OSError):
                if time.time() - other.stat().st_mtime > _FORGOTTEN:
                    other.unlink()
        path.touch()
        return path.open("r+b")
    except OSError:
        return _temporary()


def _temporary() -> IO[bytes]:
    """Return an empty file in the cache folder, or where the system keeps temporary files."""
    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return tempfile.SpooledTemporaryFile(IN_MEMORY)
    return tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(folder))
