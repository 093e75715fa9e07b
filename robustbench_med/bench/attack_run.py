"""Run one attack on one victim at every radius of the ladder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from robustbench_med.bench.ladder import WHOLE, Ladder, Sharding
from robustbench_med.bench.measurements import Measurements, clean_measurements, smallest_success
from robustbench_med.bench.provenance import reset_peak
from robustbench_med.bench.record import LadderAudit
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.schedules import OpenLadder, family_of, schedule_of
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.shard_files import Shard
from robustbench_med.bench.transfer import transferred
from robustbench_med.bench.universal_run import FittedUniversal
from robustbench_med.cards import SEVERITY, AttackCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.models.guide import bfloat16
from robustbench_med.objective import Objective
from robustbench_med.objectives.decide import verdict_on
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws, seeded
from robustbench_med.shift import Shifted
from robustbench_med.stored_images import select_images
from robustbench_med.types import Images, Output, Verdict
from robustbench_med.victim import frozen

if TYPE_CHECKING:
    from robustbench_med.bench.verified_run import GradientFinding

_AT_ONCE = 64  # images whose norm is computed together
RECORDED = (12, 2)  # number of recorded gradients: for labels or findings, and for masks


class AttackRun(NamedTuple):
    """The result of an attack at every radius of its ladder.

    Attributes:
        problem: the attacked images: those that the victim predicts right, or whose mask is not
            wholly wrong.
        attack: the attack as it was applied; a universal attack only adds its fitted perturbation.
        rng: the random draws, one stream for each attacked image.
        radii: the ladder in image units.
        attacked: `(n,)` which images of the batch were attacked.
        rungs: the measurements, `(r, b, ...)` by name, smallest radius first.
        distance: `(b,)` the size of the smallest success on each image; inf where there is none.
        ladder: how the inferences of a descending ladder were checked.
        counter: the passes that the attack cost.
        seconds: wall-clock time.
        clean: the measurements of the clean versions of the attacked images.
        fitted: the universal perturbation of each rung.
        minimal: whether the attack minimises the norm instead of using a radius.
        recorder: holds a few of the attack's gradients.
        gradients: the result of checking these (robustbench_med/bench/verified_run.py).
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
    clean: Measurements
    fitted: FittedUniversal | None = None
    minimal: bool = False
    recorder: GradientRecorder | None = None
    gradients: GradientFinding | None = None
    peak: float = 0.0

    @property
    def aimed(self) -> Bool[Tensor, " n"]:
        """Which of the attacked images count in the success rate.

        If the clean image already reaches the goal, a mask is still attacked for the worst case,
        but does not count as a success of the attack.
        """
        aimed = self.attacked.clone()
        aimed[self.attacked] = ~self.clean["success"]
        return aimed


def run_attack(
    planned: ResolvedCase,
    setup: AttackSetup,
    *,
    keeps: bool = False,
    saved: Saved | None = None,
    sharding: Sharding = WHOLE,
) -> AttackRun:
    """Attack every image whose goal is not reached yet, at every radius of the ladder.

    Args:
        planned: the case and its data.
        setup: the victim and the images.
        keeps: whether the measurements of every rung also hold the candidates.
        saved: adversarial images of an earlier run, which are judged instead of running the attack.
        sharding: how many images are attacked together, and where finished shards are stored.

    Raises:
        ShardsNeeded: other processes are to attack the shards (`Sharding.stops`).
    """
    clock = time.perf_counter()
    case, batch = planned.case, setup.batch
    reset_peak(batch.x.device)
    card = planned.data.card
    objective, verdict, attacked = goal_of(planned, setup)
    verdict = Verdict(*(value[attacked] for value in verdict))
    rows = attacked.nonzero()[:, 0]
    radii = _radii(case, planned.data)
    recorder = GradientRecorder(RECORDED[card.task == "segmentation"], seed=case.seed)
    setup = _with_recorder(setup, recorder)
    guide = setup.guide
    if case.guide == "bfloat16":
        guide = replace(bfloat16(setup.guide or setup.victim), recorder=recorder)
    problem = Problem(
        x=select_images(batch.x, rows),
        y=batch.y[rows],
        ball=ball_of(case, card, radii[0]),
        objective=objective,
        judge=setup.victim,
        guide=guide,
        counter=Counter(forward=2 * len(batch)),  # the clean images have been forwarded twice
        chunk=setup.victim.chunk,
        limit=setup.victim.limit,
        keeps=keeps,
    )
    # the draws depend on the attack and not on the case's id, so that a victim that is trained
    # again is attacked with the same draws
    every_rng = Draws.of(case.seed, map(str, batch.ids), device=batch.x.device)
    every_rng = every_rng.fork(case.drawn_by, case.attack)
    with attacked_models(setup), seeded(case.seed, case.id, "walk"):
        suspicion = None if setup.suspicion is None else setup.suspicion[attacked]
        clean = clean_measurements(problem, Output(setup.clean[attacked], suspicion), verdict)
        if saved is None:
            run = _attack_rungs(
                planned, setup, problem, every_rng, radii, attacked, clean, recorder, sharding
            )
        else:
            run = _judge_saved(planned, problem, every_rng, radii, attacked, clean, saved)
    recorder.active = False
    seconds = run.seconds + time.perf_counter() - clock
    return run._replace(seconds=seconds, recorder=recorder)


def goal_of(
    planned: ResolvedCase, setup: AttackSetup
) -> tuple[Objective, Verdict, Bool[Tensor, " n"]]:
    """Return the attacker's goal, the verdict on the clean images, and which are attacked."""
    objective, y = planned.objective, setup.batch.y
    if setup.victim.guard is not None:
        objective = EvadeDetector(objective)
    k = len(planned.data.card.classes)
    verdict = verdict_on(objective, setup.clean, y, k, setup.suspicion)
    attacked = objective.applies(y) & ~verdict.is_final
    if setup.suspicion is not None:  # a rejected clean image is wrong without an attack
        attacked &= setup.suspicion <= 0
    return objective, verdict, attacked


@contextmanager
def attacked_models(setup: AttackSetup) -> Iterator[None]:
    """Keep the modules that an attack calls as they are: frozen, and in evaluation mode."""
    with ExitStack() as stack:
        stack.enter_context(frozen(setup.victim.module))
        if setup.surrogate is not None:
            stack.enter_context(frozen(setup.surrogate.victim.module))
        yield


def attack_shard(opened: OpenLadder, index: int) -> Shard:
    """Attack one shard of a case whose ladder is open, as `run_attack` would."""
    reset_peak(opened.ladder.problem.x.device)
    case = opened.ladder.planned.case
    with attacked_models(opened.ladder.setup), seeded(case.seed, case.id, "walk"):
        return opened.attack(index)


def _with_recorder(setup: AttackSetup, recorder: GradientRecorder) -> AttackSetup:
    """Return the setup with a recorder on the gradients of victim, guide and surrogate."""
    surrogate = setup.surrogate
    if surrogate is not None:
        # cases that share a surrogate share the candidates crafted on it, and so its gradients
        victim = replace(surrogate.victim, recorder=surrogate.recorder)
        surrogate = replace(surrogate, victim=victim)
    return replace(
        setup,
        victim=replace(setup.victim, recorder=recorder),
        guide=None if setup.guide is None else replace(setup.guide, recorder=recorder),
        surrogate=surrogate,
    )


def _attack_rungs(
    planned: ResolvedCase,
    setup: AttackSetup,
    problem: Problem,
    every_rng: Draws,
    radii: tuple[float, ...],
    attacked: Bool[Tensor, " n"],
    clean: Measurements,
    recorder: GradientRecorder,
    sharding: Sharding,
) -> AttackRun:
    """Run the attack at every rung, by its schedule."""
    card = planned.attack.card
    attack = bound(registry.function("attacks", card), planned.case.parameters)
    if uses_all_steps(card, setup):
        attack = with_all_steps(attack)
    if setup.surrogate is not None:
        attack = transferred(attack, setup.surrogate, use_all_steps=card.schedule != "distance")
    rng = every_rng.select(attacked.nonzero()[:, 0])
    schedule = schedule_of(
        card,
        planned.data.card.task,
        surrogate=setup.surrogate is not None,
        guard=setup.victim.guard is not None,
    )
    ladder = Ladder(planned, setup, problem, attack, rng, every_rng, radii, clean=clean)
    filled = schedule.run(ladder._replace(recorder=recorder, sharding=sharding))
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
        seconds=filled.seconds,
        clean=clean,
        fitted=filled.universal,
        minimal=distance is not None,
        peak=filled.peak,
    )


def _judge_saved(
    planned: ResolvedCase,
    problem: Problem,
    every_rng: Draws,
    radii: tuple[float, ...],
    attacked: Bool[Tensor, " n"],
    clean: Measurements,
    saved: Saved,
) -> AttackRun:
    """Return a run that judges the adversarial images of an earlier run."""

    def untouched(problem: Problem, rng: Draws) -> Images:
        return problem.x

    family = None
    if planned.case.norm == SEVERITY:
        function = registry.function("attacks", planned.attack.card)
        family = family_of(bound(function, planned.case.parameters), problem)
    rungs = saved.columns(problem, radii, planned.data.card.levels, clean, family=family)
    rng = every_rng.select(attacked.nonzero()[:, 0])
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
        clean=clean,
    )


def _radii(case: Case, data: Dataset) -> tuple[float, ...]:
    """Return the ladder in image units.

    Source of the ratio budget: Hirano, Minagi, Takemoto, BMC Medical Imaging 2021, "Universal
    adversarial perturbations": zeta is the ratio of the perturbation's norm to the mean norm of the
    images of the dataset; here of its training split.
    """
    if case.budget == "absolute":
        return case.ladder
    x = data.batch("train", stored=True).x
    sizes = [Ball(case.norm, 0.0).size(part, torch.zeros_like(part)) for part in x.split(_AT_ONCE)]
    unit = float(torch.cat(sizes).mean())
    return tuple(eps * unit for eps in case.ladder)


def uses_all_steps(card: AttackCard, setup: AttackSetup) -> bool:
    """Whether an attack uses all its steps on this victim, for every image and radius.

    On a random victim the first success may be a lucky draw: behind random resizing 62 % were
    robust when PGD-20 stopped at its first success, and 12 % when it used all its steps. Behind a
    detector, a search that stops just below the threshold returns images that a lower threshold
    would reject: the AUROC was 0.92 with 80 successes on 87 images, and 0.50 with all steps.
    """
    needed = setup.victim.draws > 1 or setup.victim.guard is not None
    return needed and card.schedule in ("ascend", "descend", "severity")


def with_all_steps(attack: Attack) -> Attack:
    """Return the attack so that it uses all its steps on every image."""

    def attack_on(problem: Problem, rng: Draws) -> Any:  # noqa: ANN401 - Images or Shifted
        return attack(
            replace(problem, objective=LossOverride(problem.objective, use_all_steps=True)), rng
        )

    return attack_on


def bound(function: Callable[..., Images | Shifted], parameters: dict[str, Any]) -> Attack:
    """Return the attack as a function of problem and draws, with its parameters."""

    def attack(problem: Problem, rng: Draws) -> Images | Shifted:
        if len(problem) == 0:
            if problem.ball.norm == SEVERITY:  # its family is asked for so
                return function(problem, rng=rng, **parameters)
            return problem.x
        # bind only now, because the objective of an AttackRun is used with other truths too
        return function(problem.bind(), rng=rng, **parameters)

    return attack
