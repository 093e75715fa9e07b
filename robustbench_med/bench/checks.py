"""Checks: what would make a record untrustworthy, measured by the run itself; some raise a flag.

An attack that failed may have been blinded instead of beaten. The checks follow Carlini et al., "On
evaluating adversarial robustness", 2019, section 4, and Athalye, Carlini, Wagner, ICML 2018,
section 3.1: signs of gradients that are masked. Those that attack again do so on a few images,
keyed by sample, and are not counted in the cost of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.prepare import Prepared
from robustbench_med.bench.record import Audit, Check, Flag
from robustbench_med.bench.score import TOLERANCE
from robustbench_med.bench.walk import Run, sharded
from robustbench_med.cards import AttackCard
from robustbench_med.errors import SpecError
from robustbench_med.objectives.climb import Climb
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws, seeded
from robustbench_med.types import Images, Output, Rows
from robustbench_med.victim import frozen

SAMPLE = 12  # images that a check attacks again, at most
QUERIES = 100  # of the black-box probe
DRAWS = 10  # of the noise probe
_JUST = 1.25  # radii that BIM's steps add up to; MI-FGSM's are 1


@dataclass(frozen=True)
class Evidence:
    """A finished run, seen by the checks.

    Attributes:
        planned: the case.
        ready: its victim and images.
        run: what the attack did.
        audit: of its budget.
        card: of its attack.
    """

    planned: Planned
    ready: Prepared
    run: Run
    audit: Audit
    card: AttackCard

    @property
    def headline(self) -> int:
        """Index of the radius the checks look at: the one that ranks a board."""
        return (len(self.run.radii) - 1) // 2

    @property
    def problem(self) -> Problem:
        """The images attacked, at that radius; passes are not counted."""
        here = self.run.problem.at(self.run.radii[self.headline])
        return replace(here, counter=Counter())

    @property
    def white_box(self) -> bool:
        """Whether the attack had the victim's gradients for every image."""
        return self.planned.case.threat == "white_box" and self.card.rungs != "universal"

    @property
    def iterative(self) -> bool:
        """Whether it is a white-box attack of more than one step."""
        return self.white_box and self.card.passes != "1"

    @property
    def counter(self) -> Counter:
        """What was wrong with the gradients: the victim's, or those of its surrogate."""
        surrogate = self.ready.surrogate
        return self.run.counter if surrogate is None else surrogate.counter

    @cached_property
    def rng(self) -> Draws:
        """Draws of the images attacked that are the same for every attack on this victim."""
        case, ids = self.planned.case, self.ready.batch.ids
        rows = self.run.attacked.nonzero()[:, 0]
        names = (str(ids[i]) for i in rows.tolist())
        return Draws.of(case.seed, names, device=rows.device).fork(case.dataset, "checks")

    def some(self, chosen: Bool[Tensor, " b"]) -> Rows:
        """Return a few of the chosen images, the same ones for every attack on this victim."""
        rows = chosen.nonzero()[:, 0]
        lots = self.rng.take(rows).uniform(1)[:, 0]
        return rows[lots.argsort()[:SAMPLE]].sort().values

    def missed(self) -> Rows:
        """Return a few of the images that stand at the headline radius."""
        return self.some(~self.run.rungs["broken"][self.headline])

    @cached_property
    def watched(self) -> tuple[_Watch, Bool[Tensor, " b"]] | None:
        """The attack run once more on images it missed, none of which may leave the batch.

        What it saw, and on which of them it returned a success.
        """
        if not self.iterative or not self.card.effort or self.card.rungs == "distance":
            return None
        rows = self.missed()
        if len(rows) == 0:
            return None
        here = replace(self.problem.take(rows), chunk=len(rows), guide=None)
        watch = _Watch(here)
        posed = replace(here, judge=watch, objective=Climb(here.objective, relentless=True))
        z = self.run.attack(posed, self.rng.take(rows).fork("watched"))
        watch.arrived = here.ball.size(z, here.x) >= 0.95 * torch.as_tensor(here.ball.eps)
        return watch, here.probe(z).done


class Measured(NamedTuple):
    """What a check found, and on how many images."""

    value: float
    checked: int | None = None


def _probabilities(found: Evidence) -> Measured:
    return Measured(float(found.ready.probabilities))


def _randomized(found: Evidence) -> Measured | None:
    if found.planned.case.draws > 1:
        return None  # attacked and judged in expectation
    return Measured(found.ready.randomized, len(found.ready.batch))


def _over_budget(found: Evidence) -> Measured:
    return Measured(float(found.audit.over_budget), len(found.run.problem))


def _nonfinite(found: Evidence) -> Measured:
    return Measured(float(found.counter.nonfinite))


def _zero(found: Evidence) -> Measured:
    return Measured(found.counter.zero / max(found.counter.backward, 1))


def _one_step(found: Evidence) -> Measured | None:
    if found.card.rungs == "distance":  # DeepFool's few steps go to one plane, not through a ball
        return None
    return _probe(found, "fgsm", {})


def _noise(found: Evidence) -> Measured | None:
    return _probe(found, "noise", {"draws": DRAWS})


def _queries(found: Evidence) -> Measured | None:
    return _probe(found, "square", {"queries": QUERIES})


def _probe(found: Evidence, name: str, parameters: dict[str, Any]) -> Measured | None:
    """Return how many images that the attack missed a simpler one breaks; kept for each victim."""
    card: AttackCard = registry.find("attacks", name)
    case = found.planned.case
    if not found.iterative or case.norm not in card.norms or case.attack == name:
        return None
    rows, problem = found.missed(), found.problem
    radius = found.run.radii[found.headline]
    known = found.ready.probes.setdefault((name, case.norm, radius, case.objective), {})
    new = torch.tensor([r for r in rows.tolist() if r not in known], dtype=torch.int64)
    new = new.to(rows.device)
    if len(new):
        here, attack = problem.take(new), sharded(registry.function("attacks", card), parameters)
        done = here.probe(attack(here, found.rng.take(new).fork("probe", name))).done
        known |= dict(zip(new.tolist(), done.tolist(), strict=True))
    return Measured(float(sum(known[r] for r in rows.tolist())), len(rows))


def _shrinking(found: Evidence) -> Measured | None:
    """Return how many images broken below the largest radius are not, attacked afresh there."""
    if not found.iterative or found.card.rungs == "distance" or len(found.run.radii) < 2:
        return None
    if found.planned.case.draws > 1:  # near the boundary the victim's own noise decides
        return None
    rows = found.some(found.run.rungs["broken"][:-1].any(0))
    here = found.problem.take(rows).at(found.run.radii[-1])
    z = found.run.attack(here, found.rng.take(rows).fork("afresh"))
    return Measured(float((~here.probe(z).done).sum()), len(rows))


def _large_radius(found: Evidence) -> Measured | None:
    """Return the share of a few images that stand where almost any image lies in the ball."""
    if not found.iterative:
        return None
    everyone = torch.ones(
        len(found.run.problem), dtype=torch.bool, device=found.run.distance.device
    )
    rows = found.some(everyone)
    if found.card.rungs == "distance":
        return _share(torch.isinf(found.run.distance[rows]))
    here = found.problem.take(rows)
    away = (here.x < 0.5).to(here.x)  # the farthest corner of the box; half way is enough
    here = here.at(Ball(found.planned.case.norm, 0.0).size(here.x + (away - here.x) * 0.75, here.x))
    z = found.run.attack(here, found.rng.take(rows).fork("large"))
    return _share(~here.probe(z).done)


def _share(hit: Bool[Tensor, " rows"]) -> Measured | None:
    return Measured(float(hit.float().mean()), len(hit)) if len(hit) else None


class _Watch:
    """A victim that remembers what each pass reached, of rows that never leave the batch."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.loss: list[Tensor] = []  # `(b,)` of each pass that is differentiated
        self.ever = torch.zeros(len(problem), dtype=torch.bool, device=problem.x.device)
        self.arrived = self.ever  # whose returned candidate lies at the radius

    def __call__(self, z: Images) -> Output:
        output = self._problem.judge(z)
        if len(z) == len(self._problem):
            here, seen = self._problem, Output(output.logits.detach())
            verdict = here.objective(seen, here.y)
            if z.requires_grad:
                self.loss.append(verdict.loss)
            size = here.ball.size(z.detach(), here.x)
            self.ever |= verdict.done & (size <= here.ball.eps * (1 + 1e-5) + TOLERANCE)
        return output


def _silent(found: Evidence) -> Measured | None:
    # of a victim that answers at random, one lucky pass proves nothing
    if found.ready.randomized > 0 or found.watched is None:
        return None
    watch, done = found.watched
    return Measured(float((watch.ever & ~done).sum()), len(done))


def _rising(found: Evidence) -> Measured | None:
    """Return how fast the loss rose in the last quarter of the steps, against its whole rise.

    1 = as fast as on average: nothing has converged; 0 = not at all. Of several restarts or
    targets, the first: all take as many passes, since nobody leaves. Steps that together just
    reach the radius, as BIM's and MI-FGSM's do, rise until they arrive: only who did not counts.
    """
    if found.watched is None:
        return None
    given = found.planned.case.parameters
    rows = torch.ones_like(found.watched[0].arrived)
    if given.get("reach", torch.inf) <= _JUST:
        rows = ~found.watched[0].arrived
    if not bool(rows.any()):
        return None
    runs = int(given.get("restarts", 1)) * int(given.get("targets", 1))
    seen = found.watched[0].loss
    losses = seen[: max(len(seen) // runs, 1)]
    if len(losses) < 4:
        return None
    best = torch.stack(losses).cummax(0).values[:, rows]
    last = len(best) - 1
    start = (3 * last) // 4
    total, late = (best[-1] - best[0]).sum(), (best[-1] - best[start]).sum()
    if float(total) <= 0:
        return None
    return Measured(float((late / (last - start)) / (total / last)), best.shape[1])


def _more_effort(found: Evidence) -> Measured | None:
    """Return how many images that stand break when every parameter of effort is doubled."""
    if not found.iterative or not found.card.effort:
        return None
    rows = found.missed()
    given = found.planned.case.parameters
    doubled = {**given, **{name: given[name] * 2 for name in found.card.effort}}
    attack = sharded(registry.function("attacks", found.card), doubled)
    here = found.problem.take(rows)
    posed = here.at(torch.inf) if found.card.rungs == "distance" else here
    try:
        z = attack(posed, found.rng.take(rows).fork("effort"))
    except SpecError:  # twice as much is more than the parameter allows
        return None
    near = here.ball.size(z, here.x) <= found.run.radii[found.headline]
    return Measured(float((here.probe(z).done & near).sum()), len(rows))


def _below_control(found: Evidence) -> Measured | None:
    """Return how many more images a random direction of equal norm breaks than the fitted one."""
    n = len(found.run.problem)
    if found.run.fitted is None or n == 0:
        return None
    rung = found.run.fitted.counts.rungs[found.headline]
    return Measured(round(n * (rung.control_success.value - rung.success.value)), n)


def _rounding(found: Evidence) -> Measured | None:
    """Return the share of the images broken at the headline radius that rounding repairs."""
    levels = 2**found.planned.data.card.bit_depth - 1
    broken = found.run.rungs["broken"][found.headline]
    moved = (
        found.run.rungs["linf"][found.headline] >= 1 / levels
    )  # less than a level is rounded off
    if not found.iterative or found.card.rungs == "distance":
        return None
    return _share(~found.run.rungs["rounded"][found.headline][broken & moved])


@dataclass(frozen=True)
class _Row:
    measure: Callable[[Evidence], Measured | None]
    threshold: float
    meaning: str


_CHECKS = {
    "probabilities": _Row(
        _probabilities,
        0.0,
        "The model answers probabilities where logits are expected: gradients vanish where it is "
        "sure, so gradient attacks look weaker than they are.",
    ),
    "randomized": _Row(
        _randomized,
        0.0,
        "The model answers differently when asked twice, and was attacked as if it did not: run "
        "with --draws 16 to attack and judge it in expectation.",
    ),
    "over_budget": _Row(
        _over_budget,
        0.0,
        "Some images were changed more than the radius allows, or left [0,1].",
    ),
    "nonfinite_gradients": _Row(
        _nonfinite, 0.0, "Some gradients were NaN or Inf; the attack went on with 0 instead."
    ),
    "zero_gradients": _Row(
        _zero,
        0.01,
        "More than 1 % of the gradients were 0 everywhere: the attack was blind there, and what "
        "looks robust may only be hidden.",
    ),
    "one_step_beats_iterative": _Row(
        _one_step,
        1.0,
        "A single step breaks images that this attack of many steps missed: its gradients mislead "
        "it.",
    ),
    "noise_beats_attack": _Row(
        _noise, 1.0, "Random noise of the same size breaks images that this attack missed."
    ),
    "black_box_beats_white_box": _Row(
        _queries,
        1.0,
        "An attack that only asks for answers breaks images that this attack, which knows the "
        "whole model, missed: the model hides its gradients.",
    ),
    "success_falls_with_radius": _Row(
        _shrinking,
        1.0,
        "Images broken at a small radius stand when attacked at a larger one, though the larger "
        "contains the smaller.",
    ),
    "large_radius_leaves_images": _Row(
        _large_radius,
        0.5,
        "Images stand even where the attack may change almost the whole image: it is the attack "
        "that fails.",
    ),
    "not_converged": _Row(
        _rising,
        0.7,  # PGD-20 on the shipped victims ends at 0.1 to 0.5, APGD below 0.1
        "The attack's loss was still rising in the last quarter of its steps, almost as fast as "
        "before: it was stopped too early.",
    ),
    "silent_success": _Row(
        _silent,
        0.0,
        "The attack passed an image that breaks the model and returned another that does not.",
    ),
    "more_effort_breaks_more": _Row(
        _more_effort,
        1.0,
        "Twice the steps and restarts break more than one of a few images that stood: the attack "
        "was too weak.",
    ),
    "universal_below_control": _Row(
        _below_control,
        1.0,
        "A random direction of the same size breaks more images than the perturbation that was "
        "fitted: the attack failed to learn.",
    ),
    "rounding_repairs": _Row(
        _rounding,
        0.5,
        "Most images that broke are right again when stored in the images' bit depth.",
    ),
}


def checks_of(found: Evidence) -> tuple[tuple[Check, ...], tuple[Flag, ...]]:
    """Return everything that was measured on a run, and the flags it raises."""
    checks, flags = [], []
    case = found.planned.case
    with seeded(case.seed, case.id, "checks"), frozen(found.ready.victim.module):
        for name, row in _CHECKS.items():
            measured = row.measure(found)
            if measured is None:
                continue
            value = {"name": name, "measured": measured.value, "threshold": row.threshold}
            checks.append(Check(**value, checked=measured.checked))
            if measured.value > row.threshold:
                flags.append(Flag(**value, meaning=row.meaning))
    return tuple(checks), tuple(flags)
