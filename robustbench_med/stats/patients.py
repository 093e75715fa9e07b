"""Patients: account for images of the same patient, which are drawn and counted together.

If patients are not known (None), every image counts as a patient of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

REPLICATES = 1000
_AT_ONCE = 2**19  # weights


def patient_numbers(n: int, patients: NDArray[np.character] | None) -> NDArray[np.intp]:
    """Return the patient of each of `n` images as a number 0, 1, ..., in the order of names.

    >>> patient_numbers(3, np.array(["b", "a", "b"]))
    array([1, 0, 1])
    """
    if patients is None:
        return np.arange(n)
    numbers: NDArray[np.intp] = np.unique(patients, return_inverse=True)[1]
    return numbers


def resamples(
    n: int, patients: NDArray[np.character] | None, *, seed: int = 0, replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Return bootstrap weights `(replicates, n)`: how often each image is drawn.

    Whole patients are drawn with replacement; if `patients` is None, single images are.
    """
    if n == 0:
        return np.zeros((replicates, 0))
    number = patient_numbers(n, patients)
    count = int(number.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), replicates)
    weights = drawn.astype(np.float64)
    return weights if patients is None else weights[:, number]


def few_at_a_time(weights: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield `weights` from `resamples` a few resamples at a time, for what needs copies of them."""
    size = max(1, _AT_ONCE // max(1, weights.shape[1]))
    for start in range(0, max(1, len(weights)), size):
        yield weights[start : start + size]


def resampled_patients(
    weights: NDArray[np.float64], among: NDArray[np.bool_] | None = None
) -> float:
    """Return the effective number of patients behind the resamples, see `effective_patients`.

    Patients are told apart by their draws: two images of the same patient are drawn equally often
    in every resample; images of different patients are not.

    Args:
        weights: `(replicates, n)` from `resamples`.
        among: `(n,)` the images that count; None = all.

    >>> round(resampled_patients(resamples(4, np.array(["a", "b", "a", "c"]))), 2)
    2.67
    """
    drawn = weights if among is None else weights[:, among]
    keys = np.random.default_rng(0).random(len(drawn))
    return effective_patients(np.unique((keys @ drawn).round(6), return_counts=True)[1])


def effective_patients(sizes: NDArray[np.int64]) -> float:
    """Return the effective number of patients with `sizes` images: n² / Σ size².

    This is the number of equally large patients that carry as much information. One patient with
    half of all images makes it small, however many others there are.

    Source: Kish, Survey Sampling 1965 (as the effective size of weighted samples).

    >>> effective_patients(np.array([3, 3, 3])), effective_patients(np.array([9, 1]))
    (3.0, 1.2195121951219512)
    """
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def rarer_patients(values: NDArray[np.float64], patients: NDArray[np.character] | None) -> float:
    """Return the effective number of patients that make up the smaller distance from 0 and 1.

    A mean of 0.9 whose failures are all of one patient rests on one, however many there are.

    Args:
        values: `(n,)` values of images in [0,1].
        patients: `(n,)` their patients.

    >>> rarer_patients(np.array([1.0, 1.0, 1.0, 0.0]), None)
    1.0
    """
    number = patient_numbers(len(values), patients)
    sums = [np.bincount(number, weights=side) for side in (values, 1 - values)]
    return min(float(s.sum() ** 2 / (s**2).sum()) if s.any() else 0.0 for s in sums)


def design_effect(right: NDArray[np.float64], sizes: NDArray[np.int64]) -> float:
    """Return the factor by which clustering inflates the variance of a mean of 0/1 values.

    It is the cluster-robust variance divided by the binomial one, and at least 1. A few patients
    with the rarer outcome do not show how alike the images of a patient are. So with `k` such
    patients, the estimate is moved by 1 / k² towards the design effect of patients whose images are
    all alike. Without this, the intervals of proportions near 0 and 1 contain the true value only
    89 % of the time. `k` is an effective number: if one of the patients has most of the images, it
    is hardly more than one.

    Args:
        right: `(patients,)` the sum of each patient's values; at least two patients.
        sizes: `(patients,)` the number of images of each patient.

    Source: Korn and Graubard, Survey Methodology 1998; the weight 1 / k² is ours, set by
        simulation.
    """
    n = sizes.sum()
    mean = right.sum() / n
    alike = float((sizes**2).sum() / n)
    rarer = min(effective_patients(sizes[having]) for having in (right > 0, right < sizes))
    if rarer == 0:
        return alike
    inflation = variance_inflation(right, sizes, mean * (1 - mean) * n)
    return inflation + max(alike - inflation, 0.0) / rarer**2


def variance_inflation(
    sums: NDArray[np.float64], sizes: NDArray[np.int64], independent: float
) -> float:
    """Return the cluster-robust variance of a sum divided by `independent`; at least 1.

    Args:
        sums: `(patients,)` the sum of each patient's values; at least two patients.
        sizes: `(patients,)` the number of images of each patient.
        independent: variance that the sum of all values would have with independent images.
    """
    count = len(sizes)
    residual = sums - sums.sum() / sizes.sum() * sizes
    return max(1.0, float(count / (count - 1) * (residual**2).sum() / independent))


def standard_error(values: NDArray[np.float64], number: NDArray[np.intp]) -> float:
    """Return the cluster-robust standard error of the mean of `values`; 0 for a single patient.

    Args:
        values: `(n,)` values of images.
        number: `(n,)` the patient of each image, from `patient_numbers`.
    """
    count = int(number.max(initial=-1)) + 1
    if count < 2:
        return 0.0
    residual = np.bincount(number, weights=values - values.mean())
    return float(math.sqrt(count / (count - 1) * (residual**2).sum()) / len(values))
