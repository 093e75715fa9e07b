"""Intervals: Wilson for shares of independent images, bootstrap by patient where ids exist.

Point values of a metric come from scikit-learn (robustbench_med/metrics); here is only what repeats
them.
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


def percentile(value: float, repeats: NDArray[np.float64]) -> Estimate:
    """Return `value` with the percentile interval of its repeats, NaN left out."""
    kept = repeats[np.isfinite(repeats)]
    if not np.isfinite(value) or len(kept) == 0:
        return UNDEFINED
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def bootstrap(
    value: float,
    repeat: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    weights: NDArray[np.float64],
) -> Estimate:
    """Return `value` with the percentile interval of `repeat(weights) -> (replicates,)`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return percentile(value, repeat(weights))


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
    bounds = np.quantile(
        ranked[half], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf"
    )  # a quantile between a number and inf would be NaN
    return Estimate(
        value=value, low=min(float(bounds[0]), value), high=max(float(bounds[1]), value)
    )


def mean(
    values: NDArray[np.float64] | NDArray[np.bool_],
    clusters: NDArray[np.character] | None,
    *,
    seed: int = 0,
) -> Estimate:
    """Return the mean with its 95 % interval: of 0/1 as `cluster_mean`, else a bootstrap.

    >>> mean(np.array([0.5, 0.5]), None).high
    0.5
    """
    numbers = np.asarray(values, dtype=np.float64)
    if np.isin(numbers, (0.0, 1.0)).all():
        return cluster_mean(numbers, clusters, seed=seed)
    weights = resamples(len(numbers), clusters, seed=seed)
    return bootstrap(float(numbers.mean()), lambda w: (w @ numbers) / w.sum(1), weights)


def cluster_mean(
    values: NDArray[np.float64], clusters: NDArray[np.character] | None, *, seed: int = 0
) -> Estimate:
    """Return the mean of 0/1 values with its 95 % interval.

    Wilson where `clusters` is None. Else Wilson at the effective sample size: the bootstrap by
    patient collapses to a point where all patients agree, the score interval does not. The design
    effect is the cluster-robust variance over the binomial one, floored at 1 (Korn & Graubard
    1998).
    """
    n = len(values)
    successes = int(np.sum(values))
    if clusters is None or n == 0:
        return wilson(successes, n)
    return _wilson_real(successes / n, n / design_effect(values, clusters), groups=clusters)


def design_effect(values: NDArray[np.float64], clusters: NDArray[np.character]) -> float:
    """Return how many times clustering inflates the variance of the mean, at least 1."""
    n = len(values)
    owner = np.unique(clusters, return_inverse=True)[1]
    groups = int(owner.max()) + 1
    mean = values.mean()
    residual = np.bincount(owner, weights=values - mean)
    binomial = mean * (1 - mean) * n
    if groups < 2 or binomial == 0:
        sizes = np.bincount(owner)
        return float((sizes**2).sum() / n) if binomial == 0 else 1.0
    return max(1.0, float(groups / (groups - 1) * (residual**2).sum() / binomial))


@cache
def _t_quantile(freedom: int) -> float:
    """Return the t quantile of the level; kept, because a board asks for the same one often."""
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, freedom))


def _wilson_real(share: float, n: float, *, groups: NDArray[np.character]) -> Estimate:
    # the t quantile with (patients - 1) degrees of freedom pays for the estimated design effect
    freedom = max(len(np.unique(groups)) - 1, 1)
    z = _t_quantile(freedom)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(
        value=share, low=float(max(middle - half, 0.0)), high=float(min(middle + half, 1.0))
    )
