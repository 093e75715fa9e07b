"""Geometry: where the pixels of an image lie in the patient, in mm."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_SQUARE = 1e-3  # cosine above which two axes are not at right angles


@dataclass(frozen=True)
class Geometry:
    """The place of the first pixel's centre, and the step to the next one along each axis.

    Coordinates are those of NIfTI, in mm: to the right, to the front, to the head.

    Attributes:
        origin: the centre of the first pixel.
        steps: one vector an axis: (slice, row, column); of a single slice the first is its normal,
            as long as its thickness or 1 mm.
    """

    origin: tuple[float, ...]
    steps: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, origin: NDArray[np.float64], steps: NDArray[np.float64]) -> Geometry | None:
        """Return the geometry; None if numbers are missing, or a step is none."""
        values = np.concatenate([origin[None], steps])
        if not np.isfinite(values).all() or (np.linalg.norm(steps, axis=1) < 1e-6).any():
            return None
        place, *rest = (tuple(map(float, row)) for row in values)
        return cls(place, tuple(rest))

    def resized(self, old: tuple[int, ...], new: tuple[int, ...]) -> Geometry:
        """Return the geometry of an image that was resized: the outer edges of its pixels stay.

        >>> place = Geometry((0, 0, 0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
        >>> place.resized((4, 4), (2, 2)).origin
        (0.5, 0.5, 0.0)
        """
        if old == new:
            return self
        ratio = np.ones(3)
        ratio[3 - len(old) :] = np.divide(old, new)
        steps = np.array(self.steps) * ratio[:, None]
        origin = np.array(self.origin) + ((ratio - 1) / 2) @ np.array(self.steps)
        return replace(
            self,
            origin=tuple(map(float, origin)),
            steps=tuple(tuple(map(float, step)) for step in steps),
        )

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Mm per pixel along (slice, row, column)."""
        slices, rows, columns = np.linalg.norm(self.steps, axis=1).tolist()
        return slices, rows, columns

    @property
    def is_square(self) -> bool:
        """Whether all axes are at right angles, without which DICOM can't state them."""
        axes = np.array(self.steps) / np.array(self.spacing)[:, None]
        return bool(np.abs(axes @ axes.T - np.eye(3)).max() < _SQUARE)

    def affine(self, axes: int) -> NDArray[np.float64]:
        """Return the affine of NIfTI for the axes of an array: `(d, h, w)`, or `(h, w, 1)`."""
        slices, rows, columns = np.array(self.steps)
        order = [slices, rows, columns] if axes == 3 else [rows, columns, slices]
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = np.stack(order, 1), self.origin
        return matrix
