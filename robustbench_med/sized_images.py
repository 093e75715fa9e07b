"""Sized images: stored images of unequal size, which are read by rows of one size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SizedImages:
    """Images that keep their own sizes, indexed by rows of one size as an array is.

    Attributes:
        parts: the images of each size, `(m, *s)` or `(m, *s, c)`, the largest size first. Each is
            an array, or is indexed by rows as one.
        part: `(n,)` which of the parts an image is in.
        place: `(n,)` its row in that part.
    """

    parts: tuple[Any, ...]
    part: NDArray[np.int64]
    place: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.part)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        dtype: np.dtype[Any] = self.parts[0].dtype
        return dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of images, and the shape of an image of the largest size."""
        return len(self), *self.parts[0].shape[1:]

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return some images of one size, read now.

        Raises:
            ValueError: they have several sizes.
        """
        part = self.part[rows]
        which = int(part[0]) if len(part) else 0
        if (part != which).any():
            raise ValueError("expected rows of images of one size, got several")
        read: NDArray[Any] = self.parts[which][self.place[rows]]
        return read


def runs(part: NDArray[np.int64]) -> list[slice]:
    """Return the runs of equal neighbours; one empty run if there are no entries.

    >>> runs(np.array([0, 0, 2, 0]))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(part)]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def corner(size: Iterable[int]) -> tuple[Any, ...]:
    """Return the index of the pixels of a smaller image: the first ones along each axis."""
    return tuple(slice(side) for side in size)
