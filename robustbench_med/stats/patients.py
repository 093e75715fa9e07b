"""Patients: how much the images of one patient say, drawn and counted together.

Where patients are not known (None), every image counts as a patient of its own.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

REPLICATES = 1000


def patient_numbers(n: int, patients: NDArray[np.character] | None) -> NDArray[np.intp]:
    """Return the patient of each of `n` images as 0, 1, ..., in the order of their names.

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

    Whole patients are drawn with replacement; where `patients` is None each image is its own.
    """
    if n == 0:
        return np.zeros((replicates, 0))
    number = patient_numbers(n, patients)
    count = int(number.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), replicates)
    return drawn[:, number].astype(np.float64)


def resampled_patients(
    weights: NDArray[np.float64], among: NDArray[np.bool_] | None = None
) -> float:
    """Return how many equally large patients the resamples are worth, see `effective_patients`.

    Images of one patient are drawn equally often in every resample, those of two are not.

    Args:
        weights: `(replicates, n)` from `resamples`.
        among: `(n,)` which images are counted; None = all.

    >>> round(resampled_patients(resamples(4, np.array(["a", "b", "a", "c"]))), 2)
    2.67
    """
    drawn = weights if among is None else weights[:, among]
    keys = np.random.default_rng(0).random(len(drawn))
    return effective_patients(np.unique((keys @ drawn).round(6), return_counts=True)[1])


def effective_patients(sizes: NDArray[np.int64]) -> float:
    """Return how many equally large patients those of `sizes` images are worth: n² over Σ size².

    A patient with half of all images says nothing of how patients differ, however many others
    there are. Source: Kish, Survey Sampling 1965 (as the effective size of weighted samples).

    >>> effective_patients(np.array([3, 3, 3])), effective_patients(np.array([9, 1]))
    (3.0, 1.2195121951219512)
    """
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def design_effect(right: NDArray[np.float64], sizes: NDArray[np.int64]) -> float:
    """Return how many times clustering inflates the variance of the mean of 0/1 values, at least 1.

    The cluster-robust variance over the binomial one. Few patients with the rarer outcome say
    little of how alike the images of a patient are: with `k` of them, the design effect of images
    that are all alike counts for 1 / k². Without that the intervals of shares near 0 and 1
    hold the truth in 89 %. Patients count as equally large ones: if one of those `k` has most of
    the images, there is hardly more than one.

    Args:
        right: `(patients,)` the sum of a patient's values, two patients or more.
        sizes: `(patients,)` how many images each has.

    Source: Korn and Graubard, Survey Methodology 1998; the weight is ours, set by simulation.
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
    """Return the cluster-robust variance of a sum over that of independent images, at least 1.

    Args:
        sums: `(patients,)` the sum of a patient's values, two patients or more.
        sizes: `(patients,)` how many images each has.
        independent: variance of the sum of all values, were the images independent.
    """
    count = len(sizes)
    residual = sums - sums.sum() / sizes.sum() * sizes
    return max(1.0, float(count / (count - 1) * (residual**2).sum() / independent))


def standard_error(values: NDArray[np.float64], number: NDArray[np.intp]) -> float:
    """Return the cluster-robust standard error of the mean of `values`; 0 for a single patient.

    Args:
        values: `(n,)`.
        number: `(n,)` the patient of each, from `patient_numbers`.
    """
    count = int(number.max(initial=-1)) + 1
    if count < 2:
        return 0.0
    residual = np.bincount(number, weights=values - values.mean())
    return float(math.sqrt(count / (count - 1) * (residual**2).sum()) / len(values))
