"""sigma-zero: descend on a smooth count of the changed values, and drop small changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

from .fmn import CLEARANCE, restore

_BETA_1, _BETA_2 = 0.9, 0.999  # of Adam
_LAST = 0.1  # last step over the first
_ADAPT = 0.01  # change of the threshold over the step: t of Algorithm 1
_TINY = 1e-12


@attack(
    title="sigma-zero",
    summary="Descends on a smooth count of the changed values and drops the small changes.",
    source="Cina et al., ICLR 2025, Algorithm 1",
    version=1,
    norms=("l0",),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps", "lr", "sigma", "threshold"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def sigma_zero(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 300,
    lr: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
) -> Images:
    """Return candidates that reach the goal with few changed values.

    The attack descends on the margin that is missing plus a smooth share of the changed values,
    the mean of delta^2 / (delta^2 + sigma). After each step, changes below a threshold are set to
    0; the threshold rises after a success and falls after a failure.

    Args:
        problem: the batch to attack; the radius of its ball is ignored.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        lr: first step in image units (x in [0,1]), > 0; annealed to a tenth.
        sigma: smoothness of the count, > 0; the smaller, the sharper.
        threshold: change below which a value is restored at first, in image units, > 0.

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is not positive.

    Source: Cina, Villani, Pintor, Schonherr, Biggio, Pelillo, "sigma-zero: Gradient-based
        Optimization of l0-norm Adversarial Examples", ICLR 2025, Algorithm 1. The parameters are
        the paper's (section 3); steps follow Adam, as in the authors' code.
    Deviations: A sample is finished at one changed value. A success counts only if its harm is
        above 1e-4 of the clean margin, as in FMN. Then the changed values that matter least are
        restored, as in FMN.
    """
    problem = replace(problem, objective=LossOverride(problem.objective, "margin"))
    nearest = Nearest(problem)
    if len(problem):
        clear = _descend(problem, nearest, _Settings(steps, lr, sigma, threshold))
        restore(problem, nearest, clear)
    return nearest.best


class _Settings(NamedTuple):
    steps: int
    lr: float
    sigma: float
    threshold: float


def _descend(problem: Problem, nearest: Nearest, settings: _Settings) -> PerSample:
    """Run the steps of Algorithm 1, keep successes in `nearest`; return the harm of a clear one."""
    delta = torch.zeros_like(problem.x)
    mean, square = torch.zeros_like(delta), torch.zeros_like(delta)
    low = delta.new_full((len(problem),), settings.threshold)
    rows: Rows = torch.arange(len(problem), device=delta.device)
    active, lr, clear = problem, settings.lr, torch.zeros_like(low)
    for step in range(settings.steps):
        z = active.x + delta
        g, verdict = active.gradient(z)
        verdict = active.confirm(z, verdict)
        if step == 0:
            clear = CLEARANCE * verdict.harm.abs()
        success = verdict.is_final & ((verdict.harm > clear[rows]) | (step == 0))
        nearest.keep(z, success, rows)
        g = _loss_gradient(active.ball.mask(g), delta, success, settings.sigma)
        mean = mean.lerp(g, 1 - _BETA_1)
        square = _BETA_2 * square + (1 - _BETA_2) * g.square()
        scale = (square / (1 - _BETA_2 ** (step + 1))).sqrt() + 1e-8
        delta = delta - lr / (1 - _BETA_1 ** (step + 1)) * mean / scale
        delta = active.ball.mask((active.x + delta).clamp(0, 1) - active.x)
        anneal = (1 + math.cos(math.pi * step / settings.steps)) / 2
        lr = settings.lr * (_LAST + (1 - _LAST) * anneal)
        low = torch.where(success, low + _ADAPT * lr, low - _ADAPT * lr).clamp(0, 1)
        delta = torch.where(delta.abs() < _wide(low, delta), 0.0, delta)
        still = (nearest.size[rows] > 1).nonzero()[:, 0]
        if len(still) < len(rows):
            rows, active = rows[still], active.select(still)
            delta, mean, square, low = (v[still] for v in (delta, mean, square, low))
        if len(rows) == 0:
            return clear
    z = active.x + delta
    verdict = active.probe(z)
    nearest.keep(z, verdict.is_final & (verdict.harm > clear[rows]), rows)
    return clear


def _loss_gradient(g: Images, delta: Images, success: Tensor, sigma: float) -> Images:
    """Return the gradient of the loss of eq. 7 with its largest entry 1.

    `g` is that of the margin, which counts only where the goal is not reached.
    """
    count = 2 * delta * sigma / (delta.square() + sigma).square() / delta[0].numel()
    total = count - g * _wide(~success, g)
    return total / _wide(total.flatten(1).abs().amax(1), g).clamp_min(_TINY)


def _wide(values: Tensor, like: Images) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
