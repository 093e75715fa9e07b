"""Schedules: every attack fills the ladder of every task as the bench has always filled it."""

from __future__ import annotations

import itertools

import pytest

from robustbench_med import registry
from robustbench_med.bench.schedules import SCHEDULES, schedule_of
from robustbench_med.cards import TASKS, AttackCard, Task

CARDS = registry.shipped("attacks")


def branch(card: AttackCard, task: Task, *, surrogate: bool, guard: bool) -> str:
    """Return the schedule as a chain of branches in the order in which they decide."""
    if card.schedule == "universal":
        return "universal"
    if card.schedule == "severity":
        return "severity"
    if card.schedule == "distance":
        return "distance"
    if task == "segmentation" and not surrogate:
        return "worst"
    if surrogate:
        return "transferred"
    if guard:
        return "guarded"
    return "descend" if card.schedule == "descend" else "ascend"


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_attack_takes_the_schedule_of_the_branch(name: str) -> None:
    card = CARDS[name]
    for task, surrogate, guard in itertools.product(TASKS, (False, True), (False, True)):
        schedule = schedule_of(card, task, surrogate=surrogate, guard=guard)
        assert schedule.name == branch(card, task, surrogate=surrogate, guard=guard)
        assert SCHEDULES[schedule.name] is schedule


def test_every_schedule_is_taken_by_a_shipped_attack() -> None:
    taken = {
        schedule_of(card, task, surrogate=surrogate, guard=guard).name
        for card in CARDS.values()
        for task, surrogate, guard in itertools.product(TASKS, (False, True), (False, True))
    }
    assert taken == set(SCHEDULES)
