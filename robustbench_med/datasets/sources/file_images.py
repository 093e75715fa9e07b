"""Images that stay in their files, decoded by a few threads where rows are read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.sources.pictures import quiet
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    UnreadableError,
    check_values,
    refuse_unreadable,
)

Decode = Callable[[Path, ImageRef], NDArray[Any]]
_THREADS = 4  # decoders release the interpreter's lock while they unpack


@dataclass(frozen=True)
class FileImages:
    """An array `(n, *shape)` of images in files, which is indexed by rows as a NumPy array is.

    Attributes:
        root: the folder of the data.
        refs: one image each.
        shape: the shape of the array.
        dtype: type of the values.
        decode: reads one image and brings it to the shape and the type.
    """

    root: Path
    refs: tuple[ImageRef, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    decode: Decode

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return some images, decoded now.

        Raises:
            DataError: files cannot be read; the message names all of these.
        """
        picked = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        out = np.empty((len(picked), *self.shape[1:]), self.dtype)
        failures: list[tuple[str, str]] = []
        with quiet(), ThreadPoolExecutor(_THREADS) as pool:
            for place, result in enumerate(pool.map(self._read, picked)):
                if isinstance(result, str):
                    failures.append((self.refs[picked[place]].files[0], result))
                else:
                    out[place] = result
        refuse_unreadable(failures, len(picked), self.root)
        return out

    def _read(self, row: int) -> NDArray[Any] | str:
        """Return an image, or why it cannot be read."""
        try:
            values = self.decode(self.root, self.refs[row])
            check_values(values)
        except UnreadableError as error:
            return str(error)
        if values.shape != self.shape[1:]:
            return f"it holds values of shape {values.shape} in place of {self.shape[1:]}"
        return values
