"""Test whether scores of the same images fell, and compute which drop their number can show.

If an image is right or wrong and every patient has one image, the test is McNemar's exact test,
one-sided. If patients have several images, and for Dice, it is the same test by patient: under the
null hypothesis the signs of each patient's difference are exchangeable, so all ways to flip them
are counted. With one image for each patient and 0/1 scores this gives exactly McNemar's test. A
bootstrap of few patients calls too many drops significant; this test keeps its level for any
number of patients.

Source: McNemar, Psychometrika 1947; Fisher, The Design of Experiments 1935, section 21 (signs);
Guenther, The American Statistician 1981 (number of images, if the spread is estimated).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from robustbench_med.stats.paired_tests import (
    LEVEL,
    MAX_IMAGES,
    POWER,
    fewest_changes,
    mcnemar_images,
    mcnemar_smallest,
    one_sided_p,
)
from robustbench_med.stats.patients import patient_numbers, standard_error, variance_inflation

Floats = NDArray[np.float64]


class Drop(NamedTuple):
    """The change of one score.

    Attributes:
        before: mean in the record.
        now: mean of the same images now.
        lost: number of images that score less.
        gained: number of images that score more.
        n: number of images.
        patients: number of patients; `n` if images are independent.
        p: probability of such a drop or a larger one if nothing has changed.
        needed: number of images that show a drop of this size with 80 % power; None if there is no
            drop, or so few patients that no drop could be shown.
        smallest: smallest drop that `n` images show with 80 % power; NaN if not even the loss of
            every image would be significant, or if the spread is not known.
        half: number of images that show a drop half as large as the smallest; None if not known.
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
        """How far the mean fell; negative if it rose."""
        return self.before - self.now


def drop_of(
    before: Floats,
    now: Floats,
    patients: NDArray[np.character] | None = None,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Drop:
    """Return the drop between two lists of scores of the same images, in the same order.

    Args:
        before: `(n,)` scores in the record: 0/1, or Dice in [0,1].
        now: `(n,)` scores now.
        patients: `(n,)` patient of each image; None = images are independent.
        level: level of the test, also for the power.
        seed: seed of the flips if there are too many to count them all.
    """
    fell = np.asarray(before, dtype=np.float64) - np.asarray(now, dtype=np.float64)
    number = patient_numbers(len(fell), patients)
    groups = len(np.unique(number))
    worse, better = int((fell > 0).sum()), int((fell < 0).sum())
    binary = bool(np.isin(before, (0, 1)).all() and np.isin(now, (0, 1)).all())
    size = float(fell.mean()) if len(fell) else 0.0
    able = 0.5**groups <= level  # else not even the loss of every image is significant
    least = math.ceil(fewest_changes(level) * len(fell) / groups) if groups else 0
    counted: Callable[[float], float | None]
    if binary:
        inflated = _design_effect(fell, number)
        back = better / len(fell) if len(fell) else 0.0

        def counted(drop: float) -> float | None:
            n = mcnemar_images(drop + back, back, level=level)
            return None if n is None else n * inflated

        smallest = mcnemar_smallest(len(fell) / inflated, back, level=level) if able else math.nan
    else:
        # the spread of one patient's contribution to the mean
        spread = standard_error(fell, number) * math.sqrt(groups)
        a, b = scipy_stats.norm.ppf([1 - level, POWER])
        few = a**2 / 2  # additional patients, because the spread is estimated: Guenther 1981

        def counted(drop: float) -> float | None:
            patients = ((a + b) * spread / drop) ** 2 + few if drop > 0 else math.inf
            images = patients * len(fell) / groups
            return images if images <= MAX_IMAGES else None

        able = able and spread > 0 and groups > few
        smallest = float((a + b) * spread / math.sqrt(groups - few)) if able else math.nan

    def needed(drop: float) -> int | None:
        n = counted(drop) if able else None
        return None if n is None else max(math.ceil(n), least)

    return Drop(
        before=float(np.mean(before)) if len(fell) else math.nan,
        now=float(np.mean(now)) if len(fell) else math.nan,
        lost=worse,
        gained=better,
        n=len(fell),
        patients=groups,
        p=one_sided_p(before, now, patients, seed=seed),
        needed=needed(size) if size > 0 else None,
        smallest=smallest,
        half=needed(smallest / 2) if smallest > 0 else None,
    )


def _design_effect(fell: Floats, number: NDArray[np.intp]) -> float:
    """Return the factor by which patients inflate the variance of the mean difference (>= 1)."""
    if len(fell) == 0:
        return 1.0
    sums, sizes = np.bincount(number, weights=fell).astype(np.float64), np.bincount(number)
    independent = float(((fell - fell.mean()) ** 2).sum())
    if independent == 0:
        return float((sizes**2).sum() / len(fell))
    if len(sizes) == 1:
        return 1.0
    return variance_inflation(sums, sizes, independent)
