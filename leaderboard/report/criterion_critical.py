"""The critical radius that a criterion is judged on: where its metric falls below a level."""

from __future__ import annotations

from collections.abc import Callable

from robustbench_med.bench.record import Stored
from robustbench_med.stats.crossing import crossing

from ..wording.text import radius
from .criteria import Criterion, scored_metric
from .criterion_value import CriterionValue, criterion_value, judged_end
from .pooled_runs import Pool, rung_of

Value = Callable[[Criterion, Pool], CriterionValue]


def shared_levels(runs: list[Stored]) -> tuple[float, ...]:
    """Return 0, the clean image, and the radii at which every run attacked, in rising order."""
    ladders = [run.record.case.ladder for run in runs]
    first = ladders[0] if ladders else ()
    shared = (eps for eps in first if all(rung_of(eps, other) is not None for other in ladders))
    return (0.0, *sorted(shared))


def critical_value(
    criterion: Criterion, pool: Pool, value: Value = criterion_value
) -> CriterionValue:
    """Return the radius up to which a criterion's metric is at its level or above.

    Args:
        criterion: a criterion about a critical radius.
        pool: the runs, with every radius of `shared_levels`.
        value: returns the value of the metric at the last level of a pool.
    """
    metric = scored_metric(criterion, pool.card)
    clean = metric.model_copy(update={"attack": "clean"})
    values = [value(clean, pool._replace(levels=(0.0,)))]
    values += [value(metric, pool._replace(levels=(0.0, eps))) for eps in pool.levels[1:]]
    estimates = []
    for found in values:
        if found.estimate is None:
            return found
        estimates.append(found.estimate)
    fall = crossing(pool.levels, estimates, criterion.critical_level)
    if fall is None or len(pool.levels) == 1:
        why = "the runs have no radius in common" if fall else f"{metric.metric} is undefined here"
        return CriterionValue(None, pool.ids, why)
    last = radius(fall.last, criterion.norm)
    write = fall.words(lambda eps: radius(eps, criterion.norm) if eps else "0")
    result = CriterionValue(
        fall.estimate,
        pool.ids,
        doubts=tuple(dict.fromkeys(doubt for found in values for doubt in found.doubts)),
        single=any(found.single for found in values),
        note=f"critical {'severity' if criterion.norm == 'severity' else 'radius'}: {write}",
    )
    judged = judged_end(criterion, fall.estimate)
    if judged >= fall.last and judged < criterion.limit:
        why = (
            f"it holds up to {last}, the largest radius of all runs: attack larger ones to judge it"
        )
        return result._replace(estimate=None, why=why)
    return result
