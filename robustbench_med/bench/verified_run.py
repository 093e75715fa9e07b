"""Verified run: an attack whose gradients are checked, and what is done where they lie.

The attack is run again with the gradients of the module's own forward operations, where those can
be had. Where not, an attack by queries is run at the same radii, and each image keeps the worse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from robustbench_med import registry
from robustbench_med.bench.attack_run import AttackRun, run_attack
from robustbench_med.bench.gradient_check import MOVED, PASSES, compare
from robustbench_med.bench.measurements import Measurements, smallest_success
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.bench.traced_guide import traced_guide
from robustbench_med.cards import AttackCard
from robustbench_med.problem import Counter
from robustbench_med.rng import seeded
from robustbench_med.victim import Victim, frozen

QUERIES = 1000  # an image and radius, of the attack that needs no gradients
Remedy = Literal["", "traced", "queries"]
REMEDIES: dict[Remedy, str] = {
    "": "the attack was run with them all the same",
    "traced": "the attack was run again with the gradients of the module's own forward operations, "
    "and each image counts with the worse of both runs",
    "queries": f"Square with {QUERIES} queries was run as well, because the module's own forward "
    "operations give no gradients, and each image counts with the worse of both attacks",
}


@dataclass(frozen=True)
class GradientFinding:
    """What was found of the gradients that an attack got.

    Attributes:
        checked: gradients that finite differences could judge.
        disagree: of those, how many are not the gradients of the answers.
        asked: answers of the attack's own passes that were asked again without gradients.
        moved: of those, how many differ.
        remedy: what was done where some disagree or differ.
        passes: images forwarded for all this.
        counter: what was wrong with the gradients of the first run, where it was run again.
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
        """Whether the attack climbed something else than the model."""
        return self.disagree > 0 or self.moved > 0


def run_verified(planned: ResolvedCase, setup: AttackSetup, *, keeps: bool = False) -> AttackRun:
    """Attack as `run_attack` does, check the gradients, and attack again where they lie."""
    run = run_attack(planned, setup, keeps=keeps)
    finding = check_gradients(planned, setup, run)
    if finding is None or not finding.lies or setup.surrogate is not None:
        return run._replace(gradients=finding)
    guide = _honest_guide(planned, setup, run)
    if guide is not None:
        again = run_attack(planned, replace(setup, guide=guide), keeps=keeps)
        finding = replace(finding, remedy="traced", counter=run.counter)
        return merged(again, run)._replace(gradients=finding)
    square: AttackCard = registry.find("attacks", "square")
    case = planned.case
    if case.norm not in square.norms or run.fitted is not None:
        return run._replace(gradients=finding)
    parameters = {**square.parameters, "queries": QUERIES}
    again = run_attack(planned.with_attack(square, parameters), setup, keeps=keeps)
    finding = replace(finding, remedy="queries", counter=run.counter)
    return merged(run, again)._replace(gradients=finding)


def check_gradients(
    planned: ResolvedCase, setup: AttackSetup, run: AttackRun
) -> GradientFinding | None:
    """Return what finite differences say of the gradients of a run; None where it got none."""
    victim, samples = setup.victim, [] if run.recorder is None else run.recorder.samples
    coarse = planned.case.guide == "bfloat16"
    if setup.surrogate is not None:
        victim, samples, coarse = setup.surrogate.victim, setup.surrogate.recorder.samples, False
    if not samples:
        return None
    case, cost = planned.case, run.counter
    # the attack's own cost bounds that of the check; two say something in any case
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
    """Return the victim with the gradients of its own operations, traced once a victim."""
    key = ("traced guide", setup.guide is None)
    if key not in setup.probes:
        samples = [] if run.recorder is None else run.recorder.samples
        case, victim = planned.case, setup.guide or setup.victim
        with frozen(victim.module), seeded(case.seed, case.id, "guide"):
            setup.probes[key] = traced_guide(victim, samples, seed=case.seed)
    guide: Victim | None = setup.probes[key]
    return guide


def merged(run: AttackRun, second: AttackRun) -> AttackRun:
    """Return a run whose images keep, at each radius, what does more harm in either of two.

    Both are of the same images and radii. All that is not of an image is the first one's, but the
    cost, which is of both.
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
