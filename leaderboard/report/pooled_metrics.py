"""Compute metrics under the worst of all attacks, image by image. Pure.

Each image counts with the call under the attack that does it most harm, for one class or finding at
a time. Metrics that a single image does not have (AUC, distances between contours) are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Stored
from robustbench_med.stats import UNDEFINED, Estimate, intervals
from robustbench_med.stats.patients import resampled_patients, resamples

from .pooled_runs import Bools, Pool
from .recalls import complement, held_calls, is_, pooled_share, region

Floats = NDArray[np.float64]
_Score = Callable[[Floats, int], Floats]  # (weights, level) -> one score for each row of weights


def accuracy(pool: Pool) -> tuple[Estimate, ...]:
    """Return the share of images right when clean and under every attack; for masks, the Dice."""
    return pool.means(accuracy_table(pool))


def accuracy_table(pool: Pool) -> pd.DataFrame:
    """Return which images are right under every attack, or their lowest Dice, at each level."""
    masks = pool.card.task == "segmentation"
    dtype = np.float64 if masks else np.bool_
    return pool.worst(lambda run: run.samples["correct"].to_numpy(dtype=dtype))


def success(pool: Pool) -> tuple[Estimate, ...]:
    """Return the share of the attacked images that any attack broke."""
    stands = pool.worst(lambda run: ~run.samples["success"].to_numpy(dtype=bool))
    return pooled_share("attack_success", "", stands[pool.attacked], pool, as_loss=True).estimates


def target_dice(pool: Pool) -> tuple[Estimate, ...]:
    """Return the highest target Dice under any attack, as the mean over the attacked images."""
    undrawn = pool.worst(lambda run: 1 - run.samples["target_dice"].to_numpy(dtype=np.float64))
    return tuple(map(complement, pool.means(undrawn[pool.attacked])))


def dice(pool: Pool, index: int) -> tuple[Estimate, ...]:
    """Return the worst-case Dice of a region."""
    return pool.means(pool.worst(lambda run: region(run, index)))


def iou(pool: Pool, index: int | None = None) -> tuple[Estimate, ...]:
    """Return the worst-case IoU of a region or the mean over regions; it is dice / (2 - dice)."""
    indices = range(len(pool.card.parts)) if index is None else (index,)

    def read(run: Stored) -> Floats:
        dice = np.stack([region(run, j) for j in indices])
        iou: Floats = (dice / (2 - dice)).mean(0)
        return iou

    return pool.means(pool.worst(read))


def balanced_accuracy(pool: Pool) -> tuple[Estimate, ...]:
    """Return the mean of the worst-case recalls of all classes, or of presence and absence."""
    card = pool.card
    if card.task == "multi_label":
        return _mean(
            pool, [held_calls(pool, is_(v), is_(v), j) for j in _all(pool) for v in (1, 0)]
        )
    sides = [held_calls(pool, is_(k), is_(k)) for k in _all(pool)]
    return _mean(pool, [side for side in sides if side[0].any()])


def of_findings(pool: Pool, there: int) -> tuple[Estimate, ...]:
    """Return the mean over findings of the recall of presence (there = 1) or absence (0)."""
    return _mean(pool, [held_calls(pool, is_(there), is_(there), j) for j in _all(pool)])


def _all(pool: Pool) -> range:
    return range(len(pool.card.classes))


def _mean(pool: Pool, sides: list[tuple[Bools, pd.DataFrame]]) -> tuple[Estimate, ...]:
    among = np.logical_or.reduce([there for there, _ in sides]) if sides else np.zeros(0, bool)
    if not among.any():
        return tuple(UNDEFINED for _ in pool.levels)
    weights = resamples(len(pool.images), pool.owners)
    # with single labels, a class without an image in a resample is left out
    some = pool.card.task == "single_label"

    def mean_shares(w: Floats, column: int) -> Floats:
        each = [
            (w @ (there & worst[column].to_numpy(dtype=bool))) / (w @ there)
            for there, worst in sides
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            means: Floats = np.nanmean(each, axis=0) if some else np.mean(each, axis=0)
        return means

    return _levels(pool, mean_shares, weights, among)


def f1(pool: Pool) -> tuple[Estimate, ...]:
    """Return the worst-case F1 of two classes, or the mean over findings.

    F1 rises with each detected case and falls with each false alarm, so the worst call of each
    image gives the worst F1.
    """
    card = pool.card
    if card.task == "multi_label":
        columns = [
            (held_calls(pool, is_(1), is_(1), j), held_calls(pool, is_(0), is_(0), j))
            for j in _all(pool)
        ]
    else:
        ill = 1 - (card.normal or 0)
        columns = [
            (held_calls(pool, is_(ill), is_(ill)), held_calls(pool, is_(1 - ill), is_(1 - ill)))
        ]

    def scores(w: Floats, column: int) -> Floats:
        each = []
        for (there, recalled), (absent, quiet) in columns:
            hit = there & recalled[column].to_numpy(dtype=bool)
            alarm = absent & ~quiet[column].to_numpy(dtype=bool)
            score = 2 * (w @ hit) / (w @ there + w @ hit + w @ alarm)
            each.append(np.where(w @ there > 0, score, np.nan))
        means: Floats = np.mean(each, axis=0)
        return means

    weights = resamples(len(pool.images), pool.owners)
    among = np.logical_or.reduce([present[0] | healthy[0] for present, healthy in columns])
    return _levels(pool, scores, weights, among)


def _levels(pool: Pool, score: _Score, weights: Floats, among: Bools) -> tuple[Estimate, ...]:
    """Return a score of weighted images at each level, with an interval from resampled patients."""
    once = np.ones((1, len(pool.images)))
    estimates = []
    for column in range(len(pool.levels)):
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(score(once, column)[0])
            repeats = score(weights, column)
        n_patients = resampled_patients(weights, among)
        estimates.append(intervals.interval(value, repeats, n_patients=n_patients))
    return tuple(estimates)
