"""Distances between the surfaces of two masks: HD95 and the normalised surface distance.

Conventions, which are those of MONAI (the tests hold every number against MONAI's), and where they
leave the textbook:

- The surface of a mask is the set of its own pixels of which a face neighbour is outside it (mask
  xor mask eroded by the cross). Outside the image is outside the mask, so a mask cut by the border
  has a surface there. The textbook surface lies between pixels: a structure one pixel thick has
  two sides in it, one line here.
- HD95 is the larger of the two directed 95th percentiles, each over the surface pixels of one mask.
  Other codes take the percentile of both directions pooled, which is mostly smaller. The percentile
  is interpolated linearly between the ranked distances.
- A surface pixel counts as one, whatever its area. Nikolov et al. weigh each surface element by its
  area in mm (marching cubes); with anisotropic spacing the two differ.
- Distances run from pixel centre to pixel centre, so a difference below one pixel is none.

Source: Huttenlocher et al., IEEE TPAMI 1993, section II (the directed distance and its ranked,
"partial" form); Nikolov et al., JMIR 2021, "Surface Dice" (the share within the tolerance);
Maier-Hein, Reinke et al., "Metrics reloaded", Nature Methods 2024 (HD95 and NSD, and why pixel
size matters to both); surfaces and percentiles as in MONAI 1.6 `metrics/utils.py`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import ndimage
from scipy.spatial import KDTree

_PERCENTILE = 95.0
# Share of the box that surface pixels must fill before the distance transform, whose cost is that
# of the box, beats the tree, whose cost is that of the pixels. Measured on ragged and smooth masks.
_DENSE = 1 / 8


def surface(masks: Bool[np.ndarray, "n *s"]) -> Bool[np.ndarray, "n *s"]:
    """Return the pixels of each mask that have a face neighbour outside it or outside the image.

    >>> surface(np.ones((1, 3, 3), dtype=bool)).sum()
    np.int64(8)
    """
    inner = masks.copy()
    for axis in range(1, masks.ndim):
        inside, mask = np.moveaxis(inner, axis, 0), np.moveaxis(masks, axis, 0)
        inside[1:] &= mask[:-1]
        inside[:-1] &= mask[1:]
        inside[[0, -1]] = False
    surfaces: Bool[np.ndarray, "n *s"] = masks & ~inner
    return surfaces


def agreement(
    called: Bool[np.ndarray, "n *s"],
    truth: Bool[np.ndarray, "n *s"],
    *,
    spacing: tuple[float, ...],
    tolerance: float,
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return HD95 and the normalised surface distance of each pair of masks.

    Args:
        called: a region of the prediction.
        truth: the same region of the truth.
        spacing: mm a pixel along each axis of `s`; ones for distances in pixels.
        tolerance: largest distance, in the unit of `spacing`, at which surfaces agree.

    Returns:
        HD95 in the unit of `spacing`, from 0 to the image's diagonal; NSD in [0, 1]. Both masks
        empty: 0 and 1. One empty: the diagonal (size times spacing, BraTS's 373.13 mm for
        240 x 240 x 155 mm) and 0.

    Source: see the module.
    """
    axes = tuple(range(1, truth.ndim))
    predicted, present = called.any(axis=axes), truth.any(axis=axes)
    extent = np.multiply(truth.shape[1:], spacing)
    hd95 = np.where(predicted != present, np.sqrt((extent**2).sum()), 0.0)
    nsd = np.where(predicted != present, 0.0, 1.0)
    for i in np.flatnonzero(predicted & present & (called != truth).any(axis=axes)):
        first, second = surface(np.stack([called[i], truth[i]]))
        pair = [_distances(first, second, spacing), _distances(second, first, spacing)]
        hd95[i] = max(np.percentile(d, _PERCENTILE) for d in pair)
        # in single precision, so that 3 pixels of 0.1 mm are within 0.3 mm
        near = [np.count_nonzero(d.astype(np.float32) <= np.float32(tolerance)) for d in pair]
        nsd[i] = sum(near) / sum(len(d) for d in pair)
    return hd95, nsd


def _distances(
    start: Bool[np.ndarray, "*s"], goal: Bool[np.ndarray, "*s"], spacing: tuple[float, ...]
) -> Float64[np.ndarray, " m"]:
    """Return the distance of each pixel of `start` to the nearest of `goal`, in no order."""
    distances = np.zeros(np.count_nonzero(start))
    off = np.argwhere(start & ~goal)  # the pixels of both are at distance 0
    if len(off):
        distances[: len(off)] = _nearest(off, np.argwhere(goal), spacing)
    return distances


def _nearest(
    points: Int64[np.ndarray, "m d"], goals: Int64[np.ndarray, "g d"], spacing: tuple[float, ...]
) -> Float64[np.ndarray, " m"]:
    low = np.minimum(points.min(0), goals.min(0))
    box = np.maximum(points.max(0), goals.max(0)) - low + 1
    if len(points) + len(goals) > _DENSE * box.prod():
        free = np.ones(box, dtype=bool)
        free[tuple((goals - low).T)] = False
        at = tuple((points - low).T)
        # its own distances would be taken at every pixel of the box, most of them for nothing
        nearest = ndimage.distance_transform_edt(
            free, sampling=spacing, return_distances=False, return_indices=True
        )
        steps = (nearest[(slice(None), *at)].T + low - points) * spacing
        distances: Float64[np.ndarray, " m"] = np.sqrt((steps**2).sum(1))
    else:
        distances = KDTree(goals * spacing, leafsize=32).query(points * spacing)[0]
    return distances
