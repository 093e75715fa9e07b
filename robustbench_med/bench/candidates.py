"""Candidates: adversarial images that several cases share, kept in a temporary file."""

from __future__ import annotations

import math
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import torch

from robustbench_med.errors import ResultsError
from robustbench_med.paths import cache_root
from robustbench_med.types import Images

IN_MEMORY = 64 * 2**20  # bytes; so many are held in memory before the file is written


@dataclass
class Candidates:
    """Adversarial images as float32, found by the keys of their random draws.

    They lie in a file without a name in the cache folder, which the system removes with the
    process however it ends. Those of a few images stay in memory.
    """

    _places: dict[int, int] = field(default_factory=dict)
    _shape: tuple[int, ...] = ()
    _count: int = 0
    _file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def missing(self, keys: Sequence[int]) -> list[int]:
        """Return the positions of the keys that have no image yet."""
        return [i for i, key in enumerate(keys) if key not in self._places]

    def add(self, keys: Sequence[int], z: Images) -> None:
        """Keep images `(b, c, *s)` under new keys.

        Raises:
            ResultsError: they cannot be written.
        """
        if self._file is None:
            self._file, self._shape = _temporary(), tuple(z.shape[1:])
            weakref.finalize(self, self._file.close)
        try:
            # a write that failed may have left a part of an image behind
            self._file.seek(self._count * 4 * math.prod(self._shape))
            for image in z.float().cpu():
                self._file.write(image.numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise ResultsError(
                f"expected to keep {z.nbytes} bytes of adversarial images in the cache folder "
                f"{cache_root()}, got: {error.strerror}; make room there, or name another folder "
                "in ROBUSTBENCH_MED_CACHE"
            ) from None
        self._places |= {key: self._count + i for i, key in enumerate(keys)}
        self._count += len(z)

    def read(self, keys: Sequence[int]) -> Images:
        """Return the images of some keys, `(b, c, *s)`, on the CPU.

        Raises:
            KeyError: there is no image under a key.
        """
        if (file := self._file) is None:
            raise KeyError(keys)
        out = torch.empty(len(keys), *self._shape)
        size = 4 * math.prod(self._shape)
        for image, key in zip(out.numpy(), keys, strict=True):
            place = self._places[key]
            file.seek(place * size)
            image[...] = np.frombuffer(file.read(size), np.float32).reshape(self._shape)
        return out


def _temporary() -> IO[bytes]:
    """Return an empty file in the cache folder, or where the system keeps temporary files."""
    folder = cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return tempfile.SpooledTemporaryFile(IN_MEMORY)
    return tempfile.SpooledTemporaryFile(IN_MEMORY, dir=str(folder))
