"""Measure distances between the surfaces of two masks: HD95 and normalised surface distance.

The conventions are those of MONAI, and the tests compare every number with MONAI's. They differ
from the textbook as follows:

- The surface of a mask is the set of its own pixels that have a face neighbour outside the mask
  (mask xor mask eroded by the cross). Pixels beyond the image count as outside, so a mask cut by
  the border has a surface there. The surface of the textbook lies between pixels: there, a
  structure one pixel thick has two sides; here, it is one line.
- HD95 is the larger of the two directed 95th percentiles, each over the surface pixels of one mask.
  Other implementations pool both directions before they take the percentile, which is mostly
  smaller. The percentile is interpolated linearly between the ranked distances.
- Every surface pixel counts as one, whatever its area. Nikolov et al. weight each surface element
  by its area in mm (marching cubes); with anisotropic spacing the results differ.
- Distances are between pixel centres, so differences below one pixel do not show.

Source: Huttenlocher et al., IEEE TPAMI 1993, section II (the directed distance and its ranked,
"partial" form); Nikolov et al., JMIR 2021, "Surface Dice" (the fraction within the tolerance);
Maier-Hein, Reinke et al., "Metrics reloaded", Nature Methods 2024 (HD95 and NSD, and why pixel
size matters to both); surfaces and percentiles as in MONAI 1.6 `metrics/utils.py`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import ndimage
from scipy.spatial import KDTree

_PERCENTILE = 95.0
# Above this fraction of surface pixels in their bounding box, the distance transform is faster than
# the tree: its cost grows with the box, that of the tree with the number of pixels. Measured on
# ragged and smooth masks.
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
    predicted: Bool[np.ndarray, "n *s"],
    truth: Bool[np.ndarray, "n *s"],
    *,
    spacing: tuple[float, ...],
    tolerance: float,
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return HD95 and the normalised surface distance of each pair of masks.

    Args:
        predicted: a region of the prediction.
        truth: the same region of the truth.
        spacing: mm per pixel along each axis of `s`; ones for distances in pixels.
        tolerance: largest distance, in the unit of `spacing`, at which surfaces agree.

    Returns:
        HD95 in the unit of `spacing`, from 0 to the diagonal of the image, and NSD in [0, 1]. If
        both masks are empty, they are 0 and 1. If only one is empty, they are the diagonal (size
        times spacing; 373.13 mm in BraTS, for 240 x 240 x 155 mm) and 0.

    Source: see the module.
    """
    axes = tuple(range(1, truth.ndim))
    in_prediction, in_truth = predicted.any(axis=axes), truth.any(axis=axes)
    extent = np.multiply(truth.shape[1:], spacing)
    hd95 = np.where(in_prediction != in_truth, np.sqrt((extent**2).sum()), 0.0)
    nsd = np.where(in_prediction != in_truth, 0.0, 1.0)
    for i in np.flatnonzero(in_prediction & in_truth & (predicted != truth).any(axis=axes)):
        first, second = surface(np.stack([predicted[i], truth[i]]))
        pair = [_distances(first, second, spacing), _distances(second, first, spacing)]
        hd95[i] = max(np.percentile(d, _PERCENTILE) for d in pair)
        # compared in single precision, so that 3 pixels of 0.1 mm are within 0.3 mm
        near = [np.count_nonzero(d.astype(np.float32) <= np.float32(tolerance)) for d in pair]
        nsd[i] = sum(near) / sum(len(d) for d in pair)
    return hd95, nsd


def _distances(
    start: Bool[np.ndarray, "*s"], goal: Bool[np.ndarray, "*s"], spacing: tuple[float, ...]
) -> Float64[np.ndarray, " m"]:
    """Return the distance of each pixel of `start` to the nearest pixel of `goal`, in any order."""
    distances = np.zeros(np.count_nonzero(start))
    outside = np.argwhere(start & ~goal)  # pixels in both are at distance 0
    if len(outside):
        distances[: len(outside)] = _nearest(outside, np.argwhere(goal), spacing)
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
        # distances are computed below for the points only; here it would be the whole box
        nearest = ndimage.distance_transform_edt(
            free, sampling=spacing, return_distances=False, return_indices=True
        )
        steps = (nearest[(slice(None), *at)].T + low - points) * spacing
        distances: Float64[np.ndarray, " m"] = np.sqrt((steps**2).sum(1))
    else:
        distances = KDTree(goals * spacing, leafsize=32).query(points * spacing)[0]
    return distances
