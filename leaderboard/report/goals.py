"""Find out which goal an attack needs so that a share of calls is a worst case. Pure.

An untargeted attack stops at any wrong call. With two classes this is the other class. With more
classes it is usually another grade, and with findings it is any other finding. Then a high
sensitivity shows nothing, because no attack tried to lower it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from robustbench_med.bench.record import Stored
from robustbench_med.cards import DatasetCard
from robustbench_med.worst_case import parse_objective

from ..wording.commands import rerun_command
from ..wording.threat_model import class_words

Goal = tuple[str, tuple[tuple[str, object], ...]]
_ANY: Goal = ("untargeted", ())
_MISSED = ("sensitivity", "flips_to_normal")  # metrics of disease that is called healthy
_OF_FINDINGS = (
    "sensitivity",
    "specificity",
    "flips_to_normal",
    "flips_to_disease",
    "balanced_accuracy",
    "f1",
)


class Need(NamedTuple):
    """Goals of which an attacker must have one; a command suggests the first."""

    goals: tuple[Goal, ...]
    words: str


def goal_of(objective: str) -> Goal:
    """Return an objective in a form that does not depend on spaces and order of parameters."""
    aim = parse_objective(objective)
    return (aim.name or objective, tuple(sorted(aim.parameters.items())))


def spell(name: str, parameters: Mapping[str, object]) -> str:
    """Return the spec of an objective for the command line.

    >>> spell("targeted", {"target": 0}), spell("untargeted", {})
    ('targeted(target=0)', 'untargeted')
    """
    listed = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    return f"{name}({listed})" if listed else name


def needs(metric: str, card: DatasetCard) -> list[Need]:
    """Return the goals that a share of calls needs; empty if any goal is enough."""
    base, _, part = metric.partition("[")
    part = part.removesuffix("]")
    if card.task == "multi_label":
        return _of_findings(base, part, card)
    if card.task == "segmentation":
        return _of_masks(base, part, card)
    if base in _MISSED and card.normal is not None:
        toward = _targeted(card.normal)
        name = class_words(card.classes[card.normal])
        goals = (_ANY, toward) if card.binary else (toward,)
        return [Need(goals, f"a wrong call of “{name}”")]
    if base in ("specificity", "flips_to_disease") and card.binary and card.normal is not None:
        return [Need((_ANY, _targeted(1 - card.normal)), "any wrong call")]
    if base == "recall" and card.binary and part in card.classes:
        return [Need((_ANY, _targeted(1 - card.classes.index(part))), "any wrong call")]
    return [Need((_ANY,), "any wrong call")]


def _targeted(k: int) -> Goal:
    return ("targeted", (("target", k),))


def _of_findings(base: str, part: str, card: DatasetCard) -> list[Need]:
    if base == "recall":
        places = [j for j, name in enumerate(card.classes) if name == part]
    else:
        places = list(range(len(card.classes))) if base in _OF_FINDINGS else []
    if base == "accuracy":
        return [Need((_ANY,), "any wrong call")]
    alone = (_ANY,) if len(card.classes) == 1 else ()
    return [
        Need(
            (("finding", (("index", j),)), *alone),
            f"“{class_words(card.classes[j])}” called wrong",
        )
        for j in places
    ]


def _of_masks(base: str, part: str, card: DatasetCard) -> list[Need]:
    if part not in card.parts or base not in ("dice", "iou"):
        return []
    alone = (_ANY,) if len(card.parts) == 1 else ()
    return [Need((("region", (("name", part),)), *alone), f"“{class_words(part)}” spoilt")]


def toward(need: Need, runs: Iterable[Stored]) -> list[Stored]:
    """Return the runs whose attacker had one of the needed goals."""
    return [run for run in runs if goal_of(run.record.case.objective) in need.goals]


def lacking(metric: str, card: DatasetCard, runs: list[Stored]) -> list[Need]:
    """Return the needs of a metric that no run meets."""
    return [need for need in needs(metric, card) if not toward(need, runs)]


def untested(missing: list[Need], runs: list[Stored]) -> str:
    """Return why a share is not a worst case, and the command that would make it one.

    Args:
        missing: the needs that `lacking` returned; at least one.
        runs: the runs of the share; the command repeats one of them with another goal.
    """
    objectives = [spell(goal[0], dict(goal[1])) for goal in (need.goals[0] for need in missing)]
    goals = "; ".join(need.words for need in missing)
    lax = any(goal_of(run.record.case.objective) == _ANY for run in runs)
    stops = " (an attacker who wants any wrong call stops at the first one)" if lax else ""
    how = "; ".join(command(runs, objective) for objective in objectives)
    return (
        f"no attack aims at it{stops}: no record covers all these images and radii with an "
        f"attacker who wants {goals} ({', '.join(objectives)}). Run: {how}"
    )


def command(runs: list[Stored], objective: str) -> str:
    """Return the command that repeats a run with another goal, if possible an iterative attack."""
    laddered = [r for r in runs if r.record.attack_card.schedule == "descend"]
    run = next((r for r in laddered if r.record.attack_card.effort), (*laddered, *runs)[0])
    return rerun_command(run, objective=objective)
