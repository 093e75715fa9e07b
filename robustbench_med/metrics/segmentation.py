"""Score masks by image and region: overlap, surfaces, volume, and missed or invented lesions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float64, Integer, UInt8
from scipy import ndimage

from robustbench_med.metrics import surface
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resampled_patients

Regions = Mapping[str, tuple[int, ...]]

_WHOLE = "pixel_accuracy"  # a metric of the image, not of a region
_UNBOUNDED = ("hd95", "volume_error")
_ML = 1000.0  # mm³


def mask_metrics(
    predicted: UInt8[np.ndarray, "n *s"],
    truth: Integer[np.ndarray, "n *s"],
    *,
    regions: Regions,
    spacing: tuple[float, ...] | None,
    tolerance: float,
) -> dict[str, Float64[np.ndarray, "n _"]]:
    """Return every metric of each image and region.

    Args:
        predicted: class ids, 2-D or 3-D.
        truth: class ids; pixels with -1 are ignored, as if they were background in both.
        regions: the class ids of each region, by its name; regions may overlap.
        spacing: mm per pixel along each axis of `s`; None = unknown, then lengths are in pixels.
        tolerance: tolerance of the normalised surface distance, in mm (in pixels without spacing).

    Returns:
        Arrays `(n, r)` by name, with columns in the order of `regions`:
            dice, iou: in [0, 1].
            hd95: in mm or pixels; nsd: in [0, 1]; see metrics/surface.py.
            volume_error: absolute difference of the region's size; for the unit see `units`.
            lesion_miss: fraction of the lesions that the predicted region touches nowhere; NaN
                without lesions. Lesions are connected components of the truth, whose pixels are
                neighbours by face, edge or corner.
            false_alarm: for regions that are absent in the truth, 1 if predicted, otherwise 0; NaN
                for regions that are present.
        The array pixel_accuracy is `(n, 1)`: the fraction of counted pixels whose class id is
        right; NaN if no pixel is counted.
        A region that is empty in truth and prediction is perfect (Dice, IoU and NSD 1, HD95 0). A
        region that is empty in only one of them has the worst score (0, 0, 0, and the diagonal of
        the image).

    Source: Maier-Hein, Reinke et al., "Metrics reloaded", Nature Methods 2024. The rule for empty
        regions is that of the evaluation of BraTS (0 and 373.13 mm; by lesion, 2023: 0 and 374),
        with the diagonal of the image at hand. A lesion counts as detected if a single pixel
        overlaps: Metrics reloaded leaves the criterion open, and a stricter one would count the
        Dice twice.
    """
    counted = truth >= 0
    axes = tuple(range(1, truth.ndim))
    right = (predicted == truth).sum(axis=axes)  # nothing is predicted -1
    columns = [
        _region(predicted, true, spacing=spacing, tolerance=tolerance)
        for predicted, true in _pairs(predicted, truth, regions)
    ]
    metrics = {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}
    return metrics | {_WHOLE: _ratio(right, counted.sum(axis=axes), empty=np.nan)[:, None]}


def overlap(
    predicted: UInt8[np.ndarray, "n *s"], truth: Integer[np.ndarray, "n *s"], *, regions: Regions
) -> Float64[np.ndarray, "n _"]:
    """Return only the Dice of each image and region, `(n, r)`, the same as in `mask_metrics`.

    >>> truth = np.array([[[1, 1, 0, -1]]])
    >>> predicted = np.array([[[1, 0, 0, 1]]], dtype=np.uint8)
    >>> overlap(predicted, truth, regions={"lesion": (1,)}).round(3)
    array([[0.667]])
    """
    return np.stack([_dice(*_sizes(*pair)) for pair in _pairs(predicted, truth, regions)], axis=1)


def units(spacing: tuple[float, ...] | None, ndim: int) -> dict[str, str]:
    """Return the unit of each metric that has one, for images of `ndim` axes.

    >>> units((1.0, 1.0, 2.0), 3)
    {'hd95': 'mm', 'volume_error': 'ml'}
    """
    if spacing is None:
        return {"hd95": "px", "volume_error": "voxels" if ndim == 3 else "px"}
    return {"hd95": "mm", "volume_error": "ml" if ndim == 3 else "mm²"}


def score_masks(
    per_image: dict[str, Float64[np.ndarray, "n _"]],
    *,
    regions: Regions,
    weights: Float64[np.ndarray, "replicates n"],
) -> dict[str, Estimate]:
    """Return the mean of each metric over images, with 95 % bootstrap intervals.

    Args:
        per_image: the metrics of each image and region, from `mask_metrics`.
        regions: the regions, in the order of the columns of `per_image`.
        weights: `(replicates, n)` from `resamples`, by patient if their ids are known.

    Returns:
        Each metric by its name, as the mean over images of the mean over regions. Each metric
        except pixel_accuracy also for single regions, named like "dice[whole tumour]". NaN values
        are left out, so lesion_miss covers the images with a lesion, and false_alarm those without.
        A metric that is NaN for every image is UNDEFINED.
    """
    columns = {name: _mean_over_regions(values) for name, values in per_image.items()}
    columns |= {
        f"{name}[{region}]": values[:, j]
        for name, values in per_image.items()
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
    with warnings.catch_warnings():  # numpy warns if all regions are NaN; the mean is then NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        mean: Float64[np.ndarray, " n"] = np.nanmean(values, axis=1)
    return mean


def _pairs(
    predicted: UInt8[np.ndarray, "n *s"], truth: Integer[np.ndarray, "n *s"], regions: Regions
) -> Iterator[tuple[Bool[np.ndarray, "n *s"], Bool[np.ndarray, "n *s"]]]:
    """Yield each region's predicted and true masks, without the ignored pixels."""
    counted = truth >= 0
    for ids in regions.values():
        yield np.isin(predicted, ids) & counted, np.isin(truth, ids) & counted


def _region(
    predicted: Bool[np.ndarray, "n *s"],
    truth: Bool[np.ndarray, "n *s"],
    *,
    spacing: tuple[float, ...] | None,
    tolerance: float,
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Return the metrics of one region."""
    ndim = truth.ndim - 1
    common, predicted_size, true_size = _sizes(predicted, truth)
    hd95, nsd = surface.agreement(
        predicted, truth, spacing=spacing or (1.0,) * ndim, tolerance=tolerance
    )
    pixel = 1.0 if spacing is None else float(np.prod(spacing)) / (_ML if ndim == 3 else 1.0)
    return {
        "dice": _dice(common, predicted_size, true_size),
        "iou": _ratio(common, predicted_size + true_size - common, empty=1.0),
        "hd95": hd95,
        "nsd": nsd,
        "volume_error": np.abs(predicted_size - true_size) * pixel,
        "lesion_miss": _lesion_miss(predicted, truth),
        "false_alarm": np.where(true_size > 0, np.nan, (predicted_size > 0).astype(np.float64)),
    }


def _sizes(
    predicted: Bool[np.ndarray, "n *s"], truth: Bool[np.ndarray, "n *s"]
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Return how many pixels of each image are in both masks, predicted, and true."""
    axes = tuple(range(1, truth.ndim))
    masks = (predicted & truth, predicted, truth)
    common, predicted_size, true_size = (np.count_nonzero(mask, axis=axes) for mask in masks)
    return common, predicted_size, true_size


def _dice(
    common: Integer[np.ndarray, " n"],
    predicted: Integer[np.ndarray, " n"],
    truth: Integer[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    return _ratio(2 * common, predicted + truth, empty=1.0)


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
    predicted: Bool[np.ndarray, "n *s"], truth: Bool[np.ndarray, "n *s"]
) -> Float64[np.ndarray, " n"]:
    """Return the fraction of each image's lesions that the prediction does not touch."""
    structure = np.zeros((3,) * truth.ndim, dtype=bool)
    structure[1] = True  # full connectivity within an image, none between images
    lesions, k = ndimage.label(truth, structure=structure)
    at = np.nonzero(lesions)
    image = np.zeros(k + 1, dtype=np.int64)
    image[lesions[at]] = at[0]
    touched = np.bincount(lesions[predicted], minlength=k + 1) > 0
    lesions_of = np.bincount(image[1:], minlength=len(truth))
    missed = np.bincount(image[1:][~touched[1:]], minlength=len(truth))
    return _ratio(missed, lesions_of, empty=np.nan)
