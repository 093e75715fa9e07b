"""Score predictions, with values from scikit-learn and intervals from robustbench_med.stats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from robustbench_med.cards import DatasetCard
from robustbench_med.stats import UNDEFINED, Estimate, intervals
from robustbench_med.stats.patients import few_at_a_time

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """Predictions for one set of images, with one column per class or finding.

    Attributes:
        truth, predicted: `(n, k)` bool; with one label per image, one column of each row is True.
        known: `(n, k)` bool, False where unlabelled.
        scores: `(n, k)` probabilities.
    """

    truth: Bools
    predicted: Bools
    known: Bools
    scores: Floats

    @classmethod
    def of(cls, y: Ints, predicted: Ints, scores: Floats, card: DatasetCard) -> Predictions:
        """Return predictions from class ids `(n,)` or findings `(n, k)`."""
        if card.task == "multi_label":
            return cls(y == 1, predicted == 1, y >= 0, scores)
        class_ids = np.arange(len(card.classes))
        known = np.repeat((y >= 0)[:, None], len(class_ids), axis=1)
        return cls(y[:, None] == class_ids, predicted[:, None] == class_ids, known, scores)


def score(
    p: Predictions, card: DatasetCard, *, clusters: NDArray[np.character] | None, weights: Floats
) -> dict[str, Estimate]:
    """Return accuracy, balanced accuracy, sensitivity, specificity, AUC and F1 with 95 % intervals.

    Args:
        p: the predictions.
        card: names the healthy class. Sensitivity and specificity are those of "not healthy"; they
            are NaN if no class is healthy. For findings, every metric except accuracy is the mean
            over findings, and accuracy is the exact match. A class or finding that the card lists
            as absent counts in no mean; if another one is missing in these images, its means are
            undefined.
        clusters: `(n,)` patient ids, or None if images are independent.
        weights: `(replicates, n)` from `resamples`, the same for all rows of a case, so that they
            are paired.
    """
    right = ((p.predicted == p.truth) | ~p.known).all(1)
    labelled = p.known.any(1)
    scores = {
        "accuracy": intervals.cluster_mean(
            right[labelled].astype(float), None if clusters is None else clusters[labelled]
        )
    }
    repeated: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
        "balanced_accuracy": (_balanced(p, card), lambda w: _balanced_repeats(p, card, w)),
        "auc": (_auc(p, card), lambda w: _mean([auc_repeats(p, j, w) for j in _columns(p, card)])),
        "f1": (_f1(p, card), lambda w: _mean([_f1_repeats(p, j, w) for j in _columns(p, card)])),
    }
    for name, (value, repeat) in repeated.items():
        scores[name] = intervals.bootstrap(value, repeat, weights)
    return scores | _sensitivity_and_specificity(p, card, clusters, weights)


def _columns(p: Predictions, card: DatasetCard) -> list[int]:
    """Return the columns to average: the diseased class of two, otherwise all that can occur."""
    if card.binary:
        return [1 - (card.normal or 0)]
    every = list(range(p.truth.shape[1]))
    return [j for j in every if card.classes[j] not in card.absent] or every


def _mean(columns: list[Floats]) -> Floats:
    means: Floats = np.mean(columns, axis=0)
    return means


def _column(p: Predictions, j: int) -> tuple[Bools, Bools, Floats]:
    known = p.known[:, j]
    return p.truth[known, j], p.predicted[known, j], p.scores[known, j]


def _balanced(p: Predictions, card: DatasetCard) -> float:
    if card.task == "multi_label":
        pairs = [_column(p, j)[:2] for j in _columns(p, card)]
        return float(np.mean([_recall(t, c) + _recall(~t, ~c) for t, c in pairs]) / 2)
    known = p.known[:, 0]
    truth, predicted = p.truth[known].argmax(1), p.predicted[known].argmax(1)
    with warnings.catch_warnings():  # scikit-learn warns of predicted classes absent from the truth
        warnings.simplefilter("ignore", UserWarning)
        return float(sk.balanced_accuracy_score(truth, predicted)) if len(truth) else np.nan


def _recall(truth: Bools, predicted: Bools) -> float:
    return float(sk.recall_score(truth, predicted, zero_division=np.nan)) if len(truth) else np.nan


def _auc(p: Predictions, card: DatasetCard) -> float:
    values = []
    for j in _columns(p, card):
        truth, _, scores = _column(p, j)
        values.append(sk.roc_auc_score(truth, scores) if 0 < truth.sum() < len(truth) else np.nan)
    return float(np.mean(values))


def _f1(p: Predictions, card: DatasetCard) -> float:
    pairs = [_column(p, j)[:2] for j in _columns(p, card)]
    # without a positive image F1 is undefined, whatever is predicted
    values = [sk.f1_score(t, c) if t.any() else np.nan for t, c in pairs]
    return float(np.mean(values))


def _recall_repeats(truth: Bools, predicted: Bools, weights: Floats) -> Floats:
    recalls: Floats = (weights @ (truth & predicted)) / (weights @ truth)
    return recalls


def _recalls_repeats(p: Predictions, columns: list[int], weights: Floats) -> Floats:
    truth = p.truth & p.known
    return _mean([_recall_repeats(truth[:, j], p.predicted[:, j], weights) for j in columns])


def _balanced_repeats(p: Predictions, card: DatasetCard, weights: Floats) -> Floats:
    sides = [p] if card.task == "single_label" else [p, _negated(p)]
    columns = [
        _recall_repeats(s.truth[:, j] & s.known[:, j], s.predicted[:, j], weights)
        for s in sides
        for j in (_columns(p, card) if card.task == "multi_label" else range(p.truth.shape[1]))
        if card.task == "multi_label" or s.truth[:, j].any()
    ]
    # a class that is missing in a resample is left out of its mean, as scikit-learn does
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        means: Floats = np.nanmean(columns, axis=0)
    return means


def _negated(p: Predictions) -> Predictions:
    return Predictions(~p.truth, ~p.predicted, p.known, 1 - p.scores)


def _f1_repeats(p: Predictions, j: int, weights: Floats) -> Floats:
    truth, predicted = p.truth[:, j] & p.known[:, j], p.predicted[:, j] & p.known[:, j]
    hit = weights @ (truth & predicted)
    f1: Floats = 2 * hit / (weights @ truth + weights @ predicted)
    return f1


def auc_repeats(p: Predictions, j: int, weights: Floats) -> Floats:
    """Return the area under the curve of each resample (Mann-Whitney; a tie counts one half)."""
    order = np.argsort(p.scores[:, j], kind="stable")
    truth, known = p.truth[order, j], p.known[order, j]
    _, first = np.unique(p.scores[order, j], return_index=True)
    pieces = []
    for some in few_at_a_time(weights):
        w = some[:, order]
        ill = np.add.reduceat(w * (truth & known), first, axis=1)
        well = np.add.reduceat(w * (~truth & known), first, axis=1)
        below = np.cumsum(well, axis=1) - well / 2
        pieces.append((ill * below).sum(1) / (ill.sum(1) * well.sum(1)))
    auc: Floats = np.concatenate(pieces)
    return auc


def _sensitivity_and_specificity(
    p: Predictions, card: DatasetCard, clusters: NDArray[np.character] | None, weights: Floats
) -> dict[str, Estimate]:
    """Return sensitivity and specificity of "not healthy", or their means over findings."""
    if card.task == "multi_label":
        sides = {}
        for name, side in {"sensitivity": p, "specificity": _negated(p)}.items():
            columns = _columns(p, card)
            value = float(np.mean([_recall(*_column(side, j)[:2]) for j in columns]))
            sides[name] = intervals.bootstrap(
                value, partial(_recalls_repeats, side, columns), weights
            )
        return sides
    if card.normal is None:
        return {"sensitivity": UNDEFINED, "specificity": UNDEFINED}
    healthy, predicted = p.truth[:, card.normal], p.predicted[:, card.normal]
    known = p.known[:, 0]
    return {
        "sensitivity": _rate(~predicted, ~healthy & known, clusters),
        "specificity": _rate(predicted, healthy & known, clusters),
    }


def _rate(event: Bools, among: Bools, clusters: NDArray[np.character] | None) -> Estimate:
    owners = None if clusters is None else clusters[among]
    return intervals.cluster_mean(event[among].astype(float), owners)


def flips(
    y: Ints,
    before: Ints,
    after: Ints,
    card: DatasetCard,
    *,
    attacked: Bools,
    clusters: NDArray[np.character] | None,
) -> dict[str, Estimate]:
    """Return how often an attack flips disease to healthy, and healthy to disease.

    With findings, the first counts images in which a correctly detected finding is hidden, the
    second images in which a finding that is absent, and predicted as absent, is planted.
    """
    if card.task == "multi_label":
        present, absent = (y == 1) & (before == 1), (y == 0) & (before == 0)
        hidden, planted = (present & (after == 0)).any(1), (absent & (after == 1)).any(1)
        return {
            "flips_to_normal": _rate(hidden, attacked & present.any(1), clusters),
            "flips_to_disease": _rate(planted, attacked & absent.any(1), clusters),
        }
    if card.normal is None:
        return {"flips_to_normal": UNDEFINED, "flips_to_disease": UNDEFINED}
    right = attacked & (before == y)  # targeted attacks also run on misclassified images
    ill, well = right & (y != card.normal), right & (y == card.normal)
    return {
        "flips_to_normal": _rate(after == card.normal, ill, clusters),
        "flips_to_disease": _rate(after != card.normal, well, clusters),
    }
