"""Permutation test: decide whether the images of a subgroup score otherwise than the rest.

The labels "in the subgroup" and "not in it" are permuted among patients, and the difference of the
two means is divided by its cluster-robust standard error in every permutation. If the scores do not
depend on the label, the test is exact for any number of patients, however many images each has.
If only the means are equal, and one side scatters more, it is exact in the limit of many patients,
because the difference is studentised. A patient with images on both sides keeps that many on each,
and the labels of that patient's images are permuted.

Source: Janssen, Statistics and Probability Letters 36, 1997, and Chung and Romano, Annals of
Statistics 41, 2013 (studentised permutation); Gail et al., Statistics in Medicine 15, 1996
(permutation of whole clusters).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 4_999  # permutations; the smallest p value is 1 / (DRAWS + 1)
_AT_ONCE = 2**21  # numbers in memory at once
_ROUNDING = 1e-9  # statistics that differ by less count as equal
_TINY = 1e-15  # smaller variances are rounding errors

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class _Units(NamedTuple):
    """Patients whose images are all on one side, and the images of each of the other patients.

    Attributes:
        sums: `(patients, rungs)` the sum of the scores of each patient of one side.
        sizes: `(patients,)` their numbers of images.
        inside: `(patients,)` whether they are in the subgroup.
        mixed: of each other patient the scores `(images, rungs)`, and how many are in the subgroup.
        units: the number of patients with an image on each side, in the subgroup first.
    """

    sums: Floats
    sizes: Floats
    inside: Bools
    mixed: list[tuple[Floats, int]]
    units: tuple[int, int]


def two_sided_p(
    scores: Floats,
    member: Bools,
    number: NDArray[np.intp],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """Return the two-sided p value of "members score as the others do", at each rung.

    Args:
        scores: `(n, rungs)` scores of images in [0,1].
        member: `(n,)` whether an image is in the subgroup; some are and some are not.
        number: `(n,)` the patient of each image, 0, 1, ..., from `patient_numbers`.
        draws: number of random permutations.
        seed: seed of the permutations.

    >>> scores = np.repeat([1.0, 0.0], 10)[:, None]
    >>> two_sided_p(scores, scores[:, 0] == 1, np.arange(20)) <= 0.001
    array([ True])
    """
    units = _units(scores, member, number)
    kept = [patient_scores[None, :inside].sum(axis=1) for patient_scores, inside in units.mixed]
    observed = np.abs(_statistic(units, units.inside[None].astype(np.float64), kept))
    rng, far = np.random.default_rng(seed), np.ones(scores.shape[1])
    size = max(1, _AT_ONCE // max(1, len(scores) * scores.shape[1]))
    for start in range(0, draws, size):
        count = min(size, draws - start)
        inside = rng.permuted(np.tile(units.inside, (count, 1)), axis=1).astype(np.float64)
        drawn = [_shuffled(rng, *patient, count) for patient in units.mixed]
        far += (np.abs(_statistic(units, inside, drawn)) >= observed - _ROUNDING).sum(axis=0)
    return np.asarray(far / (draws + 1), dtype=np.float64)


def _units(scores: Floats, member: Bools, number: NDArray[np.intp]) -> _Units:
    count = int(number.max(initial=-1)) + 1
    sizes = np.bincount(number, minlength=count).astype(np.float64)
    inside = np.bincount(number, weights=member, minlength=count)
    sums = np.zeros((count, scores.shape[1]))
    np.add.at(sums, number, scores)
    pure = (inside == 0) | (inside == sizes)
    mixed = []
    for patient in (~pure).nonzero()[0]:
        rows = number == patient
        order = np.argsort(~member[rows], kind="stable")  # members first
        mixed.append((scores[rows][order], int(inside[patient])))
    units = (int((inside > 0).sum()), int((inside < sizes).sum()))
    return _Units(sums[pure], sizes[pure], (inside > 0)[pure], mixed, units)


def _shuffled(rng: np.random.Generator, scores: Floats, inside: int, count: int) -> Floats:
    """Return `(count, rungs)` sums of `inside` images drawn from those of one patient."""
    drawn = rng.random((count, len(scores))).argpartition(inside - 1, axis=1)[:, :inside]
    return np.asarray(scores[drawn].sum(axis=1), dtype=np.float64)


def _statistic(units: _Units, inside: Floats, mixed: list[Floats]) -> Floats:
    """Return the difference of means over its standard error, `(count, rungs)`.

    Args:
        units: the patients.
        inside: `(count, patients)` 1 where a patient of one side is in the subgroup.
        mixed: of each other patient `(count, rungs)`, the sum of the images in the subgroup.
    """
    sums, sizes, outside = units.sums, units.sizes[:, None], 1 - inside
    counts = [(taken, len(scores) - taken) for scores, taken in units.mixed]
    totals = [scores.sum(axis=0) for scores, _ in units.mixed]
    n_in = inside @ sizes + sum(taken for taken, _ in counts)
    n_out = outside @ sizes + sum(rest for _, rest in counts)
    mean_in = (inside @ sums + sum(mixed)) / n_in
    mean_out = (
        outside @ sums + sum(total - drawn for total, drawn in zip(totals, mixed, strict=True))
    ) / n_out
    factors = [k / (k - 1) if k > 1 else 1.0 for k in units.units]
    both = np.zeros_like(mean_in)
    squares = [
        side @ sums**2 - 2 * mean * (side @ (sums * sizes)) + mean**2 * (side @ sizes**2)
        for side, mean in ((inside, mean_in), (outside, mean_out))
    ]
    for drawn, total, (taken, rest) in zip(mixed, totals, counts, strict=True):
        first, second = drawn - mean_in * taken, total - drawn - mean_out * rest
        squares[0] = squares[0] + first**2
        squares[1] = squares[1] + second**2
        both = both + first * second
    variance = (
        factors[0] * squares[0] / n_in**2
        + factors[1] * squares[1] / n_out**2
        - 2 * both / (n_in * n_out)
    )
    difference = mean_in - mean_out
    error = np.sqrt(np.maximum(variance, 0.0))
    known = variance > _TINY
    sure = np.where(np.abs(difference) > _ROUNDING, np.copysign(np.inf, difference), 0.0)
    return np.asarray(np.divide(difference, error, out=sure, where=known), dtype=np.float64)
