"""Measures: one function a check, from the evidence of a run to a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.attack_run import sharded, uses_all_steps, with_all_steps
from robustbench_med.bench.batch_check import ALONE
from robustbench_med.bench.check_context import Evidence, Measured
from robustbench_med.bench.verified_run import REMEDIES
from robustbench_med.cards import AttackCard
from robustbench_med.errors import SpecError
from robustbench_med.objectives.loss_override import LossOverride

QUERIES = 100  # of the black-box probe
MARGIN_STEPS = 10
APGD_STEPS = 20
DRAWS = 10  # of the noise probe
_NEVER = 100.0  # written where the loss does not rise at all
_JUST = 1.25  # radii that BIM's steps add up to; MI-FGSM's are 1


def probabilities(found: Evidence) -> Measured:
    """Return 1 where the victim answers probabilities for logits."""
    return Measured(float(found.setup.probabilities))


def randomized(found: Evidence) -> Measured | None:
    """Return the share of images answered differently when asked twice."""
    if found.setup.victim.draws > 1:  # asked for by the case, or the defense's own
        return None  # attacked and judged in expectation
    return Measured(found.setup.randomized, len(found.setup.batch))


def depends_on_batch(found: Evidence) -> Measured | None:
    """Return the share of a few images answered otherwise alone than among others."""
    if found.setup.victim.draws > 1:
        return None
    return Measured(found.setup.depends_on_batch, min(len(found.setup.batch), ALONE))


def over_budget(found: Evidence) -> Measured:
    """Return how many images left their budget."""
    return Measured(float(found.audit.over_budget), len(found.run.problem))


def nonfinite(found: Evidence) -> Measured:
    """Return how many gradients had NaN or Inf."""
    return Measured(float(found.counter.nonfinite))


def zero(found: Evidence) -> Measured:
    """Return the share of gradients that were 0 everywhere."""
    return Measured(found.counter.zero / max(found.counter.backward, 1))


def gradients_disagree(found: Evidence) -> Measured | None:
    """Return the share of a few of the attack's gradients that finite differences contradict."""
    gradients = found.run.gradients
    if gradients is None:
        return None
    share = gradients.disagree / max(gradients.checked, 1)
    return Measured(share, gradients.checked, REMEDIES[gradients.remedy])


def answers_differ(found: Evidence) -> Measured | None:
    """Return the share of a few of the attack's answers that differ without gradients."""
    gradients = found.run.gradients
    if gradients is None:
        return None
    return Measured(gradients.moved / gradients.asked, gradients.asked, REMEDIES[gradients.remedy])


def one_step(found: Evidence) -> Measured | None:
    """Return how many missed images FGSM breaks."""
    # DeepFool's few steps go to one plane, not through a ball
    if found.card.schedule == "distance":
        return None
    return _probe(found, "fgsm", {}, each=3, share=1.0)


def margin(found: Evidence) -> Measured | None:
    """Return how many missed images a PGD breaks that climbs the nearest finding alone."""
    if found.planned.data.card.task != "multi_label" or found.setup.victim.guard is not None:
        return None
    if found.card.schedule == "distance" or not found.iterative:
        return None
    summed = found.planned.case.parameters.get("loss") == "summed"
    if _has_steps_of_its_paper(found) and not summed:
        return None
    each = 2 * MARGIN_STEPS + 2
    return _probe(found, "pgd", {"steps": MARGIN_STEPS}, loss="margin", each=each, share=0.4)


def apgd(found: Evidence) -> Measured | None:
    """Return how many missed images a short APGD breaks, where its steps are of the attack's norm.

    Attacks that choose their steps as APGD does are not asked, nor those whose paper fixes the
    steps so that they just reach the radius (BIM, MI-FGSM), nor those on masks, whose harm has
    degrees and whose losses differ more than their steps.
    """
    if _has_steps_of_its_paper(found):
        return None
    if found.graded or found.card.schedule == "distance" or "apgd" in found.card.function:
        return None
    if found.planned.case.attack.startswith("ensemble"):  # begins with APGD
        return None
    return _probe(found, "apgd", {"steps": APGD_STEPS}, each=2 * APGD_STEPS + 4, share=0.3)


def noise(found: Evidence) -> Measured | None:
    """Return how many missed images noise breaks."""
    return _probe(found, "noise", {"draws": DRAWS}, each=DRAWS + 1, share=0.5)


def queries(found: Evidence) -> Measured | None:
    """Return how many missed images Square breaks."""
    count = QUERIES // 2 if found.graded else QUERIES
    return _probe(found, "square", {"queries": count}, each=count + 2, share=0.2)


def _probe(
    found: Evidence,
    name: str,
    parameters: dict[str, Any],
    *,
    each: int,
    share: float,
    loss: Literal["given", "margin"] = "given",
) -> Measured | None:
    """Return how many images that the attack missed a simpler one breaks; kept for each victim.

    Args:
        found: the run.
        name: of the simpler attack.
        parameters: of it.
        each: passes an image costs it.
        share: of the passes left that it may cost.
        loss: what it climbs.
    """
    card: AttackCard = registry.find("attacks", name)
    case = found.planned.case
    same = case.attack == name and loss == "given"
    if not found.iterative or case.norm not in card.norms or same:
        return None
    rows, problem = found.affordable(found.improvable(), each, share=share), found.problem
    radius = found.run.radii[found.headline]
    place = (name, loss, case.norm, radius, case.objective, tuple(case.channels.items()))
    known = found.setup.probes.setdefault(place, {})
    new = torch.tensor([r for r in rows.tolist() if r not in known], dtype=torch.int64)
    new = new.to(rows.device)
    if len(new):
        here = problem.select(new)
        here = replace(here, objective=LossOverride(here.objective, loss=loss))
        attack = sharded(registry.function("attacks", card), parameters)
        verdict = here.probe(attack(here, found.rng.select(new).fork("probe", name)))
        harm = verdict.harm.masked_fill(verdict.is_final, torch.inf)
        known |= dict(zip(new.tolist(), harm.tolist(), strict=True))
    harm = found.run.rungs["harm"].new_tensor([known[r] for r in rows.tolist()])
    return Measured(float((harm > found.to_beat(rows)).sum()), len(rows))


def shrinking(found: Evidence) -> Measured | None:
    """Return how many images broken below the largest radius are not, attacked afresh there."""
    if not found.iterative or found.card.schedule == "distance" or len(found.run.radii) < 2:
        return None
    if found.setup.victim.draws > 1:  # near the boundary the victim's own noise decides
        return None
    rows = found.some(found.run.rungs["success"][:-1].any(0))
    rows = found.affordable(rows, found.per_image + 1, share=0.2)
    here = found.problem.select(rows).at(found.run.radii[-1])
    z = found.run.attack(here, found.rng.select(rows).fork("afresh"))
    return Measured(float((~here.probe(z).success).sum()), len(rows))


def large_radius(found: Evidence) -> Measured | None:
    """Return the share of a few images that stand where almost any image lies in the ball."""
    if not found.iterative or found.card.fixed_step:
        return None
    if found.setup.suspicion is not None:  # the farther from a clean image, the more suspicious
        return None
    everyone = torch.ones(
        len(found.run.problem), dtype=torch.bool, device=found.run.distance.device
    )
    rows = found.some(everyone)
    if found.card.schedule == "distance":
        return _share(torch.isinf(found.run.distance[rows]))
    rows = found.affordable(rows, found.per_image + 1, share=0.15)
    here = found.problem.select(rows)
    away = (here.x < 0.5).to(here.x)  # the farthest corner of the box; half way is enough
    # the whole radius for every channel
    here = replace(here, ball=replace(here.ball, channel_scales=None))
    here = here.at(Ball(found.planned.case.norm, 0.0).size(here.x + (away - here.x) * 0.75, here.x))
    z = found.run.attack(here, found.rng.select(rows).fork("large"))
    return _share(~here.probe(z).success) or Measured(0.0, 0)


def _share(hit: Bool[Tensor, " rows"]) -> Measured | None:
    return Measured(float(hit.float().mean()), len(hit)) if len(hit) else None


def silent(found: Evidence) -> Measured | None:
    """Return how many images the attack passed a success of and returned none."""
    # of a victim that answers at random, one lucky pass proves nothing
    if found.setup.randomized > 0 or found.watched is None:
        return None
    watch, verdict = found.watched
    kept_back = watch.ever & ~verdict.success
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
    losses = _climbed(found)
    if losses is None or found.watched is None:
        return None
    rows = torch.ones_like(found.watched[0].arrived)
    if _just_reaches(found):
        rows = ~found.watched[0].arrived
    if not bool(rows.any()):
        return None
    best = losses.cummax(0).values[:, rows]
    last = len(best) - 1
    start = (3 * last) // 4
    total, late = (best[-1] - best[0]).sum(), (best[-1] - best[start]).sum()
    if float(total) <= 0:
        return None
    return Measured(float((late / (last - start)) / (total / last)), best.shape[1])


def _has_steps_of_its_paper(found: Evidence) -> bool:
    """Whether the attack's paper fixes its steps so that they just reach the radius."""
    usual = float(found.card.parameters.get("total_step", torch.inf))
    return _just_reaches(found) and 0 < usual <= _JUST


def _just_reaches(found: Evidence) -> bool:
    """Whether all steps of the attack together are about as long as the radius."""
    return 0 < float(found.planned.case.parameters.get("total_step", torch.inf)) <= _JUST


def gains_nothing(found: Evidence) -> Measured | None:
    """Return how far a step moves the loss on average, over its rise from first to last pass.

    Of n steps that all climb alike it is 1/n; where gradients change from point to point, so that
    steps go up and down by chance, the loss does not rise by as much as one of them moves it.
    """
    losses = _climbed(found)
    if losses is None or found.setup.victim.guard is not None or found.setup.victim.draws > 1:
        return None
    moved = losses.diff(dim=0).abs().mean(0).sum()
    if float(moved) == 0:  # no gradient at all is another check's
        return None
    rise = (losses[-1] - losses[0]).sum().clamp_min(moved / _NEVER)
    return Measured(float(moved / rise), losses.shape[1])


def _climbed(found: Evidence) -> Float[Tensor, "steps rows"] | None:
    """Return the loss at each step of the first run on the watched images; None of masks."""
    if found.watched is None or found.graded:
        return None
    given = found.planned.case.parameters
    runs = int(given.get("restarts", 1)) * int(given.get("targets", 1))
    seen = found.watched[0].climbed
    losses = seen[: max(len(seen) // runs, 1)]
    return None if len(losses) < 4 else torch.stack(losses)


def more_effort(found: Evidence) -> Measured | None:
    """Return how many images that stand break when every parameter of effort is doubled."""
    if not found.iterative or not found.card.effort:
        return None
    given = found.planned.case.parameters
    doubled = {**given, **{name: given[name] * 2 for name in found.card.effort}}
    each = int(2 * registry.passes(found.card, doubled)) + 2
    rows = found.affordable(found.improvable(), each, share=1.0)
    attack = sharded(registry.function("attacks", found.card), doubled)
    if uses_all_steps(found.card, found.setup):
        attack = with_all_steps(attack)
    here = found.problem.select(rows)
    posed = here.at(torch.inf) if found.card.schedule == "distance" else here
    try:
        z = attack(posed, found.rng.select(rows).fork("effort"))
    except SpecError:  # twice as much is more than the parameter allows
        return None
    near = here.ball.size(z, here.x) <= found.run.radii[found.headline]
    verdict = here.probe(z)
    more = verdict.harm > found.to_beat(rows) if found.graded else verdict.success
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
    broken = found.run.rungs["success"][found.headline]
    # less than a level is rounded off
    moved = found.run.rungs["linf"][found.headline] >= 1 / levels
    if not found.iterative or found.card.schedule == "distance":
        return None
    return _share(~found.run.rungs["rounded"][found.headline][broken & moved])
