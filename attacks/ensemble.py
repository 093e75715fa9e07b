"""Ensemble: run several attacks in turn, each only on samples that are still robust."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, Rows

from .apgd import apgd, apgd_targeted
from .fab import fab
from .square import square

_SCOUT_DIVISOR = 5  # a scout spends a fifth of the steps and queries
_FAB_WAYS = 3  # how many ways FAB linearises at a time; targeted APGD tries the farther ones


@attack(
    title="Ensemble",
    summary="APGD with two losses, targeted APGD, FAB and Square, each on images not yet fooled.",
    source="after AutoAttack: Croce & Hein, ICML 2020, section 6",
    version=2,
    aliases=("autoattack", "auto_attack", "aa"),
    norms=("linf", "l2"),
    tasks=("single_label", "multi_label"),
    schedule="descend",
    positive=("steps", "queries", "targets"),
    cost=lambda steps, targets, queries: 7.2 * steps + 1.2 * steps * targets + 1.2 * queries,
)
def ensemble(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    growth: float = 1.15,
) -> Images:
    """Return the best candidates of an ensemble of attacks with nothing to configure.

    First every member runs as a scout, with a fifth of its effort. Then it runs in full on the
    samples that are still robust and on which its scout came near to success: those on which the
    scout's perturbation succeeds when it is multiplied by `growth`. On the other samples the full
    effort would hardly ever succeed, and it would be most of the cost. This rule does not depend on
    the scale of the logits.

    Args:
        problem: the batch to attack.
        rng: one random stream per sample; each member forks its own.
        steps: gradient steps per member, >= 1.
        queries: how many images Square shows to the victim per sample, >= 1.
        targets: how many wrong classes targeted APGD tries, >= 1.
        growth: factor on a scout's perturbation that decides whether it came near, >= 1; with inf,
            every scout counts as near.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the one with the most harm over all
        members.

    Raises:
        SpecError: a parameter is out of range.

    Source: AutoAttack (Croce & Hein, ICML 2020, section 6): APGD on cross-entropy, targeted APGD,
        FAB and Square with its 100 steps, 9 targets and 5,000 queries.
    Deviations: AutoAttack has no scouts and no `growth`; with inf, every member runs in full on
        every sample that is still robust, as there. APGD on the difference of logits ratio is
        added. FAB linearises the three leading ways at a time instead of trying 9 targets one by
        one. The ensemble also works with fewer than 10 classes, for findings and for one logit. A
        sample is finished at its first success.
    """
    if not growth >= 1:
        raise SpecError(f"expected growth >= 1, got {growth}")
    ways = (problem.margins(problem.x) > -torch.inf).sum(1)
    search = Search(problem)
    search.probe(problem.x)
    promising = []
    for scout in _members(
        max(1, steps // _SCOUT_DIVISOR), max(1, queries // _SCOUT_DIVISOR), targets
    ):
        rows, z = _run(search, scout, ways >= scout.least_ways, rng.fork("scout"))
        reached = torch.zeros_like(ways, dtype=torch.bool)
        reached[rows] = _breaks(problem.select(rows), z, growth)
        promising.append(reached)
    for member, reached in zip(_members(steps, queries, targets), promising, strict=True):
        _run(search, member, reached, rng)
    return search.best


class _Member(NamedTuple):
    """One attack of the ensemble.

    Attributes:
        name: names its random draws.
        attack: the attack, called as `attack(problem, rng=rng)`.
        least_ways: number of ways to the goal that a sample needs for this member to be of use.
    """

    name: str
    attack: Callable[..., Images]
    least_ways: int = 1


def _members(steps: int, queries: int, targets: int) -> tuple[_Member, ...]:
    """Return the members of the ensemble, the cheapest first."""
    return (
        _Member("cross_entropy", partial(apgd, steps=steps)),
        _Member("dlr", partial(apgd, steps=steps, loss="dlr")),
        _Member("targeted", partial(apgd_targeted, steps=steps, targets=targets), least_ways=2),
        _Member("fab", partial(fab_within, steps=steps)),
        _Member("square", partial(square, queries=queries)),
    )


def fab_within(problem: Problem, *, rng: Draws, steps: int) -> Images:
    """Return FAB's nearest successes, scaled down to the radius where they exceed it."""
    ball, x = problem.ball, problem.x
    z = fab(problem.at(torch.inf), rng=rng, steps=steps, candidates=_FAB_WAYS)
    size = ball.size(z, x)
    scale = (torch.as_tensor(ball.eps).to(size) / size).nan_to_num(nan=1.0).clamp_max(1)
    return ball.project(x + scale.view(-1, *[1] * (x.ndim - 1)) * (z - x), x)


def _run(
    search: Search, member: _Member, fit: Bool[Tensor, " b"], rng: Draws
) -> tuple[Rows, Float[Tensor, "rows c *s"]]:
    """Let a member attack the samples that are still robust and fit; return them and candidates."""
    fitting = fit[search.rows].nonzero()[:, 0]
    rows, z = search.rows[fitting], search.best[search.rows]
    if len(rows):
        z[fitting] = member.attack(
            search.active.select(fitting), rng=rng.select(rows).fork(member.name)
        )
        search.probe(z)
    return rows, z[fitting]


def _breaks(problem: Problem, z: Images, growth: float) -> Bool[Tensor, " b"]:
    """Return which perturbations succeed when multiplied by `growth`; with inf, all do."""
    if growth == torch.inf:
        return torch.ones(len(z), dtype=torch.bool, device=z.device)
    # harm > 0 is success; an objective may use all steps and then has no final verdicts
    return problem.probe((problem.x + growth * (z - problem.x)).clamp_(0, 1)).harm > 0
