"""Paired tests: decide whether scores of the same images differ, and compute power.

If images are right or wrong and each patient has one, this is McNemar's exact test. If patients
have several images, or if scores are graded like the Dice, it is a sign test: under the null
hypothesis the sign of each patient's summed difference is exchangeable, so all sign patterns are
counted, or a random sample of them if there are too many. With one right or wrong image per patient
it equals McNemar's test exactly. A bootstrap of few patients would call too many differences real;
these tests keep their level for any number of patients (tests/leaderboard/test_ties.py and
docs/statistics.md).

Source: McNemar, Psychometrika 12, 1947 (exact binomial); Fisher, The Design of Experiments 1935,
section 21, and Cameron, Gelbach, Miller, Review of Economics and Statistics 90, 2008, section
III.B (Rademacher signs, null imposed); Holm, Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from robustbench_med.stats.patients import patient_numbers

LEVEL = 0.05  # largest fraction of unchanged models that are called weaker
POWER = 0.80
DRAWS = 9_999  # sign patterns that the two-sided test draws
_CHUNK = 2_000  # patterns in memory at once
_ALL_PATTERNS = 14  # up to so many patients that differ, the one-sided test counts all patterns
_PATTERNS = 20_000  # patterns that the one-sided test draws for more patients
MAX_IMAGES = 10_000_000  # larger sample sizes are not suggested
_ROUNDING = 1e-9  # sums of floats that differ by less count as equal

Floats = NDArray[np.float64]


def two_sided_p(
    difference: NDArray[np.float64], number: NDArray[np.intp] | None, *, draws: int = DRAWS
) -> NDArray[np.float64]:
    """Return the two-sided p value of no difference in the mean, at each rung.

    Args:
        difference: `(n, rungs)` differences of paired images; -1, 0 or 1 if images are right or
            wrong.
        number: the patient of each image, 0, 1, ...; None if images are independent.
        draws: number of random sign patterns; the test is exact if there are no more patterns.

    >>> two_sided_p(np.array([[1.0]] * 6 + [[0.0]] * 9), None)
    array([0.03125])
    """
    count = int(number.max()) + 1 if number is not None and len(number) else len(difference)
    single = number is None or count == len(difference)
    if single and np.isin(difference, (-1.0, 0.0, 1.0)).all():
        return mcnemar_two_sided((difference > 0).sum(axis=0), (difference < 0).sum(axis=0))
    sums = difference
    if number is not None:
        sums = np.zeros((count, difference.shape[1]))
        np.add.at(sums, number, difference)
    return signs_two_sided(sums, draws)


def one_sided_p(
    before: Floats, now: Floats, patients: NDArray[np.character] | None = None, *, seed: int = 0
) -> float:
    """Return the probability of so large a drop of the mean, or a larger one, by chance.

    Args:
        before: `(n,)` scores before, 0/1 or Dice in [0,1].
        now: `(n,)` scores of the same images now.
        patients: `(n,)` the patient of each image; None if images are independent.
        seed: seed of the random sign patterns, if there are too many to count them all.
    """
    drop = np.asarray(before, dtype=np.float64) - np.asarray(now, dtype=np.float64)
    number = patient_numbers(len(drop), patients)
    single = len(np.unique(number)) == len(drop)
    if single and np.isin(drop, (-1, 0, 1)).all():
        return mcnemar(int((drop > 0).sum()), int((drop < 0).sum()))
    return signs_one_sided(np.bincount(number, weights=drop).astype(np.float64), seed=seed)


def mcnemar(losses: int, gains: int) -> float:
    """Return McNemar's exact one-sided p value of `losses` or more among the changed images.

    >>> mcnemar(5, 0)
    0.03125
    """
    return float(scipy_stats.binom.sf(losses - 1, losses + gains, 0.5))


def mcnemar_two_sided(gains: NDArray[np.intp], losses: NDArray[np.intp]) -> Floats:
    """Return McNemar's exact two-sided p value of each pair of counts.

    >>> mcnemar_two_sided(np.array([6]), np.array([0]))
    array([0.03125])
    """
    tail = scipy_stats.binom.cdf(np.minimum(gains, losses), gains + losses, 0.5)
    return np.minimum(2 * np.asarray(tail, dtype=np.float64), 1.0)


def signs_two_sided(sums: NDArray[np.float64], draws: int = DRAWS) -> NDArray[np.float64]:
    """Return the fraction of sign patterns whose sum is at least as far from 0 as observed."""
    count = len(sums)
    observed = np.abs(sums.sum(axis=0)) - _ROUNDING
    if 2 ** (count - 1) <= draws:
        # the first sign is fixed, because the other half of all patterns mirrors this half
        numbers = np.arange(2 ** max(count - 1, 0))[:, None]
        bits = 2.0 * ((numbers >> np.arange(count)) & 1) - 1
        return np.asarray((np.abs(bits @ sums) >= observed).mean(axis=0), dtype=np.float64)
    # the observed pattern counts too
    rng, far = np.random.default_rng(0), np.ones(sums.shape[1])
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        bits = 2.0 * rng.integers(0, 2, (size, count), dtype=np.int8) - 1
        far += (np.abs(bits @ sums) >= observed).sum(axis=0)
    return far / (draws + 1)


def signs_one_sided(sums: Floats, *, seed: int = 0) -> float:
    """Return the fraction of sign patterns whose sum is at least as large as observed.

    >>> signs_one_sided(np.ones(5))
    0.03125
    """
    sums = sums[np.abs(sums) > 1e-12]
    # the same numbers summed in another order must count as an equal sum
    total = sums.sum() - _ROUNDING
    # the observed pattern is then the only one with so large a sum
    if (sums > 0).all():
        return float(0.5 ** len(sums))
    if len(sums) <= _ALL_PATTERNS:
        bits = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float(((1 - 2 * bits) @ sums >= total).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (_PATTERNS, len(sums)))
    return float((1 + (signs @ sums >= total).sum()) / (1 + _PATTERNS))


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p values `(..., tests)` corrected for the number of tests by Holm's method.

    It is not taken from statsmodels, whose `multipletests` collects garbage in every call (0.15 s
    per board).

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm(np.array([0.01, 0.04, 0.02]))
    array([0.03, 0.04, 0.04])
    """
    order, count = np.argsort(p, axis=-1), p.shape[-1]
    raised = np.take_along_axis(p, order, -1) * np.arange(count, 0, -1)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, np.maximum.accumulate(raised, axis=-1), -1)
    return np.minimum(corrected, 1.0)


def fewest_changes(level: float) -> int:
    """Return how many changes in the same direction a one-sided test needs to be significant.

    >>> fewest_changes(0.05), fewest_changes(0.01)
    (5, 7)
    """
    return max(math.ceil(math.log2(1 / level) - 1e-9), 1)


def mcnemar_power(n: int, p_lost: float, p_gained: float, *, level: float = LEVEL) -> float:
    """Return the exact power of the one-sided test on `n` images.

    Args:
        n: number of images.
        p_lost: probability that an image changes from right to wrong.
        p_gained: probability that an image changes from wrong to right.
        level: level of the test.
    """
    changed = p_lost + p_gained
    if changed <= 0:
        return 0.0
    low, high = scipy_stats.binom.interval(1 - 1e-9, n, min(changed, 1.0))
    m = np.arange(int(low), int(high) + 1)
    # the smallest k of m changed images with P(X >= k) <= level; `isf` returns k - 1
    critical = scipy_stats.binom.isf(level, m, 0.5) + 1
    rejects = scipy_stats.binom.sf(critical - 1, m, p_lost / changed)
    return float((scipy_stats.binom.pmf(m, n, min(changed, 1.0)) * rejects).sum())


def mcnemar_images(p_lost: float, p_gained: float, *, level: float = LEVEL) -> int | None:
    """Return the smallest number of images with 80 % power; None if it is above ten million.

    Source: Connor, Biometrics 1987, "Sample size for testing differences in proportions for the
        paired-sample design", equation 3, a normal approximation. Up to 20,000 images it is
        corrected by the exact power.
    """
    drop, changed = p_lost - p_gained, p_lost + p_gained
    if drop <= 0:
        return None
    a, b = scipy_stats.norm.ppf([1 - level, POWER])
    guess = (a * math.sqrt(changed) + b * math.sqrt(max(changed - drop**2, 0))) ** 2 / drop**2
    if guess > MAX_IMAGES:
        return None
    if guess > 20_000:
        return int(math.ceil(guess))
    low, high = 1, int(1.2 * guess) + 40
    # bisection: the exact power grows with n, apart from the small steps of a discrete test
    while low < high:
        middle = (low + high) // 2
        if mcnemar_power(middle, p_lost, p_gained, level=level) >= POWER:
            high = middle
        else:
            low = middle + 1
    return high


def mcnemar_smallest(n: float, p_gained: float, *, level: float = LEVEL) -> float:
    """Return the smallest drop that `n` images show with 80 % power; NaN if there is none."""
    images = max(int(n), 0)
    low, high = 0.0, 1.0 - 2 * p_gained
    if high <= 0 or mcnemar_power(images, high + p_gained, p_gained, level=level) < POWER:
        return math.nan
    for _ in range(30):
        middle = (low + high) / 2
        if mcnemar_power(images, middle + p_gained, p_gained, level=level) >= POWER:
            high = middle
        else:
            low = middle
    return high
