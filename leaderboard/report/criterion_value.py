"""Measure: what a criterion's metric is in a pool of runs, image by image where samples allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from robustbench_med.cards import DatasetCard
from robustbench_med.stats import Estimate

from ..boards.crosscheck import many_steps
from ..wording.text import plain
from . import pooled_metrics
from .criteria import Criterion
from .evidence import hardest
from .goals import goal_of, lacking, needs, toward, untested
from .pooled_runs import Pool, image_ids
from .recalls import directed_flips, recalls
from .suggestions import unknown_part

_OF_ATTACKS = ("attack_success", "flips_to_normal", "flips_to_disease")  # nothing when clean
_CALLS = ("accuracy", "sensitivity", "specificity", "recall", "balanced_accuracy", "f1")
_OF_IMAGES = (*_CALLS, *_OF_ATTACKS, "dice", "iou", "target_dice", "auc")
_NO_WORST_CASE = (
    "an attack stops once the decision flips, so that the AUC it leaves is no worst case: "
    "no record can test this (name one attack to judge what it leaves, or use sensitivity and "
    "specificity)"
)


class CriterionValue(NamedTuple):
    """What a criterion is judged on.

    Attributes:
        estimate: None where there is nothing; then `why` says why.
        records: case ids it is from.
        doubts: why it may flatter the model.
        single: whether it is the worst single attack, not the worst of each image.
    """

    estimate: Estimate | None
    records: tuple[str, ...] = ()
    why: str = ""
    doubts: tuple[str, ...] = ()
    single: bool = False


def over_goals(criterion: Criterion, card: DatasetCard) -> bool:
    """Whether a metric is of calls or regions, which attacks of every goal may lower."""
    if criterion.attack == "clean":
        return True
    if card.task == "segmentation":
        return "[" in criterion.metric
    if criterion.base == "accuracy":  # of another objective it is refused, see below
        return goal_of(criterion.objective)[0] == "untargeted"
    return criterion.base in (*_CALLS, "flips_to_normal", "flips_to_disease")


def of_records(criterion: Criterion) -> bool:
    """Whether a metric is kept of whole records alone: there is a worst single attack."""
    return criterion.base not in _OF_IMAGES


def criterion_value(criterion: Criterion, pool: Pool) -> CriterionValue:
    """Return a criterion's metric at the last level of a pool, or why it is not tested."""
    card, clean = pool.card, criterion.attack == "clean"
    why = _refused(criterion, pool)
    if why:
        return CriterionValue(None, pool.ids, why)
    doubts = () if clean else (*_weak(criterion, pool), *_unaimed(criterion, pool))
    every = _by_image(criterion, card)
    if every is not None:
        estimates = every(pool)
        if estimates is not None:
            return CriterionValue(estimates[-1], pool.ids, doubts=doubts)
    # a record's own metric is of all its images
    runs = [run for run in pool.covering() if len(image_ids(run)) == len(pool.images)]
    worst = hardest(
        runs, criterion.metric, pool.levels[-1], higher=criterion.higher, end=criterion.judged_on
    )
    if worst is None:
        lacks = f"the records hold no {criterion.metric} of {plain(card.title)}"
        return CriterionValue(None, pool.ids, unknown_part(criterion.metric, card) or lacks)
    if criterion.base == "auc" and not clean:
        doubts = (*doubts, "the attack stops once the decision flips: no worst case for the AUC")
    return CriterionValue(worst[0], (worst[1].record.case_id,), "", doubts, single=not clean)


def _refused(criterion: Criterion, pool: Pool) -> str:
    """Return why a pool cannot test a criterion; empty where it can."""
    card, base = pool.card, criterion.base
    if criterion.attack == "clean":
        return f"{base} is of an attack: clean images have none" if base in _OF_ATTACKS else ""
    masks = card.task == "segmentation"
    if base == "accuracy" and not masks and goal_of(criterion.objective)[0] != "untargeted":
        return (
            f"boards of {plain(criterion.objective)} score on how many images the goal is not "
            "reached, which is no accuracy: use attack_success"
        )
    if base == "auc" and criterion.attack == "worst_case" and criterion.threat != "control":
        return _NO_WORST_CASE
    if criterion.threat == "control" or masks or not over_goals(criterion, card):
        return ""
    missing = lacking(criterion.metric, card, pool.covering())
    return untested(missing, list(pool.runs)) if missing else ""


def _weak(criterion: Criterion, pool: Pool) -> list[str]:
    """Return a doubt where a white-box worst case is that of single steps alone."""
    if criterion.attack != "worst_case" or criterion.threat != "white_box":
        return []
    runs, groups = pool.covering(), []
    if over_goals(criterion, pool.card):
        groups = [
            aimed for need in needs(criterion.metric, pool.card) if (aimed := toward(need, runs))
        ]
    for group in groups or [runs]:
        if not any(many_steps(run.record.attack_card) for run in group):
            names = ", ".join(dict.fromkeys(plain(run.record.attack_card.title) for run in group))
            return [f"no attack of many steps was run ({names} alone): no worst case to rely on"]
    return []


def _unaimed(criterion: Criterion, pool: Pool) -> list[str]:
    """Return a doubt where no attack aimed at the region of a mask that is judged."""
    if pool.card.task != "segmentation" or criterion.threat == "control":
        return []
    missing = lacking(criterion.metric, pool.card, pool.covering())
    return [untested(missing, list(pool.runs))] if missing else []


def _by_image(
    criterion: Criterion, card: DatasetCard
) -> Callable[[Pool], tuple[Estimate, ...] | None] | None:
    """Return how a metric is taken image by image; None where samples do not hold it."""
    base, metric = criterion.base, criterion.metric
    if base == "attack_success":
        return pooled_metrics.success
    if card.task == "segmentation":
        return _of_masks(base, metric, card)
    if base == "accuracy":
        return pooled_metrics.accuracy
    if base == "balanced_accuracy":
        return pooled_metrics.balanced_accuracy
    if base == "f1" and (card.binary or card.task == "multi_label"):
        return pooled_metrics.f1
    if card.task == "multi_label" and base in ("sensitivity", "specificity"):
        return lambda pool: pooled_metrics.of_findings(pool, int(base == "sensitivity"))
    return lambda pool: next(
        (k.estimates for k in (*recalls(pool), *directed_flips(pool)) if k.name == metric), None
    )


def _of_masks(
    base: str, metric: str, card: DatasetCard
) -> Callable[[Pool], tuple[Estimate, ...] | None] | None:
    part = metric.partition("[")[2].removesuffix("]")
    if part and part not in card.parts:
        return None
    index = list(card.parts).index(part) if part else None
    if base == "dice":
        return (
            pooled_metrics.accuracy
            if index is None
            else lambda pool: pooled_metrics.dice(pool, index)
        )
    if base == "iou":
        return lambda pool: pooled_metrics.iou(pool, index)
    if base == "target_dice":
        return lambda pool: (
            pooled_metrics.target_dice(pool) if "target_dice" in pool.home.samples else None
        )
    return None


def judged_end(criterion: Criterion, estimate: Estimate) -> float:
    """Return the number of an estimate that a criterion judges; NaN where it is undefined."""
    ends = {"low": estimate.low, "value": estimate.value, "high": estimate.high}
    return math.nan if math.isnan(estimate.value) else ends[criterion.judged_on]
