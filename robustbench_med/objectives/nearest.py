"""A loss toward the nearest decision boundary, in place of that of the leading logit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.stored_images import StoredImages

if TYPE_CHECKING:
    from robustbench_med.problem import Problem

WAYS = 20  # how many of the largest margins are linearised: each costs a backward pass


def nearest(problem: Problem, ways: int = WAYS) -> Problem:
    """Return the problem with the margin to the nearest decision boundary as its loss.

    On a linear victim, an attack across a boundary succeeds where minus the margin is below eps
    times the dual norm of the margin's gradient. So each margin is divided by that norm, which is
    measured once at the clean images, and the loss is the largest quotient: that of the boundary
    which is nearest at each step. The loss is scaled to logits of the boundary that is nearest at
    the start, so that it is 0 on the boundary, and it is the margin itself if there is only one.

    This costs a forward pass; for images that are still right and have several margins, it costs
    another forward pass and a backward pass for each margin. Each step of an ascent costs one
    forward and one backward pass. A margin without gradient is not maximised, unless none has one.

    Args:
        problem: the batch that is attacked, with labels or findings.
        ways: the largest number of margins that are linearised.
    """
    if len(problem) == 0:
        return problem
    parts: Iterable[Problem] = [problem]
    if isinstance(problem.x, StoredImages):  # as many at a time as the model gets anyway
        every_row = torch.arange(len(problem), device=problem.y.device)
        parts = (problem.select(rows) for rows in every_row.split(problem.chunk))
    weights = torch.cat([_of_each(part, ways) for part in parts])
    return replace(problem, objective=LossOverride(problem.objective, "nearest", weights=weights))


def _of_each(problem: Problem, ways: int) -> Float[Tensor, "b m"]:
    """Return the weight of each margin; 1 where there is nothing to compare."""
    margins = problem.margins(problem.x)
    weights = torch.ones_like(margins)
    rows = ((margins.isfinite().sum(1) > 1) & ~(margins > 0).any(1)).nonzero()[:, 0]
    if len(rows):
        weights[rows] = _weights(problem.select(rows), ways)
    return weights


def _weights(problem: Problem, ways: int) -> Float[Tensor, "b m"]:
    x = problem.x
    # where only the number of values counts, each may change as far as the box allows
    ball = replace(problem.ball, norm="linf") if problem.ball.norm == "l0" else problem.ball
    zeros = problem.counter.zero
    slopes = problem.jacobian(x, ways)
    # a margin without gradient is not maximised, so it does not count as a masked gradient
    problem.counter.zero = zeros
    norms = []
    for g in slopes.jacobian.unbind(1):
        free = torch.where(g > 0, x < 1, x > 0)  # a value at the edge of the box cannot leave it
        norms.append((g * free * ball.steepest(g * free)).flatten(1).sum(1))
    margins = slopes.margins.gather(1, slopes.columns)
    norm = torch.stack(norms, 1).masked_fill(~margins.isfinite(), 0.0)
    distance = (margins / norm).masked_fill(norm == 0, -torch.inf)
    first = norm.gather(1, distance.argmax(1, keepdim=True))
    weight = (first / norm).masked_fill(norm == 0, 0.0)
    flat = (weight == 0).all(1, keepdim=True)
    weights = torch.zeros_like(slopes.margins).scatter(1, slopes.columns, weight)
    return torch.where(flat, 1.0, weights)
