"""Walk: one attack on one victim up its ladder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.adversarial_images import Saved
from robustbench_med.bench.attack_spec import ball_of
from robustbench_med.bench.case import Case
from robustbench_med.bench.eps_search import Attack
from robustbench_med.bench.gradient_recorder import GradientRecorder
from robustbench_med.bench.measurements import Measurements, clean_measurements, smallest_success
from robustbench_med.bench.provenance import reset_peak
from robustbench_med.bench.record import LadderAudit
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.schedules import Ladder, schedule_of
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.transfer import transferred
from robustbench_med.bench.universal_run import FittedUniversal
from robustbench_med.cards import AttackCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.models.guide import bfloat16
from robustbench_med.objectives.decide import verdict_on
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws, seeded
from robustbench_med.types import Images, Output, Verdict
from robustbench_med.victim import frozen

if TYPE_CHECKING:
    from robustbench_med.bench.verified_run import GradientFinding

# of images handed to an attack at once: JSMA and DeepFool hold thirty times as much beside them
_SHARD_BYTES = 32 * 2**20
RECORDED = (12, 2)  # gradients that are kept of an attack on labels or findings, and on masks


class AttackRun(NamedTuple):
    """An attack walked up its ladder.

    Attributes:
        problem: the samples attacked: those the victim calls right, or masks not wholly wrong.
        attack: as it was applied; a universal one only applies its patterns.
        rng: its draws, one stream a sample attacked.
        radii: the ladder in image units.
        attacked: `(n,)` which of the batch those are.
        rungs: what was measured of them, `(r, b, ...)` a name, smallest radius first.
        distance: `(b,)` the smallest perturbation found that broke each of them; inf where none.
        ladder: how a descending ladder was checked.
        counter: what it cost.
        seconds: wall-clock time.
        rest: the columns of the clean images.
        fitted: a universal perturbation a rung.
        minimal: whether the attack knows no radius.
        recorder: holds a few of the gradients that the attack got.
        gradients: what a check of those found (robustbench_med/bench/verified_run.py).
    """

    problem: Problem
    attack: Attack
    rng: Draws
    radii: tuple[float, ...]
    attacked: Bool[Tensor, " n"]
    rungs: Measurements
    distance: Float[Tensor, " b"]
    ladder: LadderAudit | None
    counter: Counter
    seconds: float
    rest: Measurements
    fitted: FittedUniversal | None = None
    minimal: bool = False
    recorder: GradientRecorder | None = None
    gradients: GradientFinding | None = None

    @property
    def aimed(self) -> Bool[Tensor, " n"]:
        """Which of the attacked images the clean image does not give the attacker for nothing.

        Masks that are lost at rest are attacked all the same, for the worst case, but are no
        success of the attack.
        """
        found = self.attacked.clone()
        found[self.attacked] = ~self.rest["success"]
        return found


def run_attack(
    planned: ResolvedCase, ready: AttackSetup, *, keeps: bool = False, saved: Saved | None = None
) -> AttackRun:
    """Attack every sample whose goal is not reached yet, at every radius of the ladder.

    Args:
        planned: the case and its data.
        ready: its victim and images.
        keeps: whether the columns of every rung hold the candidates too.
        saved: judge these images and attack nothing.
    """
    clock = time.perf_counter()
    case, batch = planned.case, ready.batch
    reset_peak(batch.x.device)
    card = planned.data.card
    objective = planned.objective
    if ready.victim.guard is not None:
        objective = EvadeDetector(objective)
    before = verdict_on(objective, ready.clean, batch.y, len(card.classes), ready.suspicion)
    attacked = objective.applies(batch.y) & ~before.is_final
    if ready.suspicion is not None:  # what is rejected when clean is lost already
        attacked &= ready.suspicion <= 0
    before = Verdict(*(value[attacked] for value in before))
    rows = attacked.nonzero()[:, 0]
    radii = _radii(case, planned.data)
    recorder = GradientRecorder(RECORDED[card.task == "segmentation"], seed=case.seed)
    ready = _recorded(ready, recorder)
    guide = ready.guide
    if case.guide == "bfloat16":
        guide = replace(bfloat16(ready.guide or ready.victim), recorder=recorder)
    problem = Problem(
        x=batch.x[rows],
        y=batch.y[rows],
        ball=ball_of(case, card, radii[0]),
        objective=objective,
        judge=ready.victim,
        guide=guide,
        counter=Counter(forward=2 * len(batch)),  # the clean images are asked twice
        chunk=ready.victim.chunk,
        keeps=keeps,
    )
    # keyed by what the attack does, not by the case's id: a victim trained anew meets the same
    # draws
    everyone = Draws.of(case.seed, map(str, batch.ids), device=batch.x.device)
    everyone = everyone.fork(case.drawn_by, case.attack)
    modules = [ready.victim.module] + ([ready.surrogate.victim.module] if ready.surrogate else [])
    with ExitStack() as held:
        for module in modules:
            held.enter_context(frozen(module))
        held.enter_context(seeded(case.seed, case.id, "walk"))
        suspicion = None if ready.suspicion is None else ready.suspicion[attacked]
        rest = clean_measurements(problem, Output(ready.clean[attacked], suspicion), before)
        if saved is None:
            run = _rungs(planned, ready, problem, everyone, radii, attacked, rest)
        else:
            run = _judged(planned, problem, everyone, radii, attacked, rest, saved)
    recorder.active = False
    return run._replace(seconds=time.perf_counter() - clock, recorder=recorder)


def _recorded(ready: AttackSetup, recorder: GradientRecorder) -> AttackSetup:
    """Return the same victim, guide and surrogate, whose gradients are recorded."""
    surrogate = ready.surrogate
    if surrogate is not None:
        # cases that share a surrogate share what was crafted on it, and so its gradients
        own = surrogate.recorder
        surrogate = replace(surrogate, victim=replace(surrogate.victim, recorder=own))
    return replace(
        ready,
        victim=replace(ready.victim, recorder=recorder),
        guide=None if ready.guide is None else replace(ready.guide, recorder=recorder),
        surrogate=surrogate,
    )


def _rungs(
    planned: ResolvedCase,
    ready: AttackSetup,
    problem: Problem,
    everyone: Draws,
    radii: tuple[float, ...],
    attacked: Bool[Tensor, " n"],
    rest: Measurements,
) -> AttackRun:
    """Return the attack run at every rung, as its schedule says."""
    card = planned.attack.card
    attack = sharded(registry.function("attacks", card), planned.case.parameters)
    if uses_all_steps(card, ready):
        attack = with_all_steps(attack)
    if ready.surrogate is not None:
        attack = transferred(attack, ready.surrogate, use_all_steps=card.schedule != "distance")
    rng = everyone.select(attacked.nonzero()[:, 0])
    schedule = schedule_of(
        card,
        planned.data.card.task,
        surrogate=ready.surrogate is not None,
        guard=ready.victim.guard is not None,
    )
    filled = schedule.fill(
        Ladder(planned, ready, problem, attack, rng, everyone, radii, clean=rest)
    )
    distance = filled.distance
    return AttackRun(
        problem=problem,
        attack=filled.attack,
        rng=rng,
        radii=radii,
        attacked=attacked,
        rungs=filled.rungs,
        distance=smallest_success(filled.rungs) if distance is None else distance,
        ladder=filled.audit,
        counter=problem.counter,
        seconds=0.0,
        rest=rest,
        fitted=filled.universal,
        minimal=distance is not None,
    )


def _judged(
    planned: ResolvedCase,
    problem: Problem,
    everyone: Draws,
    radii: tuple[float, ...],
    attacked: Bool[Tensor, " n"],
    rest: Measurements,
    saved: Saved,
) -> AttackRun:
    """Return the run of images that were attacked before."""

    def untouched(problem: Problem, rng: Draws) -> Images:
        return problem.x

    rungs = saved.columns(problem, radii, planned.data.card.bit_depth, rest)
    rng = everyone.select(attacked.nonzero()[:, 0])
    return AttackRun(
        problem=problem,
        attack=untouched,
        rng=rng,
        radii=radii,
        attacked=attacked,
        rungs=rungs,
        distance=smallest_success(rungs),
        ladder=None,
        counter=problem.counter,
        seconds=0.0,
        rest=rest,
    )


def _radii(case: Case, data: Dataset) -> tuple[float, ...]:
    """Return the ladder in image units.

    Source of the ratio budget: Hirano, Minagi, Takemoto, BMC Medical Imaging 2021, "Universal
    adversarial perturbations": zeta is the ratio of the perturbation's norm to the mean norm of the
    images of the dataset; here of its training split.
    """
    if case.budget == "absolute":
        return case.ladder
    x = data.batch("train").x
    unit = float(Ball(case.norm, 0.0).size(x, torch.zeros_like(x)).mean())
    return tuple(eps * unit for eps in case.ladder)


def uses_all_steps(card: AttackCard, ready: AttackSetup) -> bool:
    """Whether an attack spends all its steps on this victim, every sample at every radius.

    Of a victim that answers at random, the first success may be a lucky draw: on one behind random
    resizing PGD-20 left 62 % standing when it stopped there, and 12 % when it climbed on. Of a
    guarded one, a search that ends just below the threshold leaves images that a lower threshold
    would catch: AUROC 0.92 where 80 of 87 were broken, and 0.50 when it climbed on.
    """
    changes = ready.victim.draws > 1 or ready.victim.guard is not None
    return changes and card.schedule in ("ascend", "descend")


def with_all_steps(attack: Attack) -> Attack:
    """Return the attack that spends all its steps on every sample."""

    def climbed(problem: Problem, rng: Draws) -> Images:
        return attack(
            replace(problem, objective=LossOverride(problem.objective, use_all_steps=True)), rng
        )

    return climbed


def sharded(function: Callable[..., Images], parameters: dict[str, Any]) -> Attack:
    """Return the attack as a function of problem and draws, fed what fits the memory."""

    def attack(problem: Problem, rng: Draws) -> Images:
        if len(problem) == 0:
            return problem.x
        per_image = problem.x[0].numel() * problem.x.element_size()
        rows = torch.arange(len(problem), device=problem.x.device)
        shards = rows.split(max(1, _SHARD_BYTES // per_image))
        # posed here and no earlier: the objective of a Run meets other truths too
        return torch.cat(
            [function(problem.select(s).bind(), rng=rng.select(s), **parameters) for s in shards]
        )

    return attack
