"""Losses on the pixels of a mask, by name, and the choice of the loss that an attack maximises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.objectives.evade_detector import EvadeDetector, EvasionLoss
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding
from robustbench_med.objectives.nearest import nearest
from robustbench_med.objectives.segmentation import Masks, Pixels
from robustbench_med.types import Output, PerSample, Rows, Verdict

if TYPE_CHECKING:
    from robustbench_med.objective import Objective
    from robustbench_med.problem import Problem

PixelLoss = Callable[..., PerSample]  # takes Pixels, and the state where there is one


def masked(pixels: Pixels) -> PerSample:
    """Return the cross-entropy of the pixels that have not reached the goal.

    Source: L_MCE of Croce, Singh, Hein, ECCV 2024, section 3.4: pixels that are wrong already have
        no gradient. Deviation: if an image has no other pixels, all of them have one, see
        `Pixels.active`.
    """
    return pixels.gain(pixels.cross_entropy * pixels.active)


def balanced(pixels: Pixels) -> PerSample:
    """Return the masked cross-entropy in which every class of the reference has the same weight.

    The weight of a class is the inverse of its number of pixels, so that a small lesion counts as
    much as the background.

    Source: L_MCE-Bal of Croce, Singh, Hein, ECCV 2024, section 3.4. Deviation: the pixels of a
        class are counted in the image, not in the training images, because the Dice is per image
        too; if every pixel of an image is wrong, all of them have a gradient, see `Pixels.active`.
    """
    k = pixels.logits.shape[1]
    is_class = pixels.reference[:, None] == torch.arange(k, device=pixels.reference.device)[:, None]
    count = (is_class & pixels.counted[:, None]).sum(2)
    weight = pixels.counted.sum(1, keepdim=True) / ((count > 0).sum(1, keepdim=True) * count)
    weight = weight.masked_fill(count == 0, 0.0).to(pixels.logits.dtype)
    return pixels.gain(pixels.cross_entropy * pixels.active * weight.gather(1, pixels.reference))


def soft_dice(pixels: Pixels) -> PerSample:
    """Return 1 minus the mean Dice of the probabilities over regions; for a target, the Dice.

    Source: Milletari, Navab, Ahmadi, 3DV 2016, section 3, with the sums of the probabilities
    themselves in the denominator. One pixel is added on both sides, so that an empty region is
    defined.
    """
    counted = pixels.counted[:, None].to(pixels.logits.dtype)
    member = pixels.regions.to(pixels.logits.dtype)
    predicted = torch.einsum("rk,bkp->brp", member, pixels.logits.softmax(1)) * counted
    truth = member[:, pixels.reference].movedim(0, 1) * counted
    sizes = predicted.sum(2) + truth.sum(2)
    dice = ((2 * (predicted * truth).sum(2) + 1) / (sizes + 1)).mean(1)
    return 1 - dice if pixels.away else dice


def jensen_shannon(pixels: Pixels) -> PerSample:
    """Return the Jensen-Shannon divergence of the probabilities from the reference, in nats.

    Source: L_JS of Croce, Singh, Hein, ECCV 2024, section 3.4. Of a one-hot reference only the
        probability of its class matters; the divergence is at most log 2 and its slope falls to 0
        with that probability, so that pixels that are far on the wrong side lose their gradient.
    """
    p = (-pixels.cross_entropy).exp()
    half = (1 + p) / 2
    divergence = -half.log() + p * (p.clamp_min(1e-30) / half).log() + (1 - p) * math.log(2)
    return pixels.gain(divergence / 2)


LOSSES: dict[str, PixelLoss] = {
    "cross_entropy": lambda pixels: pixels.gain(pixels.cross_entropy),
    "masked": masked,
    "balanced": balanced,
    "dice": soft_dice,
    "jensen_shannon": jensen_shannon,
}

_MARGINS: dict[str, Literal["margin", "dlr"]] = {"margin": "margin", "dlr": "dlr"}


@dataclass(frozen=True)
class PixelLossOverride:
    """An objective on masks with another loss; its harm and success stay the same.

    Attributes:
        base: the objective.
        loss: the loss that an attack maximises.
        use_all_steps: no verdict is final, so that the attack uses all its steps, as transfers do.
        state: tensors `(b, ...)` that are passed to the loss after the pixels, one row per image.
    """

    base: Masks
    loss: PixelLoss
    use_all_steps: bool = False
    state: tuple[Tensor, ...] = ()

    def __call__(self, output: Output, y: Int[Tensor, "b *s"]) -> Verdict:
        """Return the verdict with the loss replaced."""
        pixels = self.base.pixels(output, y)
        verdict = self.base.verdict(pixels, self.loss(pixels, *self.state))
        return verdict._replace(is_final=verdict.is_final & (not self.use_all_steps))

    def margins(self, output: Output, y: Int[Tensor, "b *s"]) -> Float[Tensor, "b m"]:
        """Raise SpecError: masks have no margins."""
        return self.base.margins(output, y)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:
        """Raise SpecError: masks have no margins."""
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Int[Tensor, "b *s"]) -> Tensor:
        """Return which samples can be attacked."""
        return self.base.applies(y)

    def select(self, rows: Rows) -> PixelLossOverride:
        """Return the objective of some rows."""
        state = tuple(tensor[rows] for tensor in self.state)
        return replace(self, base=self.base.select(rows), state=state)

    def bind(self, y: Int[Tensor, "b *s"]) -> PixelLossOverride:
        """Return the objective bound to these truths."""
        return replace(self, base=self.base.bind(y))


def on_pixels(problem: Problem, loss: PixelLoss, *state: Tensor) -> Problem:
    """Return the problem with another loss on its pixels.

    Args:
        problem: a problem on masks.
        loss: the loss of the pixels, `(b,)`.
        state: further arguments of the loss, see PixelLossOverride.

    Raises:
        SpecError: the problem is not on masks.
    """
    objective, use_all_steps = _goal(problem)
    if not isinstance(objective, Masks):
        raise SpecError("expected masks, got images with labels: choose another attack or loss")
    return replace(problem, objective=PixelLossOverride(objective, loss, use_all_steps, state))


def with_loss(problem: Problem, loss: str) -> Problem:
    """Return the problem with the loss of that name.

    Args:
        problem: a problem of any task.
        loss: for labels and findings "cross_entropy" (the objective's own loss; for several
            findings that of the nearest one, see `objectives.nearest`), "margin" or "dlr" (see
            LossOverride); for findings also "summed" (the cross-entropies of all findings, whose
            gradient is spent on those out of reach too); for masks a name in LOSSES; against a
            detector "joint", "selective", "goal" or "suspicion" (see EvadeDetector).

    Raises:
        SpecError: the task has no such loss, or there is no detector to evade.
    """
    if loss == "cross_entropy":
        return _nearest_finding(problem)
    if loss == "summed":
        if not isinstance(_own_goal(problem), AnyFinding):
            raise SpecError("expected several findings per image for loss 'summed', got none")
        return problem
    for evasion in get_args(EvasionLoss):
        if loss == evasion:
            return _past_detector(_nearest_finding(problem), evasion)
    if loss in LOSSES:
        return on_pixels(problem, LOSSES[loss])
    if loss not in _MARGINS:
        known = ", ".join([*LOSSES, *_MARGINS, "summed", *get_args(EvasionLoss)])
        raise SpecError(f"expected loss in {known}, got {loss!r}")
    if isinstance(_goal(problem)[0], Masks):
        raise SpecError(f"expected loss in {', '.join(LOSSES)} for masks, got {loss!r}")
    return replace(problem, objective=LossOverride(problem.objective, _MARGINS[loss]))


def _nearest_finding(problem: Problem) -> Problem:
    """Return the problem with the loss of the nearest finding, where several may be changed."""
    findings = _own_goal(problem)
    if not (isinstance(findings, AnyFinding) and findings.several):
        return problem
    goal, use_all_steps = _goal(problem)
    posed: Objective = nearest(replace(problem, objective=findings)).objective
    if isinstance(goal, EvadeDetector):
        posed = replace(goal, base=posed)
    return replace(
        problem, objective=LossOverride(posed, use_all_steps=True) if use_all_steps else posed
    )


def phases(problem: Problem, steps: int) -> list[tuple[Problem, int]]:
    """Return the problems to attack one after another, each with its number of steps.

    This is one problem with all steps, unless its loss is that of the nearest of several findings:
    then a second problem takes the loss of all findings for half of the steps. On hardened victims,
    whose gradients turn on the way, each of the two succeeds on images on which the other fails.
    """
    goal, use_all_steps = _goal(problem)
    base = goal.base if isinstance(goal, EvadeDetector) else goal
    override = problem.objective if isinstance(problem.objective, LossOverride) else None
    if isinstance(base, LossOverride):  # within a detector, or with use_all_steps
        override = base
    if override is None or override.loss != "nearest" or steps < 2:
        return [(problem, steps)]
    second: Objective = override.base
    if isinstance(goal, EvadeDetector):
        second = replace(goal, base=second)
    if use_all_steps:
        second = LossOverride(second, use_all_steps=True)
    return [(problem, steps - steps // 2), (replace(problem, objective=second), steps // 2)]


def _own_goal(problem: Problem) -> Objective | None:
    """Return the goal without a detector; None if its loss is replaced already."""
    goal = _goal(problem)[0]
    if isinstance(problem.objective, LossOverride) and problem.objective.loss != "given":
        return None
    return goal.base if isinstance(goal, EvadeDetector) else goal


def _past_detector(problem: Problem, loss: EvasionLoss) -> Problem:
    objective, use_all_steps = _goal(problem)
    if not isinstance(objective, EvadeDetector):
        raise SpecError(f"expected a victim with a detector for loss {loss!r}, got one without")
    posed: Objective = replace(objective, loss=loss)
    return replace(
        problem, objective=LossOverride(posed, use_all_steps=True) if use_all_steps else posed
    )


def _goal(problem: Problem) -> tuple[Objective, bool]:
    """Return the objective without its override, and whether the attack uses all steps."""
    objective = problem.objective
    if isinstance(objective, LossOverride | PixelLossOverride):
        return objective.base, objective.use_all_steps
    return objective, False
