"""Walk: one attack on one victim up its ladder."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med import objectives, registry
from robustbench_med.ball import Ball
from robustbench_med.bench.ladder import Attack, Columns, ascend, by_distance, descend, first_size
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.prepare import Prepared
from robustbench_med.bench.record import LadderAudit
from robustbench_med.cards import AttackCard
from robustbench_med.models.guide import bfloat16
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output
from robustbench_med.victim import frozen

_SHARD_BYTES = (
    256 * 2**20
)  # of images handed to an attack at once: bounds what it holds beside them


class Run(NamedTuple):
    """An attack walked up its ladder.

    Attributes:
        problem: the samples attacked: those the victim calls right.
        attack: as it was applied.
        rng: its draws, one stream a sample attacked.
        attacked: `(n,)` which of the batch those are.
        rungs: what was measured of them, `(r, b, ...)` a name, smallest radius first.
        distance: `(b,)` the smallest perturbation found that broke each of them; inf where none.
        ladder: how a descending ladder was checked.
        counter: what it cost.
        seconds: wall-clock time.
    """

    problem: Problem
    attack: Attack
    rng: Draws
    attacked: Bool[Tensor, " n"]
    rungs: Columns
    distance: Float[Tensor, " b"]
    ladder: LadderAudit | None
    counter: Counter
    seconds: float


def walk(planned: Planned, ready: Prepared) -> Run:
    """Attack every sample the victim calls right, at every radius of the ladder."""
    clock = time.perf_counter()
    if ready.batch.x.is_cuda:
        torch.cuda.reset_peak_memory_stats(ready.batch.x.device)
    case, batch = planned.case, ready.batch
    card: AttackCard = registry.find("attacks", case.attack)
    objective = objectives.make(case.objective, planned.data.card.task)
    attacked = objective.applies(batch.y) & ~objective(Output(ready.clean), batch.y).done
    rows = attacked.nonzero()[:, 0]
    counter = Counter(forward=len(batch))
    problem = Problem(
        x=batch.x[rows],
        y=batch.y[rows],
        ball=Ball(case.norm, case.ladder[0]),
        objective=objective,
        judge=ready.victim,
        guide=bfloat16(ready.victim) if case.guide == "bfloat16" else None,
        counter=counter,
        chunk=ready.victim.chunk,
    )
    attack = _sharded(registry.function("attacks", card), case.parameters)
    # keyed by what the attack does, not by the case's id: a victim trained anew meets the same
    # draws
    rng = Draws.of(case.seed, (str(batch.ids[i]) for i in rows.tolist()), device=batch.x.device)
    rng = rng.fork(case.dataset, case.attack)
    ladder, depth = case.ladder, planned.data.card.bit_depth
    audit, distance = None, None
    with frozen(ready.victim.module):
        if card.rungs == "ascend":
            rungs = ascend(problem, attack, rng, ladder, depth)
        elif card.rungs == "descend":
            guess = card.threat == "white_box"  # others never see a gradient
            rungs, audit = descend(problem, attack, rng, ladder, depth, guess=guess)
        else:
            clean = ready.clean[rows]
            rungs, distance = by_distance(problem, attack, rng, ladder, depth, clean)
    if distance is None:
        distance = first_size(rungs)
    seconds = time.perf_counter() - clock
    return Run(problem, attack, rng, attacked, rungs, distance, audit, counter, seconds)


def _sharded(function: Callable[..., Images], parameters: dict[str, Any]) -> Attack:
    """Return the attack as a function of problem and draws, fed what fits the memory."""

    def attack(problem: Problem, rng: Draws) -> Images:
        if len(problem) == 0:
            return problem.x
        per_image = problem.x[0].numel() * problem.x.element_size()
        rows = torch.arange(len(problem), device=problem.x.device)
        shards = rows.split(max(1, _SHARD_BYTES // per_image))
        found = [function(problem.take(s), rng=rng.take(s), **parameters) for s in shards]
        return torch.cat(found)

    return attack
