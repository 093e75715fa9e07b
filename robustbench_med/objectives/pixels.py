"""Losses on the pixels of a mask, by name, and the objective that climbs one of them."""

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
    from robustbench_med.objectives import Objective
    from robustbench_med.problem import Problem

PixelLoss = Callable[..., PerSample]  # what is climbed: of Pixels, and of the state where given


def masked(here: Pixels) -> PerSample:
    """Return the cross-entropy of the pixels that are not yet as wanted.

    Source: L_MCE of Croce, Singh, Hein, ECCV 2024, section 3.4: pixels that are wrong already pull
        no more. Deviation: in an image with no other pixel they all do, see `Pixels.active`.
    """
    return here.gain(here.cross_entropy * here.active)


def balanced(here: Pixels) -> PerSample:
    """Return the masked cross-entropy in which every class of the reference weighs the same.

    A class weighs the inverse of its pixels: a lesion of few pixels as much as the background.

    Source: L_MCE-Bal of Croce, Singh, Hein, ECCV 2024, section 3.4. Deviation: the pixels of a
        class are counted in the image, not in the training images: our Dice is an image's too; in
        an image with every pixel wrong they all pull, see `Pixels.active`.
    """
    k = here.logits.shape[1]
    here_is = here.reference[:, None] == torch.arange(k, device=here.reference.device)[:, None]
    count = (here_is & here.counted[:, None]).sum(2)
    weight = here.counted.sum(1, keepdim=True) / ((count > 0).sum(1, keepdim=True) * count)
    weight = weight.masked_fill(count == 0, 0.0).to(here.logits.dtype)
    return here.gain(here.cross_entropy * here.active * weight.gather(1, here.reference))


def soft_dice(here: Pixels) -> PerSample:
    """Return 1 minus the Dice of probabilities, the mean over regions; its negative for a target.

    Source: Milletari, Navab, Ahmadi, 3DV 2016, section 3, with the sums of the probabilities
    themselves in the denominator. One pixel is added on both sides, so that an empty region is
    defined.
    """
    counted = here.counted[:, None].to(here.logits.dtype)
    member = here.regions.to(here.logits.dtype)
    called = torch.einsum("rk,bkp->brp", member, here.logits.softmax(1)) * counted
    truth = member[:, here.reference].movedim(0, 1) * counted
    sizes = called.sum(2) + truth.sum(2)
    found = ((2 * (called * truth).sum(2) + 1) / (sizes + 1)).mean(1)
    return 1 - found if here.away else found


def jensen_shannon(here: Pixels) -> PerSample:
    """Return the Jensen-Shannon divergence of the probabilities from the reference, in nats.

    Source: L_JS of Croce, Singh, Hein, ECCV 2024, section 3.4. Of a one-hot reference only the
        probability of its class matters; the divergence is at most log 2 and its slope falls to 0
        with that probability, so that pixels long wrong pull no more.
    """
    p = (-here.cross_entropy).exp()
    half = (1 + p) / 2
    each = -half.log() + p * (p.clamp_min(1e-30) / half).log() + (1 - p) * math.log(2)
    return here.gain(each / 2)


LOSSES: dict[str, PixelLoss] = {
    "cross_entropy": lambda here: here.gain(here.cross_entropy),
    "masked": masked,
    "balanced": balanced,
    "dice": soft_dice,
    "jensen_shannon": jensen_shannon,
}

_MARGINS: dict[str, Literal["margin", "dlr"]] = {"margin": "margin", "dlr": "dlr"}


@dataclass(frozen=True)
class PixelLossOverride:
    """An objective on masks whose loss is replaced; harm and done stay its own.

    Attributes:
        base: the goal.
        loss: what is climbed.
        use_all_steps: never done, as a transfer attack must be.
        state: tensors `(b, ...)` that the loss is given after the pixels, one row an image.
    """

    base: Masks
    loss: PixelLoss
    use_all_steps: bool = False
    state: tuple[Tensor, ...] = ()

    def __call__(self, output: Output, y: Int[Tensor, "b *s"]) -> Verdict:
        """Return the verdict with the loss replaced."""
        here = self.base.pixels(output, y)
        verdict = self.base.verdict(here, self.loss(here, *self.state))
        return verdict._replace(is_final=verdict.is_final & (not self.use_all_steps))

    def margins(self, output: Output, y: Int[Tensor, "b *s"]) -> Float[Tensor, "b m"]:
        """Raise, as the goal does."""
        return self.base.margins(output, y)

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:
        """Raise, as the goal does."""
        return self.base.dlr_scale(output, towards=towards)

    def applies(self, y: Int[Tensor, "b *s"]) -> Tensor:
        """Return which samples can be attacked."""
        return self.base.applies(y)

    def select(self, rows: Rows) -> PixelLossOverride:
        """Return the objective of the given rows."""
        state = tuple(one[rows] for one in self.state)
        return replace(self, base=self.base.select(rows), state=state)

    def bind(self, y: Int[Tensor, "b *s"]) -> PixelLossOverride:
        """Return the objective bound to these truths."""
        return replace(self, base=self.base.bind(y))


def on_pixels(problem: Problem, loss: PixelLoss, *state: Tensor) -> Problem:
    """Return the problem with another loss on its pixels to climb.

    Args:
        problem: one of masks.
        loss: of the pixels, `(b,)`.
        state: what else the loss is given, see PixelLossOverride.

    Raises:
        SpecError: the problem is not one of masks.
    """
    objective, use_all_steps = _goal(problem)
    if not isinstance(objective, Masks):
        raise SpecError("expected masks, got images with labels: choose another attack or loss")
    return replace(problem, objective=PixelLossOverride(objective, loss, use_all_steps, state))


def with_loss(problem: Problem, loss: str) -> Problem:
    """Return the problem with the loss of that name to climb.

    Args:
        problem: of any task.
        loss: of labels and findings "cross_entropy" (the objective's own; of several findings that
            of the nearest one, see `objectives.nearest`), "margin" or "dlr" (see LossOverride); of
            findings also "summed" (the cross-entropies of all, which spends its slope on findings
            that are out of reach); of masks a name in LOSSES; past a detector "joint", "selective",
            "goal" or "suspicion" (see EvadeDetector).

    Raises:
        SpecError: no such loss for the problem's task, or no detector to pass.
    """
    if loss == "cross_entropy":
        return _nearest_finding(problem)
    if loss == "summed":
        if not isinstance(_wanted(problem), AnyFinding):
            raise SpecError("expected several findings an image for loss 'summed', got none")
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
    """Return the problem with the nearest finding to climb, where any of several will do."""
    wanted = _wanted(problem)
    if not (isinstance(wanted, AnyFinding) and wanted.several):
        return problem
    goal, use_all_steps = _goal(problem)
    posed: Objective = nearest(replace(problem, objective=wanted)).objective
    if isinstance(goal, EvadeDetector):
        posed = replace(goal, base=posed)
    return replace(
        problem, objective=LossOverride(posed, use_all_steps=True) if use_all_steps else posed
    )


def phases(problem: Problem, steps: int) -> list[tuple[Problem, int]]:
    """Return the problems to climb one after another, and the steps each is given.

    One problem with all steps, unless it climbs the nearest of several findings: then a second
    climbs all of them with half of the steps. On hardened victims, where slopes turn on the way,
    either breaks images that the other leaves.
    """
    goal, use_all_steps = _goal(problem)
    base = goal.base if isinstance(goal, EvadeDetector) else goal
    climb = problem.objective if isinstance(problem.objective, LossOverride) else None
    if isinstance(base, LossOverride):  # within a detector, or with use_all_steps
        climb = base
    if climb is None or climb.loss != "nearest" or steps < 2:
        return [(problem, steps)]
    posed: Objective = climb.base
    if isinstance(goal, EvadeDetector):
        posed = replace(goal, base=posed)
    if use_all_steps:
        posed = LossOverride(posed, use_all_steps=True)
    return [(problem, steps - steps // 2), (replace(problem, objective=posed), steps // 2)]


def _wanted(problem: Problem) -> Objective | None:
    """Return the goal without the detector to pass; None where its loss is replaced already."""
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
    """Return the objective itself, and whether it is climbed with all steps."""
    objective = problem.objective
    if isinstance(objective, LossOverride | PixelLossOverride):
        return objective.base, objective.use_all_steps
    return objective, False
