"""Measures: one function a check, from the evidence of a run to a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.evidence import Evidence, Measured
from robustbench_med.bench.walk import climbs_on, relentless, sharded
from robustbench_med.cards import AttackCard
from robustbench_med.errors import SpecError

QUERIES = 100  # of the black-box probe
DRAWS = 10  # of the noise probe
_JUST = 1.25  # radii that BIM's steps add up to; MI-FGSM's are 1


def probabilities(found: Evidence) -> Measured:
    """Return 1 where the victim answers probabilities for logits."""
    return Measured(float(found.ready.probabilities))


def randomized(found: Evidence) -> Measured | None:
    """Return the share of images answered differently when asked twice."""
    if found.ready.victim.draws > 1:  # asked for by the case, or the defense's own
        return None  # attacked and judged in expectation
    return Measured(found.ready.randomized, len(found.ready.batch))


def over_budget(found: Evidence) -> Measured:
    """Return how many images left their budget."""
    return Measured(float(found.audit.over_budget), len(found.run.problem))


def nonfinite(found: Evidence) -> Measured:
    """Return how many gradients had NaN or Inf."""
    return Measured(float(found.counter.nonfinite))


def zero(found: Evidence) -> Measured:
    """Return the share of gradients that were 0 everywhere."""
    return Measured(found.counter.zero / max(found.counter.backward, 1))


def one_step(found: Evidence) -> Measured | None:
    """Return how many missed images FGSM breaks."""
    if found.card.rungs == "distance":  # DeepFool's few steps go to one plane, not through a ball
        return None
    return _probe(found, "fgsm", {})


def noise(found: Evidence) -> Measured | None:
    """Return how many missed images noise breaks."""
    return _probe(found, "noise", {"draws": DRAWS})


def queries(found: Evidence) -> Measured | None:
    """Return how many missed images Square breaks."""
    return _probe(found, "square", {"queries": QUERIES // 2 if found.graded else QUERIES})


def _probe(found: Evidence, name: str, parameters: dict[str, Any]) -> Measured | None:
    """Return how many images that the attack missed a simpler one breaks; kept for each victim."""
    card: AttackCard = registry.find("attacks", name)
    case = found.planned.case
    if not found.iterative or case.norm not in card.norms or case.attack == name:
        return None
    rows, problem = found.improvable(), found.problem
    radius = found.run.radii[found.headline]
    place = (name, case.norm, radius, case.objective, tuple(case.channels.items()))
    known = found.ready.probes.setdefault(place, {})
    new = torch.tensor([r for r in rows.tolist() if r not in known], dtype=torch.int64)
    new = new.to(rows.device)
    if len(new):
        here, attack = problem.take(new), sharded(registry.function("attacks", card), parameters)
        verdict = here.probe(attack(here, found.rng.take(new).fork("probe", name)))
        harm = verdict.harm.masked_fill(verdict.done, torch.inf)
        known |= dict(zip(new.tolist(), harm.tolist(), strict=True))
    harm = found.run.rungs["harm"].new_tensor([known[r] for r in rows.tolist()])
    return Measured(float((harm > found.to_beat(rows)).sum()), len(rows))


def shrinking(found: Evidence) -> Measured | None:
    """Return how many images broken below the largest radius are not, attacked afresh there."""
    if not found.iterative or found.card.rungs == "distance" or len(found.run.radii) < 2:
        return None
    if found.ready.victim.draws > 1:  # near the boundary the victim's own noise decides
        return None
    rows = found.some(found.run.rungs["broken"][:-1].any(0))
    here = found.problem.take(rows).at(found.run.radii[-1])
    z = found.run.attack(here, found.rng.take(rows).fork("afresh"))
    return Measured(float((~here.probe(z).broken).sum()), len(rows))


def large_radius(found: Evidence) -> Measured | None:
    """Return the share of a few images that stand where almost any image lies in the ball."""
    if not found.iterative or found.card.fixed_step:
        return None
    if found.ready.suspicion is not None:  # the farther from a clean image, the more suspicious
        return None
    everyone = torch.ones(
        len(found.run.problem), dtype=torch.bool, device=found.run.distance.device
    )
    rows = found.some(everyone)
    if found.card.rungs == "distance":
        return _share(torch.isinf(found.run.distance[rows]))
    here = found.problem.take(rows)
    away = (here.x < 0.5).to(here.x)  # the farthest corner of the box; half way is enough
    here = replace(here, ball=replace(here.ball, shares=None))  # whole radius for every channel
    here = here.at(Ball(found.planned.case.norm, 0.0).size(here.x + (away - here.x) * 0.75, here.x))
    z = found.run.attack(here, found.rng.take(rows).fork("large"))
    return _share(~here.probe(z).broken)


def _share(hit: Bool[Tensor, " rows"]) -> Measured | None:
    return Measured(float(hit.float().mean()), len(hit)) if len(hit) else None


def silent(found: Evidence) -> Measured | None:
    """Return how many images the attack passed a success of and returned none."""
    # of a victim that answers at random, one lucky pass proves nothing
    if found.ready.randomized > 0 or found.watched is None:
        return None
    watch, verdict = found.watched
    kept_back = watch.ever & ~verdict.broken
    if found.graded:
        kept_back = watch.worst > verdict.harm + 1e-4
    return Measured(float(kept_back.sum()), len(kept_back))


def rising(found: Evidence) -> Measured | None:
    """Return how fast the loss rose in the last quarter, to its whole rise; not of masks.

    1 = as fast as on average: nothing has converged; 0 = not at all. Of several restarts or
    targets, the first: all take as many passes, since nobody leaves. Steps that together just
    reach the radius, as BIM's and MI-FGSM's do, rise until they arrive: only who did not counts.
    Of masks the loss rises without end, by pixels long wrong, and the harm by jumps: what more
    steps would cost them is asked by `more_effort`.
    """
    if found.watched is None or found.graded:
        return None
    given = found.planned.case.parameters
    rows = torch.ones_like(found.watched[0].arrived)
    if 0 < given.get("reach", torch.inf) <= _JUST:
        rows = ~found.watched[0].arrived
    if not bool(rows.any()):
        return None
    runs = int(given.get("restarts", 1)) * int(given.get("targets", 1))
    seen = found.watched[0].climbed
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


def more_effort(found: Evidence) -> Measured | None:
    """Return how many images that stand break when every parameter of effort is doubled."""
    if not found.iterative or not found.card.effort:
        return None
    rows = found.improvable()
    given = found.planned.case.parameters
    doubled = {**given, **{name: given[name] * 2 for name in found.card.effort}}
    attack = sharded(registry.function("attacks", found.card), doubled)
    if climbs_on(found.card, found.ready):
        attack = relentless(attack)
    here = found.problem.take(rows)
    posed = here.at(torch.inf) if found.card.rungs == "distance" else here
    try:
        z = attack(posed, found.rng.take(rows).fork("effort"))
    except SpecError:  # twice as much is more than the parameter allows
        return None
    near = here.ball.size(z, here.x) <= found.run.radii[found.headline]
    verdict = here.probe(z)
    more = verdict.harm > found.to_beat(rows) if found.graded else verdict.broken
    return Measured(float((more & near).sum()), len(rows))


def below_control(found: Evidence) -> Measured | None:
    """Return how many more images a random direction of equal norm breaks than the fitted one."""
    n = len(found.run.problem)
    if found.run.fitted is None or n == 0:
        return None
    rung = found.run.fitted.counts.rungs[found.headline]
    return Measured(round(n * (rung.control_success.value - rung.success.value)), n)


def rounding(found: Evidence) -> Measured | None:
    """Return the share of the images broken at the headline radius that rounding repairs."""
    levels = 2**found.planned.data.card.bit_depth - 1
    broken = found.run.rungs["broken"][found.headline]
    moved = (
        found.run.rungs["linf"][found.headline] >= 1 / levels
    )  # less than a level is rounded off
    if not found.iterative or found.card.rungs == "distance":
        return None
    return _share(~found.run.rungs["rounded"][found.headline][broken & moved])
