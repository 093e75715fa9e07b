"""Compute 95 % intervals: Wilson's interval at the effective number of independent images.

For a proportion, that number follows from how alike the images of a patient are. For any other
metric, it follows from the variance of the metric over resamples of patients. The values of metrics
are computed in robustbench_med/metrics. tests/simulation.py measures how often the intervals
contain the true value.
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
    few_at_a_time,
    patient_numbers,
    resampled_patients,
    resamples,
)

LEVEL = 0.95
_TINY = 1e-15  # smaller variances are rounding errors


def wilson(successes: int, n: int) -> Estimate:
    """Return the proportion `successes / n` with its 95 % Wilson score interval; NaN if n = 0.

    Source: Wilson 1927, computed by statsmodels.

    >>> wilson(0, 10).value
    0.0
    """
    if n == 0:
        return UNDEFINED
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    value = successes / n  # a rounded bound may lie slightly inside of a proportion of 0 or 1
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def miss_bound(checked: int) -> float:
    """Return the 95 % upper bound of the miss rate when none of `checked` checks is a miss.

    It is NaN if nothing was checked.

    Source: Clopper and Pearson 1934, one-sided, computed by statsmodels.

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
    rarer: float | None = None,
) -> Estimate:
    """Return `value` with its 95 % interval from its variance over resamples of patients.

    This is Wilson's interval at the number of independent images that would vary as much, with the
    t quantile of `n_patients - 1` degrees of freedom. (The percentile interval would be too narrow
    for few patients, and would shrink to a point if all images are right.) A value at a bound, or
    one that is the same in every resample, is treated as a proportion of `n_patients` independent
    images. With one patient the interval is the whole range. A metric without an upper bound gets
    the t interval.

    Args:
        value: the metric on all images.
        repeats: `(replicates,)` the metric on each resample; NaN is left out.
        n_patients: effective number of patients, see `effective_patients`.
        bounds: the smallest and the largest value that the metric can have.
        rarer: of a mean of few patients, the effective number of patients that its distance from
            the nearer bound comes from. The variance is moved by 1 / rarer² towards that of
            patients at either bound, as in `design_effect`, because rare failures may be missing.

    Source: Korn and Graubard 1998, eq. 3 (effective sample size, t quantile), with the variance
        of the bootstrap; its factor n/(n-1) is from Hesterberg, The American Statistician 2015,
        section 5.
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
    if rarer:
        relative += max(binomial / n_patients - relative, 0.0) / rarer**2
    images = binomial / relative if min(binomial, relative) > _TINY else float(n_patients)
    lower, upper = _score_bounds(proportion, images, quantile)
    return Estimate(
        value=value,
        low=min(low + (high - low) * lower, value),
        high=max(low + (high - low) * upper, value),
    )


def bootstrap(
    value: float,
    repeat: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    weights: NDArray[np.float64],
    *,
    among: NDArray[np.bool_] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Return `value` with its bootstrap interval, see `interval`.

    Args:
        value: the metric on all images.
        repeat: returns the metric on each resample, `(replicates,)`, from the weights.
        weights: `(replicates, n)` from `resamples`.
        among: `(n,)` the images that the metric covers; None = all.
        bounds: the smallest and the largest value that the metric can have.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        repeats = repeat(weights)
    return interval(value, repeats, n_patients=resampled_patients(weights, among), bounds=bounds)


def median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
    """Return the median with its percentile bootstrap interval; inf if most values are.

    With an even number of values, the lower of the two middle ones is taken, because the mean of a
    distance and of "none found" (inf) is not a distance.
    """
    if len(values) == 0:
        return UNDEFINED
    order = np.argsort(values, kind="stable")
    ranked, pieces = values[order], []
    for some in few_at_a_time(weights):
        drawn = some[:, order].cumsum(1)
        filled = drawn[:, -1] > 0
        pieces.append((drawn[filled] >= drawn[filled, -1:] / 2).argmax(1))
    half = np.concatenate(pieces)
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
    """Return the mean of values in [0,1] with its 95 % interval; 0/1 values use `cluster_mean`.

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

    Without `patients` it is Wilson's interval, and for a single patient it is all of [0,1].
    Otherwise it is Wilson's interval at the effective sample size, because a bootstrap by patient
    shrinks to a point if all patients agree, and the score interval does not. The t quantile with
    (patients - 1) degrees of freedom accounts for the estimated design effect.

    Source: Korn & Graubard 1998.
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
    """Return the t quantile of the level; cached, because a board needs the same one often.

    Less than one degree of freedom counts as one; its quantile, 12.7, already gives intervals that
    are nearly the whole range.
    """
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, max(freedom, 1)))


def _score_bounds(proportion: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a proportion of `n` independent images; `n` may be fractional."""
    z = quantile
    middle = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))
