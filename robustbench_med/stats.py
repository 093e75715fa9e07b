"""Intervals: Wilson's, at the effective number of independent images.

Of a share that number comes from how alike the images of a patient are; of any other metric from
its spread over resamples of patients. Point values of a metric come from scikit-learn
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

from robustbench_med.bench.record import Estimate

LEVEL = 0.95
REPLICATES = 1000
_TINY = 1e-15  # a variance below is rounding

UNDEFINED = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))


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


def resamples(
    n: int, clusters: NDArray[np.character] | None, *, seed: int = 0, replicates: int = REPLICATES
) -> NDArray[np.float64]:
    """Return bootstrap weights `(replicates, n)`: how often each image is drawn.

    Whole clusters (patients) are drawn with replacement; without clusters each image is its own.
    """
    owner = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if n == 0:
        return np.zeros((replicates, 0))
    groups = int(owner.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), replicates)
    return drawn[:, owner].astype(np.float64)


def patients_of(weights: NDArray[np.float64], among: NDArray[np.bool_] | None = None) -> float:
    """Return how many equally large patients the resamples are worth, see `equal_patients`.

    Images of one patient are drawn equally often in every resample, those of two are not.

    Args:
        weights: `(replicates, n)` from `resamples`.
        among: `(n,)` which images are counted; None = all.

    >>> round(patients_of(resamples(4, np.array(["a", "b", "a", "c"]))), 2)
    2.67
    """
    drawn = weights if among is None else weights[:, among]
    keys = np.random.default_rng(0).random(len(drawn))
    return equal_patients(np.unique((keys @ drawn).round(6), return_counts=True)[1])


def equal_patients(sizes: NDArray[np.int64]) -> float:
    """Return how many equally large patients those of `sizes` images are worth: n² over Σ size².

    A patient with half of all images says nothing of how patients differ, however many others
    there are. Source: Kish, Survey Sampling 1965 (as the effective size of weighted samples).

    >>> equal_patients(np.array([3, 3, 3])), equal_patients(np.array([9, 1]))
    (3.0, 1.2195121951219512)
    """
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def interval(
    value: float,
    repeats: NDArray[np.float64],
    *,
    patients: float | int,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Return `value` with its 95 % interval from its spread over resamples of patients.

    Wilson's interval at the number of independent images that would spread as much, with the t
    quantile of `patients - 1` degrees of freedom. The percentile interval would be too narrow for
    few patients, and a point where all images are right. A value at a bound, or one that no
    resample moves, counts as a share of `patients` independent images; one patient says nothing.
    Without an upper bound: the t interval.

    Args:
        value: the metric on all images.
        repeats: `(replicates,)` the metric on each resample; NaN is left out.
        patients: how many equally large ones there are.
        bounds: the least and the largest value that the metric can have.

    Source: Korn and Graubard 1998, eq. 3 (effective sample size, t quantile), with the spread of
    the bootstrap; its factor n/(n-1): Hesterberg, The American Statistician 2015, section 5.
    """
    kept = repeats[np.isfinite(repeats)]
    if not np.isfinite(value) or len(kept) == 0:
        return UNDEFINED
    low, high = bounds
    if patients <= 1:
        return Estimate(value=value, low=low, high=high)
    variance = float(kept.var()) * patients / (patients - 1)
    quantile = _t_quantile(patients - 1)
    if not np.isfinite(high):
        half = quantile * float(np.sqrt(variance))
        return Estimate(value=value, low=max(value - half, low), high=value + half)
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    spread = variance / (high - low) ** 2
    binomial = share * (1 - share)
    images = binomial / spread if min(binomial, spread) > _TINY else float(patients)
    least, most = _score_bounds(share, images, quantile)
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
    return interval(value, repeats, patients=patients_of(weights, among), bounds=bounds)


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
    clusters: NDArray[np.character] | None,
    *,
    seed: int = 0,
) -> Estimate:
    """Return the mean of values in [0,1] with its 95 % interval: of 0/1 as `cluster_mean`.

    >>> mean(np.array([0.25, 0.75]), None).value
    0.5
    """
    numbers = np.asarray(values, dtype=np.float64)
    if np.isin(numbers, (0.0, 1.0)).all():
        return cluster_mean(numbers, clusters)
    weights = resamples(len(numbers), clusters, seed=seed)
    return bootstrap(float(numbers.mean()), lambda w: (w @ numbers) / w.sum(1), weights)


def cluster_mean(values: NDArray[np.float64], clusters: NDArray[np.character] | None) -> Estimate:
    """Return the mean of 0/1 values with its 95 % interval.

    Wilson where `clusters` is None; all of [0,1] for a single patient. Else Wilson at the effective
    sample size: the bootstrap by patient collapses to a point where all patients agree, the score
    interval does not. The t quantile with (patients - 1) degrees of freedom pays for the estimated
    design effect (Korn & Graubard 1998).
    """
    n = len(values)
    successes = int(np.sum(values))
    if clusters is None or n == 0:
        return wilson(successes, n)
    owner, share = np.unique(clusters, return_inverse=True)[1], successes / n
    sizes = np.bincount(owner)
    if len(sizes) == 1:
        return Estimate(value=share, low=0.0, high=1.0)
    right = np.bincount(owner, weights=values).astype(np.float64)
    effect = design_effect(right, sizes)
    low, high = _score_bounds(share, n / effect, _t_quantile(len(sizes) - 1))
    return Estimate(value=share, low=min(low, share), high=max(high, share))


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
    n, groups = sizes.sum(), len(sizes)
    mean = right.sum() / n
    alike = float((sizes**2).sum() / n)
    binomial = mean * (1 - mean) * n
    rarer = min(equal_patients(sizes[having]) for having in (right > 0, right < sizes))
    if rarer == 0:
        return alike
    residual = right - mean * sizes
    found = max(1.0, float(groups / (groups - 1) * (residual**2).sum() / binomial))
    return found + max(alike - found, 0.0) / rarer**2


@cache
def _t_quantile(freedom: float | int) -> float:
    """Return the t quantile of the level; kept, because a board asks for the same one often.

    Less than one degree of freedom counts as one: its quantile, 12.7, leaves nearly all open.
    """
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, max(freedom, 1)))


def _score_bounds(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of `n` independent images, `n` a real number."""
    z = quantile
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p values `(..., tests)` corrected for the number of tests by Holm's steps.

    Our own four lines: statsmodels' `multipletests` collects garbage at every call, 0.15 s a board.
    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm(np.array([0.01, 0.04, 0.02]))
    array([0.03, 0.04, 0.04])
    """
    order, count = np.argsort(p, axis=-1), p.shape[-1]
    raised = np.take_along_axis(p, order, -1) * np.arange(count, 0, -1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.maximum.accumulate(raised, axis=-1), -1)
    return np.minimum(corrected, 1.0)
