"""Turn model outputs into per-image columns and aggregate metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.bench.setup import AttackSetup
from robustbench_med.metrics.classification import Predictions, flips, score
from robustbench_med.metrics.segmentation import of_masks, overlap, score_masks
from robustbench_med.objectives import Objective
from robustbench_med.objectives.decide import decide, probabilities
from robustbench_med.objectives.segmentation import TargetMask
from robustbench_med.stats import Estimate, intervals


class OutputScores(NamedTuple):
    """Columns of the samples table (see Stored), with an entry for each image, and metrics."""

    columns: dict[str, Any]
    metrics: dict[str, Estimate]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which images are called wrong, rejected or not; of labels and findings."""
        return ~np.asarray(self.columns["correct"], dtype=np.bool_)


def evaluate_outputs(
    objective: Objective,
    ready: AttackSetup,
    answer: Tensor,
    attacked: Bool[Tensor, " n"],
    weights: NDArray[np.float64],
) -> OutputScores:
    """Return what the answers say.

    Args:
        objective: what the attacker wants.
        ready: truth, patients and clean answers of all images.
        answer: `(n, k)` logits or `(n, *s)` masks of class ids.
        attacked: which images were.
        weights: `(replicates, n)` from resamples.
    """
    if ready.data.card.task == "segmentation":
        return _masks(objective, ready, answer, weights)
    return _labels(ready, answer, attacked.cpu().numpy(), weights)


def _labels(
    ready: AttackSetup, answer: Tensor, attacked: NDArray[np.bool_], weights: NDArray[np.float64]
) -> OutputScores:
    card, clusters = ready.data.card, ready.batch.patients
    truth, predicted = ready.batch.y.cpu().numpy(), decide(answer, card.task)
    scores = probabilities(answer, card.task)
    right = (predicted == truth) | (truth < 0)
    columns = {
        "truth": list(truth),
        "prediction": list(predicted),
        "scores": list(scores),
        "correct": right.all(1) if right.ndim == 2 else right,
    }
    found = Predictions.of(truth, predicted, scores, card)
    before = decide(ready.clean, card.task)
    turned = flips(truth, before, predicted, card, attacked=attacked, clusters=clusters)
    return OutputScores(columns, score(found, card, clusters=clusters, weights=weights) | turned)


def _masks(
    objective: Objective, ready: AttackSetup, answer: Tensor, weights: NDArray[np.float64]
) -> OutputScores:
    card, parts = ready.data.card, ready.data.card.parts
    truth, called = ready.batch.y.cpu().numpy(), answer.cpu().numpy()
    found = of_masks(called, truth, parts=parts, spacing=card.spacing, tolerance=card.tolerance)
    columns = {
        "truth": _pixels(truth, truth, parts),
        "prediction": _pixels(called, truth, parts),
        "scores": list(found["dice"]),
        "correct": found["dice"].mean(1),
    }
    metrics = score_masks(found, parts=parts, weights=weights)
    if isinstance(objective, TargetMask):
        target = objective.target(ready.batch.y).cpu().numpy()
        drawn = overlap(called, target, parts={"target": (objective.label,)})[:, 0]
        columns["target_dice"] = drawn
        metrics["target_dice"] = intervals.bootstrap(
            float(drawn.mean()), lambda w: (w @ drawn) / w.sum(1), weights
        )
    return OutputScores(columns, metrics)


def _pixels(
    masks: NDArray[Any], truth: NDArray[Any], parts: dict[str, tuple[int, ...]]
) -> list[NDArray[np.int64]]:
    """Return how many counted pixels of each image are of each region."""
    axes = tuple(range(1, masks.ndim))
    inside = [(np.isin(masks, ids) & (truth >= 0)).sum(axis=axes) for ids in parts.values()]
    return list(np.stack(inside, axis=1))
