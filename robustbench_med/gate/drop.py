"""Drop: whether scores of the same images fell, and what their number could have shown.

Right or wrong, one image a patient: McNemar's exact test, one-sided. Otherwise (a patient's images
hang together; Dice has degrees) the same test by patients: under the null hypothesis the signs of a
patient's difference are exchangeable, so all ways to flip them are counted. Where each patient has
one image that is right or wrong, that is McNemar's test to the digit. A bootstrap of few patients
calls too many drops real; this one keeps its level whatever their number.

Source: McNemar, Psychometrika 1947; Fisher, The Design of Experiments 1935, section 21 (signs);
Guenther, The American Statistician 1981 (how many, where the spread is estimated).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

LEVEL = 0.05  # share of unchanged models that are called weaker, at most
POWER = 0.80
_ALL_FLIPS = 14  # patients that differ up to which every way to flip is counted: 16,384
_FLIPS = 20_000  # drawn beyond
_MOST = 10_000_000  # images beyond which none is asked for

Floats = NDArray[np.float64]


class Drop(NamedTuple):
    """What became of one score.

    Attributes:
        before: mean in the record.
        now: mean of the same images now.
        lost: images that score less.
        gained: images that score more.
        n: images.
        patients: of them; `n` where images are independent.
        p: probability of such a drop or a larger one, were nothing changed.
        needed: images that show a drop of this size with 80 % power; None where there is no drop,
            or so few patients that none could be shown.
        smallest: smallest drop that `n` images show with 80 % power; NaN where not even losing
            every image would, or nothing is known of the spread.
        half: images that show a drop half as large as the smallest; None where that is not known.
    """

    before: float
    now: float
    lost: int
    gained: int
    n: int
    patients: int
    p: float
    needed: int | None
    smallest: float
    half: int | None = None

    @property
    def size(self) -> float:
        """How far the mean fell; negative where it rose."""
        return self.before - self.now


def drop_of(
    before: Floats,
    now: Floats,
    patients: NDArray[np.character] | None = None,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Drop:
    """Return what became of the scores of the same images, in the same order.

    Args:
        before: `(n,)` scores in the record: 0/1, or Dice in [0,1].
        now: `(n,)` scores now.
        patients: `(n,)` whose they are; None = images are independent.
        level: of the test, which the power is of.
        seed: of the flips, where there are too many to count them all.
    """
    fell = np.asarray(before, dtype=np.float64) - np.asarray(now, dtype=np.float64)
    owner = (
        np.arange(len(fell)) if patients is None else np.unique(patients, return_inverse=True)[1]
    )
    groups = len(np.unique(owner))
    lost, gained = int((fell > 0).sum()), int((fell < 0).sum())
    binary = bool(np.isin(before, (0, 1)).all() and np.isin(now, (0, 1)).all())
    size = float(fell.mean()) if len(fell) else 0.0
    able = 0.5**groups <= level  # else not even losing every image is called a drop
    least = math.ceil(fewest(level) * len(fell) / groups) if groups else 0
    counted: Callable[[float], float | None]
    if binary:
        inflated = _design_effect(fell, owner)
        back = gained / len(fell) if len(fell) else 0.0

        def counted(drop: float) -> float | None:
            n = mcnemar_images(drop + back, back, level=level)
            return None if n is None else n * inflated

        smallest = mcnemar_smallest(len(fell) / inflated, back, level=level) if able else math.nan
    else:
        spread = _spread(fell, owner) * math.sqrt(groups)  # of one patient's share in the mean
        a, b = scipy_stats.norm.ppf([1 - level, POWER])
        few = a**2 / 2  # patients more, since the spread is not known: Guenther 1981

        def counted(drop: float) -> float | None:
            patients = ((a + b) * spread / drop) ** 2 + few if drop > 0 else math.inf
            images = patients * len(fell) / groups
            return images if images <= _MOST else None

        able = able and spread > 0 and groups > few
        smallest = float((a + b) * spread / math.sqrt(groups - few)) if able else math.nan

    def needed(drop: float) -> int | None:
        n = counted(drop) if able else None
        return None if n is None else max(math.ceil(n), least)

    return Drop(
        before=float(np.mean(before)) if len(fell) else math.nan,
        now=float(np.mean(now)) if len(fell) else math.nan,
        lost=lost,
        gained=gained,
        n=len(fell),
        patients=groups,
        p=p_of(before, now, patients, seed=seed),
        needed=needed(size) if size > 0 else None,
        smallest=smallest,
        half=needed(smallest / 2) if smallest > 0 else None,
    )


def p_of(
    before: Floats, now: Floats, patients: NDArray[np.character] | None = None, *, seed: int = 0
) -> float:
    """Return the probability of such a drop or a larger one, were nothing changed.

    Args:
        before: `(n,)` scores in the record: 0/1, or Dice in [0,1].
        now: `(n,)` scores now.
        patients: `(n,)` whose they are; None = images are independent.
        seed: of the flips, where there are too many to count them all.
    """
    fell = np.asarray(before, dtype=np.float64) - np.asarray(now, dtype=np.float64)
    owner = (
        np.arange(len(fell)) if patients is None else np.unique(patients, return_inverse=True)[1]
    )
    single = len(np.unique(owner)) == len(fell)
    if single and np.isin(fell, (-1, 0, 1)).all():
        return mcnemar(int((fell > 0).sum()), int((fell < 0).sum()))
    return flipped(np.bincount(owner, weights=fell).astype(np.float64), seed=seed)


def fewest(level: float) -> int:
    """Return the fewest patients that can show anything: all of them, one way, by chance.

    >>> fewest(0.05), fewest(0.01)
    (5, 7)
    """
    return max(math.ceil(math.log2(1 / level) - 1e-9), 1)


def mcnemar(lost: int, gained: int) -> float:
    """Return the one-sided exact p of so many lost or more, of those that changed.

    >>> mcnemar(5, 0)
    0.03125
    """
    return float(scipy_stats.binom.sf(lost - 1, lost + gained, 0.5))


def flipped(fell: Floats, *, seed: int = 0) -> float:
    """Return the share of ways to flip signs whose sum is as large as this one or larger.

    >>> flipped(np.ones(5))
    0.03125
    """
    fell = fell[np.abs(fell) > 1e-12]
    total = fell.sum() - 1e-9  # sums of the same numbers in another order are the same sum
    if (fell > 0).all():  # no other way is as large
        return float(0.5 ** len(fell))
    if len(fell) <= _ALL_FLIPS:
        bits = np.arange(2 ** len(fell))[:, None] >> np.arange(len(fell)) & 1
        return float(((1 - 2 * bits) @ fell >= total).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (_FLIPS, len(fell)))
    return float((1 + (signs @ fell >= total).sum()) / (1 + _FLIPS))


def mcnemar_power(n: int, lost: float, gained: float, *, level: float = LEVEL) -> float:
    """Return the exact power of the one-sided test on `n` images.

    Args:
        n: images.
        lost: probability that an image is lost.
        gained: probability that one is gained.
        level: of the test.
    """
    changed = lost + gained
    if changed <= 0:
        return 0.0
    low, high = scipy_stats.binom.interval(1 - 1e-9, n, min(changed, 1.0))
    m = np.arange(int(low), int(high) + 1)
    # fewest lost of m changed that the test calls a drop: P(X >= k) <= level; isf ends below it
    least = scipy_stats.binom.isf(level, m, 0.5) + 1
    rejects = scipy_stats.binom.sf(least - 1, m, lost / changed)
    return float((scipy_stats.binom.pmf(m, n, min(changed, 1.0)) * rejects).sum())


def mcnemar_images(lost: float, gained: float, *, level: float = LEVEL) -> int | None:
    """Return the fewest images with 80 % power, None beyond ten million.

    Beyond 20,000 by the normal approximation.
    Source: Connor, Biometrics 1987, "Sample size for testing differences in proportions for the
    paired-sample design", equation 3; below 20,000 corrected by the exact power.
    """
    drop, changed = lost - gained, lost + gained
    if drop <= 0:
        return None
    a, b = scipy_stats.norm.ppf([1 - level, POWER])
    guess = (a * math.sqrt(changed) + b * math.sqrt(max(changed - drop**2, 0))) ** 2 / drop**2
    if guess > _MOST:
        return None
    if guess > 20_000:
        return int(math.ceil(guess))
    low, high = 1, int(1.2 * guess) + 40
    while low < high:  # the exact power climbs with n but for the steps of a discrete test
        middle = (low + high) // 2
        if mcnemar_power(middle, lost, gained, level=level) >= POWER:
            high = middle
        else:
            low = middle + 1
    return high


def mcnemar_smallest(n: float, gained: float, *, level: float = LEVEL) -> float:
    """Return the smallest drop that `n` images show with 80 % power; NaN where none would do."""
    images = max(int(n), 0)
    low, high = 0.0, 1.0 - 2 * gained
    if high <= 0 or mcnemar_power(images, high + gained, gained, level=level) < POWER:
        return math.nan
    for _ in range(30):
        middle = (low + high) / 2
        if mcnemar_power(images, middle + gained, gained, level=level) >= POWER:
            high = middle
        else:
            low = middle
    return high


def _spread(fell: Floats, owner: NDArray[np.int64]) -> float:
    """Return the standard error of the mean difference, by patients."""
    groups = int(owner.max(initial=-1)) + 1
    if groups < 2:
        return 0.0
    residual = np.bincount(owner, weights=fell - fell.mean())
    return float(math.sqrt(groups / (groups - 1) * (residual**2).sum()) / len(fell))


def _design_effect(fell: Floats, owner: NDArray[np.int64]) -> float:
    """Return how many times patients inflate the variance of the mean difference, at least 1."""
    if len(fell) == 0:
        return 1.0
    alone = float(((fell - fell.mean()) ** 2).sum()) / len(fell) ** 2
    if alone == 0:
        sizes = np.bincount(owner)
        return float((sizes**2).sum() / len(fell))
    return max(1.0, _spread(fell, owner) ** 2 / alone)
