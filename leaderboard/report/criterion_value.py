"""Compute the value of a criterion's metric over a pool of runs, image by image if possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from robustbench_med.cards import DatasetCard
from robustbench_med.stats import Estimate

from ..boards.crosscheck import many_steps
from ..wording.text import plain
from . import pooled_metrics
from .criteria import Criterion, scored_metric
from .evidence import hardest
from .goals import goal_of, lacking, needs, toward, untested
from .pooled_runs import Pool, image_ids
from .recalls import directed_flips, recalls
from .suggestions import unknown_part

_OF_ATTACKS = ("attack_success", "flips_to_normal", "flips_to_disease")  # undefined when clean
_CALLS = ("accuracy", "sensitivity", "specificity", "recall", "balanced_accuracy", "f1")
_OF_IMAGES = (*_CALLS, *_OF_ATTACKS, "dice", "iou", "target_dice", "auc", "subgroup_gap")
_NO_WORST_CASE = (
    "an attack stops as soon as the decision flips, so the AUC under it is not a worst case and no "
    "record can test this (name one attack to judge the AUC under that one, or use sensitivity and "
    "specificity)"
)


class CriterionValue(NamedTuple):
    """The value that a criterion is judged on.

    Attributes:
        estimate: the value; None if there is none.
        records: ids of the cases that it comes from.
        why: the reason why there is no value.
        doubts: reasons why the value may be too good.
        single: whether it is the value under the worst single attack, and not image by image.
        note: what else a reader should know of the value.
    """

    estimate: Estimate | None
    records: tuple[str, ...] = ()
    why: str = ""
    doubts: tuple[str, ...] = ()
    single: bool = False
    note: str = ""


def over_goals(criterion: Criterion, card: DatasetCard) -> bool:
    """Whether attacks with any goal may lower a metric, because it is about calls or regions."""
    if criterion.attack == "clean":
        return True
    criterion = scored_metric(criterion, card)
    if card.task == "segmentation":
        return "[" in criterion.metric
    if criterion.base == "accuracy":  # with another objective it is refused, see `_refused`
        return goal_of(criterion.objective)[0] == "untargeted"
    return criterion.base in (*_CALLS, "flips_to_normal", "flips_to_disease")


def of_records(criterion: Criterion) -> bool:
    """Whether a metric exists only for whole records, so that its worst case is a single attack."""
    base = criterion.of.partition("[")[0] if criterion.critical else criterion.base
    return base not in ("", *_OF_IMAGES)


def criterion_value(criterion: Criterion, pool: Pool) -> CriterionValue:
    """Return a criterion's metric at the last level of a pool, or the reason why it has none."""
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
    # the metric of a record covers all its images
    runs = [run for run in pool.covering() if len(image_ids(run)) == len(pool.images)]
    worst = hardest(
        runs, criterion.metric, pool.levels[-1], higher=criterion.higher, end=criterion.judged_on
    )
    if worst is None:
        lacks = f"the records have no {criterion.metric} for {plain(card.title)}"
        return CriterionValue(None, pool.ids, unknown_part(criterion.metric, card) or lacks)
    if criterion.base == "auc" and not clean:
        doubts = (
            *doubts,
            "the attack stops as soon as the decision flips, so this AUC is not a worst case",
        )
    # every record of the pool has the same clean images, so the first stands for all
    ids = tuple(run.record.case_id for run in (worst.runs[:1] if clean else worst.runs))
    return CriterionValue(worst.estimate, ids, "", doubts, single=not clean)


def _refused(criterion: Criterion, pool: Pool) -> str:
    """Return why a pool cannot test a criterion; empty if it can."""
    card, base = pool.card, criterion.base
    if criterion.attack == "clean":
        return f"{base} needs an attack; it is undefined when clean" if base in _OF_ATTACKS else ""
    masks = card.task == "segmentation"
    if base == "accuracy" and not masks and goal_of(criterion.objective)[0] != "untargeted":
        return (
            f"boards with the objective {plain(criterion.objective)} count the images on which the "
            "goal is not reached, which is not an accuracy: use attack_success"
        )
    if base == "auc" and criterion.attack == "worst_case" and criterion.threat != "control":
        return _NO_WORST_CASE
    if criterion.threat == "control" or masks or not over_goals(criterion, card):
        return ""
    missing = lacking(criterion.metric, card, pool.covering())
    return untested(missing, list(pool.runs)) if missing else ""


def _weak(criterion: Criterion, pool: Pool) -> list[str]:
    """Return a doubt if a white-box worst case covers only attacks of a single step."""
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
            return [
                f"no attack of many steps was run, only {names}, so this worst case is not reliable"
            ]
    return []


def _unaimed(criterion: Criterion, pool: Pool) -> list[str]:
    """Return a doubt if no attack aimed at the region that is judged."""
    if pool.card.task != "segmentation" or criterion.threat == "control":
        return []
    missing = lacking(criterion.metric, pool.card, pool.covering())
    return [untested(missing, list(pool.runs))] if missing else []


def _by_image(
    criterion: Criterion, card: DatasetCard
) -> Callable[[Pool], tuple[Estimate, ...] | None] | None:
    """Return the function that computes a metric image by image; None if samples lack it."""
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
    """Return the number of an estimate that a criterion is judged on; NaN if it is undefined."""
    ends = {"low": estimate.low, "value": estimate.value, "high": estimate.high}
    return math.nan if math.isnan(estimate.value) else ends[criterion.judged_on]
