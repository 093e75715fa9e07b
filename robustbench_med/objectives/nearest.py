"""Nearest: climb the way to the goal whose boundary is nearest, not the one whose logit leads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.objectives.loss_override import LossOverride

if TYPE_CHECKING:
    from robustbench_med.problem import Problem

WAYS = 20  # the most ways that are linearised, those of the largest margins: a backward pass each


def nearest(problem: Problem, ways: int = WAYS) -> Problem:
    """Return the problem with the margin of the nearest way as the loss to climb.

    A linear victim is broken along a way where minus the margin is below eps times the dual norm of
    its slope. So each way's margin is divided by that norm, measured once at the clean images, and
    the largest quotient is climbed: the nearest way, and from step to step the one that has become
    nearest. The loss is given in logits of the way that is nearest at first, so that it is 0 on the
    boundary and, where there is only one way, the margin itself.

    It costs a forward pass, and of images that are not broken and have several ways another one and
    a backward pass for each way; an ascent of it costs one of each a step. A way without slope is
    not climbed, unless none has a slope.

    Args:
        problem: the batch attacked, of labels or findings.
        ways: the most ways that are linearised.
    """
    if len(problem) == 0:
        return problem
    margins = problem.margins(problem.x)
    weights = torch.ones_like(margins)
    rows = ((margins.isfinite().sum(1) > 1) & ~(margins > 0).any(1)).nonzero()[:, 0]
    if len(rows):
        weights[rows] = _weights(problem.select(rows), ways)
    return replace(problem, objective=LossOverride(problem.objective, "nearest", weights=weights))


def _weights(problem: Problem, ways: int) -> Float[Tensor, "b m"]:
    x = problem.x
    # where the number of values counts, any value may move by all its room
    ball = replace(problem.ball, norm="linf") if problem.ball.norm == "l0" else problem.ball
    zeros = problem.counter.zero
    slopes = problem.jacobian(x, ways)
    problem.counter.zero = zeros  # a way without slope is not climbed: nothing is missed
    norms = []
    for g in slopes.jacobian.unbind(1):
        free = torch.where(g > 0, x < 1, x > 0)  # a value at the edge of the box cannot leave it
        norms.append((g * free * ball.steepest(g * free)).flatten(1).sum(1))
    chosen = slopes.margins.gather(1, slopes.columns)
    norm = torch.stack(norms, 1).masked_fill(~chosen.isfinite(), 0.0)
    distance = (chosen / norm).masked_fill(norm == 0, -torch.inf)
    first = norm.gather(1, distance.argmax(1, keepdim=True))
    weight = (first / norm).masked_fill(norm == 0, 0.0)
    flat = (weight == 0).all(1, keepdim=True)
    spread = torch.zeros_like(slopes.margins).scatter(1, slopes.columns, weight)
    return torch.where(flat, 1.0, spread)
