"""The values of a criterion that each subgroup of a column must meet."""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med.stats import Estimate
from robustbench_med.subgroups import FEWEST, Grouping, columns_of, groupings, membership

from ..wording.text import plain
from .criteria import Criterion
from .criterion_critical import critical_value
from .criterion_value import CriterionValue, criterion_value
from .pooled_metrics import accuracy_table
from .pooled_runs import Bools, Pool

GAP = "subgroup_gap"


class Part(NamedTuple):
    """What a criterion is judged on: all images of a pool, or one subgroup of them.

    Attributes:
        words: the subgroup as "sex F"; empty for all images.
        images: number of images.
        value: the value.
    """

    words: str
    images: int
    value: CriterionValue


def parts(criterion: Criterion, pool: Pool) -> list[Part]:
    """Return the value of all images, or of each subgroup if the criterion names a column."""
    column = criterion.subgroup
    if not column:
        judge = critical_value if criterion.critical else criterion_value
        return [Part("", len(pool.images), judge(criterion, pool))]
    if column not in columns_of(pool.home):
        known = ", ".join(map(plain, columns_of(pool.home))) or "none"
        why = f"the data have no subgroups of {plain(column)}; columns of subgroups: {known}"
        return [Part("", len(pool.images), CriterionValue(None, pool.ids, why))]
    table = accuracy_table(pool)
    grouping = next(g for g in groupings(table, pool.home) if g.column == column)
    if criterion.metric == GAP:
        return _gaps(criterion, pool, grouping)
    groups = membership(pool.home, column, pool.images)
    return [
        Part(
            f"{plain(column)} {plain(group.name)}",
            group.images,
            _too_small(group.patients, pool)
            if group.small
            else _value(criterion, pool, groups == group.name),
        )
        for group in grouping.subgroups
    ]


def _too_small(patients: int, pool: Pool) -> CriterionValue:
    why = f"{patients} patients or images are too few to judge a subgroup, at least {FEWEST}"
    return CriterionValue(None, pool.ids, why)


def _value(criterion: Criterion, pool: Pool, inside: Bools) -> CriterionValue:
    judge = critical_value if criterion.critical else criterion_value
    value = judge(criterion, pool._replace(images=pool.images[inside]))
    if value.estimate is None and not value.why:
        why = f"{criterion.metric} is of whole records and not known of a subgroup"
        return value._replace(why=why)
    return value


def _gaps(criterion: Criterion, pool: Pool, grouping: Grouping) -> list[Part]:
    """Return by how much each subgroup scores less than the other images at the last level."""
    whole = criterion_value(
        criterion.model_copy(
            update={"metric": "dice" if pool.card.task == "segmentation" else "accuracy"}
        ),
        pool,
    )
    if whole.estimate is None:
        return [Part("", len(pool.images), whole)]
    made = []
    for group in grouping.subgroups:
        e = group.difference[-1]
        turned = Estimate(value=-e.value, low=-e.high, high=-e.low)
        value = (
            _too_small(group.patients, pool)
            if group.small
            else CriterionValue(turned, pool.ids, doubts=whole.doubts)
        )
        made.append(Part(f"{plain(grouping.column)} {plain(group.name)}", group.images, value))
    return made
