"""Verified run: run an attack, check its gradients, and attack again if they are wrong.

The second attack uses the gradients of the module's own forward operations. If these cannot be
computed, Square, an attack by queries, is run at the same radii. Each image keeps the result that
does more harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from robustbench_med import registry
from robustbench_med.bench.attack_run import AttackRun, run_attack
from robustbench_med.bench.gradient_check import MOVED, PASSES, compare
from robustbench_med.bench.ladder import WHOLE, Sharding
from robustbench_med.bench.measurements import Measurements, smallest_success
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.traced_guide import traced_guide
from robustbench_med.cards import AttackCard
from robustbench_med.problem import Counter
from robustbench_med.rng import seeded
from robustbench_med.victim import Victim, frozen

QUERIES = 1000  # queries of Square for each image and radius
Remedy = Literal["", "traced", "queries"]
REMEDIES: dict[Remedy, str] = {
    "": "the results are those of the attack with these gradients",
    "traced": "the attack was run again with the gradients of the module's own forward operations, "
    "and each image counts with the worse of both runs",
    "queries": f"Square with {QUERIES} queries was run as well, because the module's own forward "
    "operations give no gradients, and each image counts with the worse of both attacks",
}


@dataclass(frozen=True)
class GradientFinding:
    """The result of the gradient check of one run.

    Attributes:
        checked: number of gradients that finite differences could judge.
        disagree: number of these gradients that are not the derivative of the outputs.
        asked: number of outputs of the attack that were computed again without gradients.
        moved: number of these outputs that differ.
        remedy: the second attack that was run if gradients disagree or outputs differ.
        passes: number of images forwarded for the check.
        counter: counts of faulty gradients in the first run, if the attack was run again.
    """

    checked: int
    disagree: int
    asked: int
    moved: int
    remedy: Remedy = ""
    passes: int = 0
    counter: Counter | None = None

    @property
    def lies(self) -> bool:
        """Whether the attack's gradients or outputs are not those of the model."""
        return self.disagree > 0 or self.moved > 0


def run_verified(
    planned: ResolvedCase,
    setup: AttackSetup,
    *,
    keeps: bool = False,
    sharding: Sharding = WHOLE,
) -> AttackRun:
    """Attack as `run_attack` does, check the gradients, and attack again if they are wrong."""
    run = run_attack(planned, setup, keeps=keeps, sharding=sharding)
    finding = check_gradients(planned, setup, run)
    if finding is None or not finding.lies or setup.surrogate is not None:
        return run._replace(gradients=finding)
    guide = _honest_guide(planned, setup, run)
    if guide is not None:
        traced = replace(setup, guide=guide)
        again = run_attack(planned, traced, keeps=keeps, sharding=sharding.part("traced"))
        finding = replace(finding, remedy="traced", counter=run.counter)
        return merged(again, run)._replace(gradients=finding)
    square: AttackCard = registry.find("attacks", "square")
    case = planned.case
    if case.norm not in square.norms or run.fitted is not None:
        return run._replace(gradients=finding)
    parameters = {**square.parameters, "queries": QUERIES}
    queries = planned.with_attack(square, parameters)
    again = run_attack(queries, setup, keeps=keeps, sharding=sharding.part("queries"))
    finding = replace(finding, remedy="queries", counter=run.counter)
    return merged(run, again)._replace(gradients=finding)


def check_gradients(
    planned: ResolvedCase, setup: AttackSetup, run: AttackRun
) -> GradientFinding | None:
    """Check the gradients of a run by finite differences; None if it computed no gradients."""
    victim, samples = setup.victim, [] if run.recorder is None else run.recorder.samples
    coarse = planned.case.guide == "bfloat16"
    if setup.surrogate is not None:
        victim, samples, coarse = setup.surrogate.victim, setup.surrogate.recorder.samples, False
    if not samples:
        return None
    case, cost = planned.case, run.counter
    # the check costs at most as much as the attack, but uses at least two gradients
    samples = samples[: max(2, (cost.forward + cost.backward) // (2 * PASSES))]
    with frozen(victim.module), seeded(case.seed, case.id, "gradients"):
        comparison = compare(victim, samples, seed=case.seed)
    return GradientFinding(
        checked=int(comparison.judged.sum()),
        disagree=int(comparison.disagree.sum()),
        asked=len(samples),
        moved=0 if coarse else int((comparison.moved > MOVED).sum()),
        passes=comparison.passes,
    )


def _honest_guide(planned: ResolvedCase, setup: AttackSetup, run: AttackRun) -> Victim | None:
    """Return the victim with the gradients of its own operations; it is traced only once."""
    key = ("traced guide", setup.guide is None)
    if key not in setup.probes:
        samples = [] if run.recorder is None else run.recorder.samples
        case, victim = planned.case, setup.guide or setup.victim
        with frozen(victim.module), seeded(case.seed, case.id, "guide"):
            setup.probes[key] = traced_guide(victim, samples, seed=case.seed)
    guide: Victim | None = setup.probes[key]
    return guide


def merged(run: AttackRun, second: AttackRun) -> AttackRun:
    """Merge two runs: for each image and radius, keep the result that does more harm.

    Both runs have the same images and radii. The cost is the sum of both; everything else that does
    not belong to an image comes from the first run.
    """
    rungs: Measurements = {name: value.clone() for name, value in run.rungs.items()}
    harm = (r.rungs["harm"].masked_fill(r.rungs["done"], torch.inf) for r in (run, second))
    mine, theirs = harm
    broken = second.rungs["success"] & ~run.rungs["success"]
    worse = broken | ((second.rungs["success"] == run.rungs["success"]) & (theirs > mine))
    for name, value in rungs.items():
        value[worse] = second.rungs[name][worse]
    counter = replace(
        run.counter,
        forward=run.counter.forward + second.counter.forward,
        backward=run.counter.backward + second.counter.backward,
    )
    distance = run.distance.minimum(
        smallest_success(rungs) if second.minimal is False else second.distance
    )
    return run._replace(
        rungs=rungs, distance=distance, counter=counter, seconds=run.seconds + second.seconds
    )
