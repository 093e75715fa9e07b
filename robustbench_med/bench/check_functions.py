"""Check functions: each computes one number from a finished run, for one check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.attack_run import bound, uses_all_steps, with_all_steps
from robustbench_med.bench.batch_check import ALONE
from robustbench_med.bench.certificates import lowest_dice, mean_dice
from robustbench_med.bench.check_context import CheckContext, Measured
from robustbench_med.bench.verified_run import REMEDIES
from robustbench_med.cards import AttackCard
from robustbench_med.defense import CertifiedMasks
from robustbench_med.errors import SpecError
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.shift import MOVED, images_of
from robustbench_med.types import Rows

QUERIES = 100  # queries of the black-box probe
LABEL_QUERIES = 300  # queries of the probe by labels
_BY_LABELS = {"linf": "rays", "l2": "cgba"}
MARGIN_STEPS = 10
APGD_STEPS = 20
DRAWS = 10  # random perturbations of the noise probe
_ROUNDING = 1e-9  # of a mean over regions
_NEVER = 100.0  # the value if the loss does not rise at all
_JUST = 1.25  # BIM's steps add up to so many radii; MI-FGSM's add up to 1


def probabilities(context: CheckContext) -> Measured:
    """Return 1 if the victim returns probabilities instead of logits, otherwise 0."""
    return Measured(float(context.setup.probabilities))


def randomized(context: CheckContext) -> Measured | None:
    """Return the share of images whose output changes between two identical forward passes."""
    # the case or the defense averages several draws: randomness is expected
    if context.setup.victim.draws > 1:
        return None
    return Measured(context.setup.randomized, len(context.setup.batch))


def depends_on_batch(context: CheckContext) -> Measured | None:
    """Return the share of a few images whose output depends on the other images in the batch."""
    if context.setup.victim.draws > 1:
        return None
    return Measured(context.setup.depends_on_batch, min(len(context.setup.batch), ALONE))


def over_budget(context: CheckContext) -> Measured:
    """Return how many adversarial images exceed the radius or leave [0,1]."""
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
    """Return on how many of the missed images FGSM succeeds."""
    # DeepFool steps towards one decision plane instead of searching a ball
    if context.card.schedule == "distance":
        return None
    return _probe(context, "fgsm", {}, each=3, fraction=1.0)


def margin(context: CheckContext) -> Measured | None:
    """Return on how many of the missed images PGD with the margin loss succeeds.

    The margin loss follows only the finding that is nearest to its threshold.
    """
    if context.planned.data.card.task != "multi_label" or context.setup.victim.guard is not None:
        return None
    if context.card.schedule == "distance" or not context.iterative:
        return None
    # its targeted APGD follows one finding after another, the nearest first
    if context.planned.case.attack == "ensemble":
        return None
    summed = context.planned.case.parameters.get("loss") == "summed"
    if _has_steps_of_its_paper(context) and not summed:
        return None
    each = 2 * MARGIN_STEPS + 2
    return _probe(context, "pgd", {"steps": MARGIN_STEPS}, loss="margin", each=each, fraction=0.4)


def apgd(context: CheckContext) -> Measured | None:
    """Return on how many of the missed images a short APGD in the attack's norm succeeds.

    The check leaves out three kinds of attack: those that choose their step size as APGD does;
    those whose paper fixes the steps so that they just reach the radius (BIM, MI-FGSM); and attacks
    on masks, because there harm has degrees and the losses differ more than the step sizes.
    """
    if _has_steps_of_its_paper(context):
        return None
    if context.graded or context.card.schedule == "distance" or "apgd" in context.card.function:
        return None
    if context.planned.case.attack.startswith("ensemble"):  # its first attack is APGD
        return None
    return _probe(context, "apgd", {"steps": APGD_STEPS}, each=2 * APGD_STEPS + 4, fraction=0.3)


def noise(context: CheckContext) -> Measured | None:
    """Return on how many of the missed images random noise succeeds."""
    return _probe(context, "noise", {"draws": DRAWS}, each=DRAWS + 1, fraction=0.5)


def queries(context: CheckContext) -> Measured | None:
    """Return on how many of the missed images Square succeeds."""
    count = QUERIES // 2 if context.graded else QUERIES
    return _probe(context, "square", {"queries": count}, each=count + 2, fraction=0.2)


def labels(context: CheckContext) -> Measured | None:
    """Return on how many of the missed images an attack by labels succeeds.

    It is run only where the gradients look suspicious, and then on all the images that a check
    attacks, whatever the attack cost: what masks gradients may mask scores too, but not decisions.
    """
    name = _BY_LABELS.get(context.planned.case.norm)
    if name is None or not context.iterative:
        return None
    rows = context.improvable()
    queries = LABEL_QUERIES // 3 if context.graded else LABEL_QUERIES
    attack = bound(
        registry.function("attacks", registry.find("attacks", name)), {"queries": queries}
    )
    beaten = 0.0
    for part in context.of_one_size(rows):
        problem = context.problem.select(part)
        verdict = problem.probe(attack(problem, context.rng.select(part).fork("probe", name)))
        harm = verdict.harm.masked_fill(verdict.is_final, torch.inf)
        beaten += float((harm > context.to_beat(part)).sum())
    return Measured(beaten, len(rows))


def _probe(
    context: CheckContext,
    name: str,
    parameters: dict[str, Any],
    *,
    each: int,
    fraction: float,
    loss: Literal["given", "margin"] = "given",
) -> Measured | None:
    """Return on how many of the images that the attack missed a simpler attack succeeds.

    The results are cached, so that all cases on one victim share them.

    Args:
        context: the run and its case.
        name: name of the simpler attack.
        parameters: parameters of the simpler attack.
        each: passes that the simpler attack costs for one image.
        fraction: share of the remaining passes that the simpler attack may cost.
        loss: loss that the simpler attack maximises.
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
    for part in context.of_one_size(new) if len(new) else ():
        attacked = problem.select(part)
        attacked = replace(attacked, objective=LossOverride(attacked.objective, loss=loss))
        attack = bound(registry.function("attacks", card), parameters)
        z = attack(attacked, context.rng.select(part).fork("probe", name))
        verdict = attacked.probe(images_of(z))
        harm = verdict.harm.masked_fill(verdict.is_final, torch.inf)
        known |= dict(zip(part.tolist(), harm.tolist(), strict=True))
    harm = context.run.rungs["harm"].new_tensor([known[r] for r in rows.tolist()])
    return Measured(float((harm > context.to_beat(rows)).sum()), len(rows))


def shrinking(context: CheckContext) -> Measured | None:
    """Return how many images are robust at the largest radius though not at a smaller one.

    The attack is run anew at the largest radius, on images it succeeded on at a smaller radius.
    """
    if not context.iterative or context.card.schedule == "distance" or len(context.run.radii) < 2:
        return None
    # close to the boundary the randomness of the victim decides
    if context.setup.victim.draws > 1:
        return None
    rows = context.some(context.run.rungs["success"][:-1].any(0))
    rows = context.affordable(rows, context.per_image + 1, fraction=0.2)
    robust = 0.0
    for part in context.of_one_size(rows):
        problem = context.problem.select(part).at(context.run.radii[-1])
        z = images_of(context.run.attack(problem, context.rng.select(part).fork("afresh")))
        robust += float((~problem.probe(z).success).sum())
    return Measured(robust, len(rows))


def large_radius(context: CheckContext) -> Measured | None:
    """Return the share of a few images that stay robust in a ball of almost all images."""
    if not context.iterative or context.card.fixed_step:
        return None
    # a detector may reject an image only because it is far from a clean one
    if context.setup.suspicion is not None:
        return None
    everyone = torch.ones(
        len(context.run.problem), dtype=torch.bool, device=context.run.distance.device
    )
    rows = context.some(everyone)
    if context.card.schedule == "distance":
        return _mean_of(torch.isinf(context.run.distance[rows]))
    rows = context.affordable(rows, context.per_image + 1, fraction=0.15)
    robust = [_robust_far_away(context, part) for part in context.of_one_size(rows)]
    return _mean_of(torch.cat(robust)) or Measured(0.0, 0)


def _robust_far_away(context: CheckContext, rows: Rows) -> Bool[Tensor, " rows"]:
    """Return which images of one size stay robust in a ball of almost all images."""
    problem = context.problem.select(rows)
    # the corner of [0,1] that is farthest from the image: three quarters of the way are enough
    away = (problem.x < 0.5).to(problem.x)
    # every channel may change by the whole radius
    problem = replace(problem, ball=replace(problem.ball, channel_scales=None))
    norm = Ball(context.planned.case.norm, 0.0)
    problem = problem.at(norm.size(problem.x + (away - problem.x) * 0.75, problem.x))
    z = images_of(context.run.attack(problem, context.rng.select(rows).fork("large")))
    return ~problem.probe(z).success


def _mean_of(hit: Bool[Tensor, " rows"]) -> Measured | None:
    return Measured(float(hit.float().mean()), len(hit)) if len(hit) else None


def silent(context: CheckContext) -> Measured | None:
    """Return on how many images the attack met a success but returned another image."""
    # if the victim is random, a single success in one pass proves nothing
    if context.setup.randomized > 0 or context.watched is None:
        return None
    watch, verdict = context.watched
    kept_back = watch.ever & ~verdict.success
    if context.graded:
        kept_back = watch.worst > verdict.harm + 1e-4
    return Measured(float(kept_back.sum()), len(kept_back))


def rising(context: CheckContext) -> Measured | None:
    """Return the speed at which the loss rose in the last quarter of the steps, over the average.

    1 means as fast as on average: the attack has not converged. 0 means no rise at all. If there
    are several restarts or targets, the first is measured; all take equally many passes because no
    image leaves the batch. If all steps together just reach the radius, as in BIM and MI-FGSM, the
    loss rises until the image arrives there, so only images that have not arrived count. Masks
    are not measured: their loss keeps rising through pixels that are wrong already, and their harm
    rises in jumps. The check `more_effort` measures what more steps would gain on them.
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
    """Return the average change of the loss per step, divided by its rise over all steps.

    If n steps all raise the loss equally, the value is 1/n. If the gradients change from point to
    point, steps go up and down by chance, and the whole rise is smaller than the change of a single
    step.
    """
    losses = _climbed(context)
    if losses is None or context.setup.victim.guard is not None or context.setup.victim.draws > 1:
        return None
    moved = losses.diff(dim=0).abs().mean(0).sum()
    if float(moved) == 0:  # `zero_gradients` checks for gradients of 0
        return None
    rise = (losses[-1] - losses[0]).sum().clamp_min(moved / _NEVER)
    return Measured(float(moved / rise), losses.shape[1])


def _climbed(context: CheckContext) -> Float[Tensor, "steps rows"] | None:
    """Return the loss at each step of the first run on the watched images; None for masks."""
    if context.watched is None or context.graded:
        return None
    parameters = context.planned.case.parameters
    runs = int(parameters.get("restarts", 1)) * int(parameters.get("targets", 1))
    passes = context.watched[0].climbed
    losses = passes[: max(len(passes) // runs, 1)]
    return None if len(losses) < 4 else torch.stack(losses)


def more_effort(context: CheckContext) -> Measured | None:
    """Return on how many robust images the attack succeeds if every effort parameter is doubled."""
    if not context.iterative or not context.card.effort:
        return None
    parameters = context.planned.case.parameters
    doubled = {**parameters, **{name: parameters[name] * 2 for name in context.card.effort}}
    each = int(2 * registry.passes(context.card, doubled)) + 2
    rows = context.affordable(context.improvable(), each, fraction=1.0)
    attack = bound(registry.function("attacks", context.card), doubled)
    if uses_all_steps(context.card, context.setup):
        attack = with_all_steps(attack)
    count = 0.0
    for part in context.of_one_size(rows):
        problem = context.problem.select(part)
        attacked = problem.at(torch.inf) if context.card.schedule == "distance" else problem
        try:
            z = images_of(attack(attacked, context.rng.select(part).fork("effort")))
        except SpecError:  # the parameter does not allow twice its value
            return None
        near = problem.ball.size(z, problem.x) <= context.run.radii[context.headline]
        verdict = problem.probe(z)
        more = verdict.harm > context.to_beat(part) if context.graded else verdict.success
        count += float((more & near).sum())
    return Measured(count, len(rows))


def below_control(context: CheckContext) -> Measured | None:
    """Return the successes of a random direction minus those of the fitted one of equal norm."""
    n = len(context.run.problem)
    if context.run.fitted is None or n == 0:
        return None
    rung = context.run.fitted.counts.rungs[context.headline]
    return Measured(round(n * (rung.control_success.value - rung.success.value)), n)


def certificate_above(context: CheckContext) -> Measured | None:
    """Return on how many images the Dice falls below the certified one within the radius.

    Clean images count too, and so does every image that an attack left within the certified L2
    radius, at any rung and in any norm.
    """
    setup, rungs = context.setup, context.run.rungs
    # masks that move along with the anatomy are not those that were certified
    if not isinstance(setup.certified, CertifiedMasks) or MOVED in rungs:
        return None
    proved = lowest_dice(setup).mean(1) - _ROUNDING
    below = mean_dice(setup, setup.clean) < proved
    attacked = context.run.attacked.nonzero()[:, 0]
    rows = attacked.cpu().numpy()
    for answer, l2 in zip(rungs["answer"], rungs["l2"], strict=True):
        near = (l2 <= setup.certified.radius).cpu().numpy()
        below[rows] |= near & (mean_dice(setup, answer, attacked) < proved[rows])
    return Measured(float(below.sum()), len(setup.batch))


def rounding(context: CheckContext) -> Measured | None:
    """Return the share of the successes at the headline radius that rounding undoes."""
    levels = context.planned.data.card.levels
    broken = context.run.rungs["success"][context.headline]
    # a change of less than one grey level disappears in rounding
    moved = context.run.rungs["linf"][context.headline] >= 1 / levels
    if not context.iterative or context.card.schedule == "distance":
        return None
    return _mean_of(~context.run.rungs["rounded"][context.headline][broken & moved])
