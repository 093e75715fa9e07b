"""Score a detector, with values from scikit-learn and intervals from robustbench_med.stats."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from robustbench_med.errors import DataError
from robustbench_med.rng import key
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resamples

Floats = NDArray[np.float64]
Ids = NDArray[np.character]
LEVELS = (0.01, 0.05)  # false-positive rates at which the true-positive rate is reported: issue 5
STUDIES = 1000  # false alarms are reported per so many clean images


def detection(
    clean: Floats,
    attacked: Floats,
    *,
    patients: tuple[Ids, Ids] | None = None,
    threshold: float = 0.0,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return how well a suspicion separates attacked images from clean ones, with 95 % intervals.

    The metrics are:

    - `auroc`: the area under the ROC curve.
    - `tpr_at_1` and `tpr_at_5`: the fraction of attacked images that are rejected at a threshold
      that rejects at most 1 % or 5 % of these clean images. It is known only in hindsight.
    - `detected`: the fraction of attacked images that are rejected at the frozen threshold.
    - `false_alarms`: how many of 1,000 clean images are rejected at the frozen threshold.

    A metric is NaN if one of the two sets is empty. A `tpr_at_...` is also NaN if its level is less
    than one of these clean images.

    >>> metrics = detection(np.arange(100.0), np.arange(50.0, 150.0), threshold=94.0)
    >>> metrics["auroc"].value, metrics["tpr_at_5"].value, metrics["false_alarms"].value
    (0.875, 0.55, 50.0)

    Args:
        clean: `(n,)` suspicions of clean images. No patient may have images in both sets, see
            `split_twins`.
        attacked: `(m,)` suspicions of attacked images.
        patients: `(n,)` and `(m,)` patient ids; None if images are independent.
        threshold: images with a suspicion above it are rejected; 0 for a victim with a guard.
        seed: seed of the bootstrap.

    Raises:
        DataError: a patient has images in both sets.
    """
    owners = None if patients is None else np.concatenate(patients)
    if patients is not None and len(both := np.intersect1d(*patients)):
        raise DataError(
            f"expected no patient among both clean and attacked images, got {len(both)}: "
            "split them by split_twins"
        )
    scores = np.concatenate([clean, attacked]).astype(np.float64)
    truth = np.arange(len(scores)) >= len(clean)
    weights = resamples(len(scores), owners, seed=seed)
    metrics = {
        "auroc": intervals.bootstrap(_auroc(scores, truth), partial(_areas, scores, truth), weights)
    }
    for level in LEVELS:
        value = _tpr(scores, truth, level)
        repeat = partial(_tprs, scores, truth, level)
        metrics[f"tpr_at_{round(100 * level)}"] = intervals.bootstrap(value, repeat, weights)
    sides = (None, None) if patients is None else patients
    metrics["detected"] = intervals.cluster_mean(
        (attacked > threshold).astype(np.float64), sides[1]
    )
    alarms = intervals.cluster_mean((clean > threshold).astype(np.float64), sides[0])
    metrics["false_alarms"] = Estimate(
        value=STUDIES * alarms.value, low=STUDIES * alarms.low, high=STUDIES * alarms.high
    )
    return metrics


def split_twins(
    ids: Ids, patients: Ids | None = None, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the images to attack and of those that stay clean, as two halves.

    The halves have no patient in common. The split depends only on the names of the patients and
    the seed, so neither the order of the images nor another image of a known patient changes it.

    Args:
        ids: `(n,)` sample ids.
        patients: `(n,)` patient ids; None if each image is a patient of its own.
        seed: seed of the split.

    Raises:
        DataError: there are fewer than two patients.
    """
    owners = np.asarray(ids if patients is None else patients).astype(str)
    names = sorted(set(owners), key=lambda name: key(seed, "twins", name))
    if len(names) < 2:
        raise DataError(f"expected at least two patients to split, got {len(names)}")
    first = np.isin(owners, names[: len(names) // 2])
    return first.nonzero()[0], (~first).nonzero()[0]


def _auroc(scores: Floats, truth: NDArray[np.bool_]) -> float:
    if truth.all() or not truth.any():
        return float("nan")
    return float(sk.roc_auc_score(truth, scores))


def _tpr(scores: Floats, truth: NDArray[np.bool_], level: float) -> float:
    if truth.all() or not truth.any() or (~truth).sum() * level < 1:
        return float("nan")
    fpr, tpr, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    return float(tpr[fpr <= level + 1e-12].max())


def _curve(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates of each resample, the highest threshold first."""
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(-scores[order], return_index=True)
    rates = []
    for side in (~truth, truth):
        totals = np.add.reduceat(weights[:, order] * side[order], first, axis=1)
        rates.append(totals.cumsum(1) / totals.sum(1, keepdims=True))
    return rates[0], rates[1]


def _areas(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    fpr, tpr = (np.pad(rate, ((0, 0), (1, 0))) for rate in _curve(scores, truth, weights))
    areas: Floats = (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(1)
    return areas


def _tprs(scores: Floats, truth: NDArray[np.bool_], level: float, weights: Floats) -> Floats:
    fpr, tpr = _curve(scores, truth, weights)
    allowed: Floats = np.where(fpr <= level + 1e-12, tpr, 0.0)
    tpr_at_level: Floats = np.sort(allowed, axis=1)[:, -1]
    undefined = np.isnan(fpr[:, 0]) | np.isnan(tpr[:, 0])
    return np.where(undefined, np.nan, tpr_at_level)
