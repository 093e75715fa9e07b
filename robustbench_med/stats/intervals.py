"""Intervals: Wilson's, at the effective number of independent images.

Of a share that number comes from how alike the images of a patient are; of any other metric from
its variance over resamples of patients. Point values of a metric come from scikit-learn
(robustbench_med/metrics); here is only what repeats them. tests/simulation.py measures how often
the intervals hold the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.stats.patients import (
    design_effect,
    patient_numbers,
    resampled_patients,
    resamples,
)

LEVEL = 0.95
_TINY = 1e-15  # a variance below is rounding


def wilson(successes: int, n: int) -> Estimate:
    """Return the share `successes / n` with its 95 % Wilson score interval; NaN where n = 0.

    Source: Wilson 1927, through statsmodels.

    >>> wilson(0, 10).value
    0.0
    """
    if n == 0:
        return UNDEFINED
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    value = successes / n  # rounding may put a bound a hair inside of a share of 0 or 1
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def miss_bound(checked: int) -> float:
    """Return the largest share of misses that `checked` checks without one leave possible, at 95 %.

    NaN where nothing was checked. Source: Clopper and Pearson 1934, one-sided, through statsmodels.

    >>> round(miss_bound(59), 3)
    0.05
    """
    if checked == 0:
        return float("nan")
    return float(proportion_confint(0, checked, alpha=2 * (1 - LEVEL), method="beta")[1])


def interval(
    value: float,
    repeats: NDArray[np.float64],
    *,
    n_patients: float | int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Return `value` with its 95 % interval from its variance over resamples of patients.

    Wilson's interval at the number of independent images that would vary as much, with the t
    quantile of `n_patients - 1` degrees of freedom. The percentile interval would be too narrow for
    few patients, and a point where all images are right. A value at a bound, or one that no
    resample moves, counts as a share of `n_patients` independent images; one patient says nothing.
    Without an upper bound: the t interval.

    Args:
        value: the metric on all images.
        repeats: `(replicates,)` the metric on each resample; NaN is left out.
        n_patients: how many equally large ones there are.
        bounds: the least and the largest value that the metric can have.

    Source: Korn and Graubard 1998, eq. 3 (effective sample size, t quantile), with the variance
    of the bootstrap; its factor n/(n-1): Hesterberg, The American Statistician 2015, section 5.
    """
    finite = repeats[np.isfinite(repeats)]
    if not np.isfinite(value) or len(finite) == 0:
        return UNDEFINED
    low, high = bounds
    if n_patients <= 1:
        return Estimate(value=value, low=low, high=high)
    variance = float(finite.var()) * n_patients / (n_patients - 1)
    quantile = _t_quantile(n_patients - 1)
    if not np.isfinite(high):
        half = quantile * float(np.sqrt(variance))
        return Estimate(value=value, low=max(value - half, low), high=value + half)
    proportion = min(max((value - low) / (high - low), 0.0), 1.0)
    relative = variance / (high - low) ** 2
    binomial = proportion * (1 - proportion)
    images = binomial / relative if min(binomial, relative) > _TINY else float(n_patients)
    least, most = _score_bounds(proportion, images, quantile)
    return Estimate(
        value=value,
        low=min(low + (high - low) * least, value),
        high=max(low + (high - low) * most, value),
    )


def bootstrap(
    value: float,
    repeat: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    weights: NDArray[np.float64],
    *,
    among: NDArray[np.bool_] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Return `value` with the `interval` of `repeat(weights) -> (replicates,)`.

    Args:
        value: the metric on all images.
        repeat: the metric on each resample.
        weights: `(replicates, n)` from `resamples`.
        among: `(n,)` which images the metric is of; None = all.
        bounds: the least and the largest value that the metric can have.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        repeats = repeat(weights)
    return interval(value, repeats, n_patients=resampled_patients(weights, among), bounds=bounds)


def median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
    """Return the median with its percentile bootstrap interval; inf where half the values are.

    The lower of the two middle values where their number is even: the mean of a distance and of
    "none found" is no distance.
    """
    if len(values) == 0:
        return UNDEFINED
    order = np.argsort(values, kind="stable")
    ranked, drawn = values[order], weights[:, order].cumsum(1)
    filled = drawn[:, -1] > 0
    half = (drawn[filled] >= drawn[filled, -1:] / 2).argmax(1)
    value = float(ranked[(len(ranked) - 1) // 2])
    # "inverted_cdf", because a quantile between a number and inf would be NaN
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = np.quantile(ranked[half], tails, method="inverted_cdf")
    return Estimate(
        value=value, low=min(float(bounds[0]), value), high=max(float(bounds[1]), value)
    )


def mean(
    values: NDArray[np.float64] | NDArray[np.bool_],
    patients: NDArray[np.character] | None,
    *,
    seed: int = 0,
) -> Estimate:
    """Return the mean of values in [0,1] with its 95 % interval: of 0/1 as `cluster_mean`.

    >>> mean(np.array([0.25, 0.75]), None).value
    0.5
    """
    numbers = np.asarray(values, dtype=np.float64)
    if np.isin(numbers, (0.0, 1.0)).all():
        return cluster_mean(numbers, patients)
    weights = resamples(len(numbers), patients, seed=seed)
    return bootstrap(float(numbers.mean()), lambda w: (w @ numbers) / w.sum(1), weights)


def cluster_mean(values: NDArray[np.float64], patients: NDArray[np.character] | None) -> Estimate:
    """Return the mean of 0/1 values with its 95 % interval.

    Wilson where `patients` is None; all of [0,1] for a single patient. Else Wilson at the effective
    sample size: the bootstrap by patient collapses to a point where all patients agree, the score
    interval does not. The t quantile with (patients - 1) degrees of freedom pays for the estimated
    design effect (Korn & Graubard 1998).
    """
    n = len(values)
    successes = int(np.sum(values))
    if patients is None or n == 0:
        return wilson(successes, n)
    number, proportion = patient_numbers(n, patients), successes / n
    sizes = np.bincount(number)
    if len(sizes) == 1:
        return Estimate(value=proportion, low=0.0, high=1.0)
    right = np.bincount(number, weights=values).astype(np.float64)
    effect = design_effect(right, sizes)
    low, high = _score_bounds(proportion, n / effect, _t_quantile(len(sizes) - 1))
    return Estimate(value=proportion, low=min(low, proportion), high=max(high, proportion))


@cache
def _t_quantile(freedom: float | int) -> float:
    """Return the t quantile of the level; kept, because a board asks for the same one often.

    Less than one degree of freedom counts as one: its quantile, 12.7, leaves nearly all open.
    """
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, max(freedom, 1)))


def _score_bounds(proportion: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of `n` independent images, `n` a real number."""
    z = quantile
    middle = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))
