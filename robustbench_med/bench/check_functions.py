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
from robustbench_med.bench.check_context import CheckContext, Measured
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


def probabilities(context: CheckContext) -> Measured:
    """Return 1 where the victim answers probabilities for logits."""
    return Measured(float(context.setup.probabilities))


def randomized(context: CheckContext) -> Measured | None:
    """Return the share of images answered differently when asked twice."""
    if context.setup.victim.draws > 1:  # asked for by the case, or the defense's own
        return None  # attacked and judged in expectation
    return Measured(context.setup.randomized, len(context.setup.batch))


def depends_on_batch(context: CheckContext) -> Measured | None:
    """Return the share of a few images answered otherwise alone than among others."""
    if context.setup.victim.draws > 1:
        return None
    return Measured(context.setup.depends_on_batch, min(len(context.setup.batch), ALONE))


def over_budget(context: CheckContext) -> Measured:
    """Return how many images left their budget."""
    return Measured(float(context.audit.over_budget), len(context.run.problem))


def nonfinite(context: CheckContext) -> Measured:
    """Return how many gradients had NaN or Inf."""
    return Measured(float(context.counter.nonfinite))


def zero(context: CheckContext) -> Measured:
    """Return the share of gradients that were 0 everywhere."""
    return Measured(context.counter.zero / max(context.counter.backward, 1))


def gradients_disagree(context: CheckContext) -> Measured | None:
    """Return the share of a few of the attack's gradients that finite differences contradict."""
    gradients = context.run.gradients
    if gradients is None:
        return None
    fraction = gradients.disagree / max(gradients.checked, 1)
    return Measured(fraction, gradients.checked, REMEDIES[gradients.remedy])


def answers_differ(context: CheckContext) -> Measured | None:
    """Return the share of a few of the attack's answers that differ without gradients."""
    gradients = context.run.gradients
    if gradients is None:
        return None
    return Measured(gradients.moved / gradients.asked, gradients.asked, REMEDIES[gradients.remedy])


def one_step(context: CheckContext) -> Measured | None:
    """Return how many missed images FGSM breaks."""
    # DeepFool's few steps go to one plane, not through a ball
    if context.card.schedule == "distance":
        return None
    return _probe(context, "fgsm", {}, each=3, fraction=1.0)


def margin(context: CheckContext) -> Measured | None:
    """Return how many missed images a PGD breaks that climbs the nearest finding alone."""
    if context.planned.data.card.task != "multi_label" or context.setup.victim.guard is not None:
        return None
    if context.card.schedule == "distance" or not context.iterative:
        return None
    summed = context.planned.case.parameters.get("loss") == "summed"
    if _has_steps_of_its_paper(context) and not summed:
        return None
    each = 2 * MARGIN_STEPS + 2
    return _probe(context, "pgd", {"steps": MARGIN_STEPS}, loss="margin", each=each, fraction=0.4)


def apgd(context: CheckContext) -> Measured | None:
    """Return how many missed images a short APGD breaks, where its steps are of the attack's norm.

    Attacks that choose their steps as APGD does are not asked, nor those whose paper fixes the
    steps so that they just reach the radius (BIM, MI-FGSM), nor those on masks, whose harm has
    degrees and whose losses differ more than their steps.
    """
    if _has_steps_of_its_paper(context):
        return None
    if context.graded or context.card.schedule == "distance" or "apgd" in context.card.function:
        return None
    if context.planned.case.attack.startswith("ensemble"):  # begins with APGD
        return None
    return _probe(context, "apgd", {"steps": APGD_STEPS}, each=2 * APGD_STEPS + 4, fraction=0.3)


def noise(context: CheckContext) -> Measured | None:
    """Return how many missed images noise breaks."""
    return _probe(context, "noise", {"draws": DRAWS}, each=DRAWS + 1, fraction=0.5)


def queries(context: CheckContext) -> Measured | None:
    """Return how many missed images Square breaks."""
    count = QUERIES // 2 if context.graded else QUERIES
    return _probe(context, "square", {"queries": count}, each=count + 2, fraction=0.2)


def _probe(
    context: CheckContext,
    name: str,
    parameters: dict[str, Any],
    *,
    each: int,
    fraction: float,
    loss: Literal["given", "margin"] = "given",
) -> Measured | None:
    """Return how many images that the attack missed a simpler one breaks; kept for each victim.

    Args:
        context: the run and its case.
        name: of the simpler attack.
        parameters: of it.
        each: passes an image costs it.
        fraction: of the passes left that it may cost.
        loss: what it climbs.
    """
    card: AttackCard = registry.find("attacks", name)
    case = context.planned.case
    same = case.attack == name and loss == "given"
    if not context.iterative or case.norm not in card.norms or same:
        return None
    rows, problem = (
        context.affordable(context.improvable(), each, fraction=fraction),
        context.problem,
    )
    radius = context.run.radii[context.headline]
    key = (name, loss, case.norm, radius, case.objective, tuple(case.channels.items()))
    known = context.setup.probes.setdefault(key, {})
    new = torch.tensor([r for r in rows.tolist() if r not in known], dtype=torch.int64)
    new = new.to(rows.device)
    if len(new):
        attacked = problem.select(new)
        attacked = replace(attacked, objective=LossOverride(attacked.objective, loss=loss))
        attack = sharded(registry.function("attacks", card), parameters)
        verdict = attacked.probe(attack(attacked, context.rng.select(new).fork("probe", name)))
        harm = verdict.harm.masked_fill(verdict.is_final, torch.inf)
        known |= dict(zip(new.tolist(), harm.tolist(), strict=True))
    harm = context.run.rungs["harm"].new_tensor([known[r] for r in rows.tolist()])
    return Measured(float((harm > context.to_beat(rows)).sum()), len(rows))


def shrinking(context: CheckContext) -> Measured | None:
    """Return how many images broken below the largest radius are not, attacked afresh there."""
    if not context.iterative or context.card.schedule == "distance" or len(context.run.radii) < 2:
        return None
    if context.setup.victim.draws > 1:  # near the boundary the victim's own noise decides
        return None
    rows = context.some(context.run.rungs["success"][:-1].any(0))
    rows = context.affordable(rows, context.per_image + 1, fraction=0.2)
    problem = context.problem.select(rows).at(context.run.radii[-1])
    z = context.run.attack(problem, context.rng.select(rows).fork("afresh"))
    return Measured(float((~problem.probe(z).success).sum()), len(rows))


def large_radius(context: CheckContext) -> Measured | None:
    """Return the share of a few images that are robust where almost any image lies in the ball."""
    if not context.iterative or context.card.fixed_step:
        return None
    if context.setup.suspicion is not None:  # the farther from a clean image, the more suspicious
        return None
    everyone = torch.ones(
        len(context.run.problem), dtype=torch.bool, device=context.run.distance.device
    )
    rows = context.some(everyone)
    if context.card.schedule == "distance":
        return _mean_of(torch.isinf(context.run.distance[rows]))
    rows = context.affordable(rows, context.per_image + 1, fraction=0.15)
    problem = context.problem.select(rows)
    away = (problem.x < 0.5).to(problem.x)  # the farthest corner of the box; half way is enough
    # the whole radius for every channel
    problem = replace(problem, ball=replace(problem.ball, channel_scales=None))
    norm = Ball(context.planned.case.norm, 0.0)
    problem = problem.at(norm.size(problem.x + (away - problem.x) * 0.75, problem.x))
    z = context.run.attack(problem, context.rng.select(rows).fork("large"))
    return _mean_of(~problem.probe(z).success) or Measured(0.0, 0)


def _mean_of(hit: Bool[Tensor, " rows"]) -> Measured | None:
    return Measured(float(hit.float().mean()), len(hit)) if len(hit) else None


def silent(context: CheckContext) -> Measured | None:
    """Return how many images the attack passed a success of and returned none."""
    # of a victim that answers at random, one lucky pass proves nothing
    if context.setup.randomized > 0 or context.watched is None:
        return None
    watch, verdict = context.watched
    kept_back = watch.ever & ~verdict.success
    if context.graded:
        kept_back = watch.worst > verdict.harm + 1e-4
    return Measured(float(kept_back.sum()), len(kept_back))


def rising(context: CheckContext) -> Measured | None:
    """Return how fast the loss rose in the last quarter, to its whole rise; not of masks.

    1 = as fast as on average: nothing has converged; 0 = not at all. Of several restarts or
    targets, the first: all take as many passes, since nobody leaves. Steps that together just
    reach the radius, as BIM's and MI-FGSM's do, rise until they arrive: only who did not counts.
    Of masks the loss rises without end, by pixels long wrong, and the harm by jumps: what more
    steps would cost them is asked by `more_effort`.
    """
    losses = _climbed(context)
    if losses is None or context.watched is None:
        return None
    rows = torch.ones_like(context.watched[0].arrived)
    if _just_reaches(context):
        rows = ~context.watched[0].arrived
    if not bool(rows.any()):
        return None
    best = losses.cummax(0).values[:, rows]
    last = len(best) - 1
    start = (3 * last) // 4
    total, late = (best[-1] - best[0]).sum(), (best[-1] - best[start]).sum()
    if float(total) <= 0:
        return None
    return Measured(float((late / (last - start)) / (total / last)), best.shape[1])


def _has_steps_of_its_paper(context: CheckContext) -> bool:
    """Whether the attack's paper fixes its steps so that they just reach the radius."""
    usual = float(context.card.parameters.get("total_step", torch.inf))
    return _just_reaches(context) and 0 < usual <= _JUST


def _just_reaches(context: CheckContext) -> bool:
    """Whether all steps of the attack together are about as long as the radius."""
    return 0 < float(context.planned.case.parameters.get("total_step", torch.inf)) <= _JUST


def gains_nothing(context: CheckContext) -> Measured | None:
    """Return how far a step moves the loss on average, over its rise from first to last pass.

    Of n steps that all climb alike it is 1/n; where gradients change from point to point, so that
    steps go up and down by chance, the loss does not rise by as much as one of them moves it.
    """
    losses = _climbed(context)
    if losses is None or context.setup.victim.guard is not None or context.setup.victim.draws > 1:
        return None
    moved = losses.diff(dim=0).abs().mean(0).sum()
    if float(moved) == 0:  # no gradient at all is another check's
        return None
    rise = (losses[-1] - losses[0]).sum().clamp_min(moved / _NEVER)
    return Measured(float(moved / rise), losses.shape[1])


def _climbed(context: CheckContext) -> Float[Tensor, "steps rows"] | None:
    """Return the loss at each step of the first run on the watched images; None of masks."""
    if context.watched is None or context.graded:
        return None
    parameters = context.planned.case.parameters
    runs = int(parameters.get("restarts", 1)) * int(parameters.get("targets", 1))
    passes = context.watched[0].climbed
    losses = passes[: max(len(passes) // runs, 1)]
    return None if len(losses) < 4 else torch.stack(losses)


def more_effort(context: CheckContext) -> Measured | None:
    """Return how many robust images break when every parameter of effort is doubled."""
    if not context.iterative or not context.card.effort:
        return None
    parameters = context.planned.case.parameters
    doubled = {**parameters, **{name: parameters[name] * 2 for name in context.card.effort}}
    each = int(2 * registry.passes(context.card, doubled)) + 2
    rows = context.affordable(context.improvable(), each, fraction=1.0)
    attack = sharded(registry.function("attacks", context.card), doubled)
    if uses_all_steps(context.card, context.setup):
        attack = with_all_steps(attack)
    problem = context.problem.select(rows)
    attacked = problem.at(torch.inf) if context.card.schedule == "distance" else problem
    try:
        z = attack(attacked, context.rng.select(rows).fork("effort"))
    except SpecError:  # twice as much is more than the parameter allows
        return None
    near = problem.ball.size(z, problem.x) <= context.run.radii[context.headline]
    verdict = problem.probe(z)
    more = verdict.harm > context.to_beat(rows) if context.graded else verdict.success
    return Measured(float((more & near).sum()), len(rows))


def below_control(context: CheckContext) -> Measured | None:
    """Return how many more images a random direction of equal norm breaks than the fitted one."""
    n = len(context.run.problem)
    if context.run.fitted is None or n == 0:
        return None
    rung = context.run.fitted.counts.rungs[context.headline]
    return Measured(round(n * (rung.control_success.value - rung.success.value)), n)


def rounding(context: CheckContext) -> Measured | None:
    """Return the share of the images broken at the headline radius that rounding repairs."""
    levels = 2**context.planned.data.card.bit_depth - 1
    broken = context.run.rungs["success"][context.headline]
    # less than a level is rounded off
    moved = context.run.rungs["linf"][context.headline] >= 1 / levels
    if not context.iterative or context.card.schedule == "distance":
        return None
    return _mean_of(~context.run.rungs["rounded"][context.headline][broken & moved])
