"""Scores of masks by image and region: overlap, surfaces, volume, lesions missed or invented."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float64, Integer, UInt8
from scipy import ndimage

from robustbench_med.metrics import surface
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resampled_patients

Parts = Mapping[str, tuple[int, ...]]

_WHOLE = "pixel_accuracy"  # of the image, not of a region
_UNBOUNDED = ("hd95", "volume_error")
_ML = 1000.0  # mm³


def of_masks(
    called: UInt8[np.ndarray, "n *s"],
    truth: Integer[np.ndarray, "n *s"],
    *,
    regions: Parts,
    spacing: tuple[float, ...] | None,
    tolerance: float,
) -> dict[str, Float64[np.ndarray, "n _"]]:
    """Return every metric of each image and region.

    Args:
        called: class ids, 2-D or 3-D.
        truth: class ids; -1 is ignored: background in both.
        regions: region name -> class ids whose union it is; regions may overlap.
        spacing: mm a pixel along each axis of `s`; None = unknown, lengths are in pixels.
        tolerance: of the normalised surface distance, in mm (pixels without spacing).

    Returns:
        Arrays `(n, r)`, columns in the order of `regions`, by name:
            dice, iou: in [0, 1].
            hd95: mm or pixels; nsd: in [0, 1]; see metrics/surface.py.
            volume_error: |called - truth| of the region's size; for the unit see `units`.
            lesion_miss: share of the lesions (connected components of the truth, neighbours by
                face, edge or corner) that the called region nowhere touches; NaN without lesion.
            false_alarm: of the regions that are not there: 1 where called, else 0. NaN where there.
        and pixel_accuracy `(n, 1)`: share of the counted pixels whose class id is right; NaN where
        none is counted.
        A region empty in truth and called is perfect (Dice, IoU, NSD 1, HD95 0); one empty in only
        one of them is as bad as can be (0, 0, 0, the image's diagonal).

    Source: Maier-Hein, Reinke et al., "Metrics reloaded", Nature Methods 2024; the rule for empty
    regions is that of the evaluation of BraTS (0 and 373.13 mm; by lesion, 2023: 0 and 374), with
    the diagonal of the image at hand. A lesion counts as found at a single common pixel:
    Metrics reloaded leaves the criterion open, and a stricter one would count Dice twice.
    """
    counted = truth >= 0
    axes = tuple(range(1, truth.ndim))
    right = (called == truth).sum(axis=axes)  # nothing is called -1
    columns = [
        _region(predicted, true, spacing=spacing, tolerance=tolerance)
        for predicted, true in _pairs(called, truth, regions)
    ]
    metrics = {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}
    return metrics | {_WHOLE: _ratio(right, counted.sum(axis=axes), empty=np.nan)[:, None]}


def overlap(
    called: UInt8[np.ndarray, "n *s"], truth: Integer[np.ndarray, "n *s"], *, regions: Parts
) -> Float64[np.ndarray, "n _"]:
    """Return the Dice of each image and region, `(n, r)`, as `of_masks` does, and nothing else.

    >>> truth = np.array([[[1, 1, 0, -1]]])
    >>> called = np.array([[[1, 0, 0, 1]]], dtype=np.uint8)
    >>> overlap(called, truth, regions={"lesion": (1,)}).round(3)
    array([[0.667]])
    """
    return np.stack([_dice(*_sizes(*pair)) for pair in _pairs(called, truth, regions)], axis=1)


def units(spacing: tuple[float, ...] | None, ndim: int) -> dict[str, str]:
    """Return the unit of each metric that has one, for images of `ndim` axes.

    >>> units((1.0, 1.0, 2.0), 3)
    {'hd95': 'mm', 'volume_error': 'ml'}
    """
    if spacing is None:
        return {"hd95": "px", "volume_error": "voxels" if ndim == 3 else "px"}
    return {"hd95": "mm", "volume_error": "ml" if ndim == 3 else "mm²"}


def score_masks(
    found: dict[str, Float64[np.ndarray, "n _"]],
    *,
    regions: Parts,
    weights: Float64[np.ndarray, "replicates n"],
) -> dict[str, Estimate]:
    """Return the mean of each metric over images, with 95 % bootstrap intervals.

    Args:
        found: from `of_masks`.
        regions: the regions, in the order of the columns of `found`.
        weights: from resamples, by patient where ids exist.

    Returns:
        Each metric by its name: the mean over images of the mean over regions; and for every
        region alone as "dice[whole tumour]", all but pixel_accuracy. What is NaN is left out:
        lesion_miss is of the images with the lesion, false_alarm of those without. A metric that
        no image defines is UNDEFINED.
    """
    columns = {name: _mean_over_regions(values) for name, values in found.items()}
    columns |= {
        f"{name}[{region}]": values[:, j]
        for name, values in found.items()
        if name != _WHOLE
        for j, region in enumerate(regions)
    }
    values = np.stack(list(columns.values()), axis=1)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    means = _ratio(filled.sum(0), known.sum(0), empty=np.nan)
    repeats = _ratio(weights @ filled, weights @ known, empty=np.nan)
    return {
        name: intervals.interval(
            float(means[j]),
            repeats[:, j],
            n_patients=resampled_patients(weights, known[:, j]),
            bounds=(0.0, np.inf if name.startswith(_UNBOUNDED) else 1.0),
        )
        for j, name in enumerate(columns)
    }


def _mean_over_regions(values: Float64[np.ndarray, "n r"]) -> Float64[np.ndarray, " n"]:
    with warnings.catch_warnings():  # an image that defines no region is NaN, as it should be
        warnings.simplefilter("ignore", RuntimeWarning)
        mean: Float64[np.ndarray, " n"] = np.nanmean(values, axis=1)
    return mean


def _pairs(
    called: UInt8[np.ndarray, "n *s"], truth: Integer[np.ndarray, "n *s"], regions: Parts
) -> Iterator[tuple[Bool[np.ndarray, "n *s"], Bool[np.ndarray, "n *s"]]]:
    """Yield each region's masks, called and true, without the ignored pixels."""
    counted = truth >= 0
    for ids in regions.values():
        yield np.isin(called, ids) & counted, np.isin(truth, ids) & counted


def _region(
    called: Bool[np.ndarray, "n *s"],
    truth: Bool[np.ndarray, "n *s"],
    *,
    spacing: tuple[float, ...] | None,
    tolerance: float,
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Return the metrics of one region."""
    ndim = truth.ndim - 1
    common, ours, size = _sizes(called, truth)
    hd95, nsd = surface.agreement(
        called, truth, spacing=spacing or (1.0,) * ndim, tolerance=tolerance
    )
    pixel = 1.0 if spacing is None else float(np.prod(spacing)) / (_ML if ndim == 3 else 1.0)
    return {
        "dice": _dice(common, ours, size),
        "iou": _ratio(common, ours + size - common, empty=1.0),
        "hd95": hd95,
        "nsd": nsd,
        "volume_error": np.abs(ours - size) * pixel,
        "lesion_miss": _lesion_miss(called, truth),
        "false_alarm": np.where(size > 0, np.nan, (ours > 0).astype(np.float64)),
    }


def _sizes(
    called: Bool[np.ndarray, "n *s"], truth: Bool[np.ndarray, "n *s"]
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Return the pixels in both, called and true, of each image."""
    axes = tuple(range(1, truth.ndim))
    masks = (called & truth, called, truth)
    both, predicted, true = (np.count_nonzero(mask, axis=axes) for mask in masks)
    return both, predicted, true


def _dice(
    common: Integer[np.ndarray, " n"],
    called: Integer[np.ndarray, " n"],
    truth: Integer[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    return _ratio(2 * common, called + truth, empty=1.0)


def _ratio(
    part: Float64[np.ndarray, "*m"] | Integer[np.ndarray, "*m"],
    whole: Float64[np.ndarray, "*m"] | Integer[np.ndarray, "*m"],
    *,
    empty: float,
) -> Float64[np.ndarray, "*m"]:
    ratio: Float64[np.ndarray, "*m"] = np.divide(
        part, whole, out=np.full(whole.shape, empty), where=whole > 0
    )
    return ratio


def _lesion_miss(
    called: Bool[np.ndarray, "n *s"], truth: Bool[np.ndarray, "n *s"]
) -> Float64[np.ndarray, " n"]:
    """Return the share of each image's lesions that `called` does not touch."""
    near = np.zeros((3,) * truth.ndim, dtype=bool)
    near[1] = True  # full connectivity within an image, none to the next
    lesions, k = ndimage.label(truth, structure=near)
    at = np.nonzero(lesions)
    image = np.zeros(k + 1, dtype=np.int64)
    image[lesions[at]] = at[0]
    touched = np.bincount(lesions[called], minlength=k + 1) > 0
    lesions_of = np.bincount(image[1:], minlength=len(truth))
    missed = np.bincount(image[1:][~touched[1:]], minlength=len(truth))
    return _ratio(missed, lesions_of, empty=np.nan)
