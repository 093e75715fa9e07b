"""Random masks and references written another way, for the tests of masks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Bools = NDArray[np.bool_]
gaussian_filter: Any = ndimage.gaussian_filter  # untyped

# 2-D and 3-D, sides all different, spacing unknown, isotropic and not
GRIDS: list[tuple[tuple[int, ...], tuple[float, ...] | None]] = [
    ((31, 24), None),
    ((24, 31), (0.4, 1.7)),
    ((12, 15, 9), (2.0, 2.0, 2.0)),
    ((9, 12, 15), (3.0, 0.7, 1.1)),
]


def blobs(n: int, size: tuple[int, ...], *, seed: int, share: float, grain: float = 2.0) -> Bools:
    """Return `n` masks of smooth blobs, each filling `share` of the image, also at its border."""
    noise = np.random.default_rng(seed).normal(size=(n, *size))
    smooth = gaussian_filter(noise, (0, *(grain for _ in size)))
    cut = np.quantile(smooth.reshape(n, -1), 1 - share, axis=1)
    found: Bools = smooth > cut.reshape(n, *(1 for _ in size))
    return found


def surface_points(mask: Bools) -> list[tuple[int, ...]]:
    """Return the pixels with a face neighbour outside of the mask, by looking at each of them."""
    inside = {tuple(int(v) for v in p) for p in np.argwhere(mask)}
    steps = [
        tuple(sign * (a == axis) for a in range(mask.ndim))
        for axis, sign in itertools.product(range(mask.ndim), (-1, 1))
    ]
    return [
        p for p in sorted(inside) if any(tuple(np.add(p, s).tolist()) not in inside for s in steps)
    ]


def brute_force(
    one: Bools, other: Bools, spacing: tuple[float, ...] | None, tolerance: float
) -> tuple[float, float]:
    """Return HD95 and NSD from the table of all distances between two non-empty masks."""
    scale = np.ones(one.ndim) if spacing is None else np.asarray(spacing)
    a, b = np.array(surface_points(one)) * scale, np.array(surface_points(other)) * scale
    table = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    there, back = np.sort(table.min(1)), np.sort(table.min(0))
    near = (there <= tolerance + 1e-9).sum() + (back <= tolerance + 1e-9).sum()
    return max(_ranked(there), _ranked(back)), float(near / (len(there) + len(back)))


def _ranked(values: NDArray[np.float64]) -> float:
    """Return the 95th percentile of sorted values, linear between ranks."""
    rank = 0.95 * (len(values) - 1)
    low = int(rank)
    high = min(low + 1, len(values) - 1)
    return float(values[low] + (rank - low) * (values[high] - values[low]))
