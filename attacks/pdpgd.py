"""PDPGD: primal-dual proximal gradient descent on a distance, which weighs goal and distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.declarations import attack
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

from .fmn import CLEARANCE, DUAL, halve, judge

_BETA_1, _BETA_2 = 0.9, 0.999  # of Adam
_LAST_LR = 0.01  # last primal step over the first; it falls exponentially
_DUAL_LR, _LAST_DUAL_LR = 0.1, 0.1  # first dual step, and the last one over it; it falls linearly
_FIRST_RATIO = 0.01  # weight of the distance over that of the goal at the start
_LEAST_RATIO = 1e-6  # and the least, and the inverse of the largest
_DUAL_MEMORY = 0.9  # of the running mean of the weights
_PROXIMAL_STEPS = 5  # steps toward the proximal point in the metric of Adam
# of the softplus: its argument is -20 at the clean image. On linear victims 20 left 0.1 to 1.5 % to
# the exact distance after 300 steps, 5 left up to 1.4 % in L1 and the distance itself up to 11 %
_SHARPNESS = 20.0
_TINY = 1e-8  # added to Adam's scale, as a fraction of its largest value in the image


@attack(
    title="PDPGD",
    summary="Descends on the goal, then shrinks the change by the proximal operator of its norm.",
    source="Matyasko & Chau 2021",
    version=1,
    aliases=("pdpgd_l1",),
    norms=("l1", "l2", "linf"),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps", "lr"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def pdpgd(problem: Problem, *, rng: Draws, steps: int = 300, lr: float = 0.1) -> Images:
    """Return the nearest candidates that reach the goal, in L1, L2 or L-inf.

    Each step descends on softplus of the margin that is missing, and then applies the proximal
    operator of the norm: in L1, values shrink by a common amount and small ones return to the clean
    image. The weights of distance and goal are dual variables: the goal gains weight after a
    failure and loses it after a success.

    Args:
        problem: the batch to attack; the radius of its ball is ignored.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        lr: first step of Adam in image units (x in [0,1]), > 0; it falls to 1 % of it.

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is not positive.

    Source: Matyasko & Chau, "PDPGD: Primal-Dual Proximal Gradient Descent Adversarial Attack",
        2021 (arXiv 2106.01538), with the parameters of adversarial-library 0.2.8 and the proximal
        steps in Adam's metric of Melchior, Joseph & Moolekamp 2019 (arXiv 1910.10094).
    Deviations: The margin is measured in twentieths of the clean one, and its gradient is divided
        by its dual norm, so that it weighs as much as that of the distance; otherwise the weights
        need hundreds of steps where logits are small or distances are short, as in L-inf. For the
        same reason what is added to Adam's scale is a fraction of its largest value. A success
        counts only if its harm is above 1e-4 of the clean margin, as in FMN. The last candidate is
        judged too. Then the way to the clean image is halved, as in FMN. A sample whose clean image
        reaches the goal is finished.
    """
    problem = replace(problem, objective=LossOverride(problem.objective, "margin"))
    nearest = Nearest(problem)
    if len(problem):
        clear = _descend(problem, nearest, steps, lr)
        halve(problem, nearest, clear)
    return nearest.best


def _descend(problem: Problem, nearest: Nearest, steps: int, lr: float) -> PerSample:
    """Run all steps and keep successes in `nearest`; return the harm of a clear success."""
    g, verdict = problem.gradient(problem.x)
    verdict = problem.confirm(problem.x, verdict)
    clear = CLEARANCE * verdict.harm.abs()
    nearest.keep(problem.x, verdict.is_final)
    rows: Rows = (nearest.size > 0).nonzero()[:, 0]
    if len(rows) == 0:
        return clear
    active, g, harm = problem.select(rows), g[rows], verdict.harm[rows]
    delta = torch.zeros_like(active.x)
    mean, square = torch.zeros_like(delta), torch.zeros_like(delta)
    first = harm.abs().clamp_min(torch.finfo(harm.dtype).tiny)
    goal = torch.full_like(harm, -math.log(_FIRST_RATIO))  # log-odds of the weight of the goal
    weight = goal.sigmoid()
    for step in range(steps):
        if step:
            g, verdict = active.gradient(active.x + delta)
            verdict = active.confirm(active.x + delta, verdict)
            nearest.keep(active.x + delta, verdict.is_final & (verdict.harm > clear[rows]), rows)
            harm = verdict.harm
        slope = _slope(active, g, _SHARPNESS * harm / first)
        mean = mean.lerp(slope, 1 - _BETA_1)
        square = _BETA_2 * square + (1 - _BETA_2) * slope.square()
        scale = (square / (1 - _BETA_2 ** (step + 1))).sqrt()
        top = scale.flatten(1).amax(1).clamp_min(torch.finfo(scale.dtype).tiny)
        scale = scale + _per_image(_TINY * top, scale)
        rate = lr * _LAST_LR ** (step / steps)
        moved = _boxed(active, delta - rate / (1 - _BETA_1 ** (step + 1)) * mean / scale)
        delta = _proximal(active, moved, scale, rate * (1 - weight) / weight)
        left = 1 - step / max(steps - 1, 1)
        dual = _DUAL_LR * (left + (1 - left) * _LAST_DUAL_LR)
        limit = -math.log(_LEAST_RATIO)
        goal = (goal - dual * harm.sign()).clamp(-limit, limit)
        weight = weight.lerp(goal.sigmoid(), 1 - _DUAL_MEMORY)
    judge(active, nearest, rows, active.x + delta, clear)
    return clear


def _slope(problem: Problem, g: Images, harm: PerSample) -> Images:
    """Return the slope of softplus(-harm), as if the margin were as steep as the distance."""
    g = problem.ball.mask(g)
    dual: Tensor = g.flatten(1).norm(p=DUAL[problem.ball.norm], dim=1)
    dual = dual.clamp_min(torch.finfo(g.dtype).tiny)
    return -g * _per_image((-harm).sigmoid() / dual, g)


def _proximal(problem: Problem, moved: Images, scale: Images, rate: PerSample) -> Images:
    """Return the change near `moved`, in Adam's metric, with less of the norm and in the box."""
    top = scale.flatten(1).amax(1)
    amount, metric = rate / top, scale / _per_image(top, scale)
    delta, shrink = moved, PROXIMAL[problem.ball.norm]
    for _ in range(_PROXIMAL_STEPS):
        delta = _boxed(problem, shrink(delta - metric * (delta - moved), amount))
    return delta


def _boxed(problem: Problem, delta: Images) -> Images:
    return problem.ball.mask((problem.x + delta).clamp(0, 1) - problem.x)


def soft_threshold(delta: Images, amount: Float[Tensor, " b"]) -> Images:
    """Return the proximal point of the L1 norm: every value shrinks by `amount`, down to 0."""
    return delta.sign() * (delta.abs() - _per_image(amount, delta)).clamp_min(0)


def shorten(delta: Images, amount: Float[Tensor, " b"]) -> Images:
    """Return the proximal point of the L2 norm: the length shrinks by `amount`, down to 0."""
    length = delta.flatten(1).norm(dim=1).clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * _per_image((1 - amount / length).clamp_min(0), delta)


def lower_peaks(delta: Images, amount: Float[Tensor, " b"]) -> Images:
    """Return the proximal point of the L-inf norm: the peaks lose `amount` in all.

    It is what the projection on the L1 ball of radius `amount` leaves (Moreau).
    """
    return delta - Ball("l1", amount).bound(delta)


PROXIMAL: dict[Norm, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": soft_threshold,
    "l2": shorten,
    "linf": lower_peaks,
}


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
