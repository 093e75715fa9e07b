"""Patch: fit a square of free values that fools the victim wherever it is pasted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Verdict
from robustbench_med.universal import Patch, Position, pattern_ball

from .universal import Pace, Pattern, below_one, fit_pattern

_POSITIONS = ("random", "centre", "corner")


@attack(
    title="Patch",
    summary="A square of free values that fools the victim wherever it is pasted.",
    source="Brown et al., 2017, section 2",
    version=2,
    aliases=("adversarial_patch",),
    norms=("l0",),
    schedule="universal",
    positive=("epochs", "batch", "total_step"),
    effort=("epochs",),
    cost=lambda epochs: epochs,
)
def patch(
    problem: Problem,
    *,
    rng: Draws,
    epochs: int = 60,
    batch: int = 32,
    total_step: float = 15.0,
    momentum: float = 0.9,
    clip: float = 10.0,
    scale: list[float] = [0.8, 1.0],  # noqa: B006 - never changed; a card holds lists
    rotation: float = 20.0,
    position: str = "random",
) -> Patch:
    """Return a patch found by gradient ascent on the mean loss over images and placements.

    Args:
        problem: the training images. Its ball must be in "l0", where eps is the number of values
            that may change; the patch is the largest square (cube) within that number.
        rng: one random stream per training image, for the order of visits and a new placement at
            each visit.
        epochs: how often every image is visited, >= 1.
        batch: images per step, >= 1.
        total_step: length of all steps together, in units of the range [0,1], > 0.
        momentum: weight of the running gradient, in [0, 1).
        clip: an image that has reached the goal is left out while its loss (log-odds) is above
            this; any number, useful if > 0.
        scale: smallest and largest size of the pasted patch, as a fraction of the largest square,
            in (0, 1].
        rotation: largest angle to either side, in degrees, 0..180; volumes are rotated in the plane
            of their last two axes.
        position: where the patch is pasted: "random", "centre" or "corner".

    Returns:
        The patch after the last step.

    Raises:
        SpecError: a parameter is out of its range, the norm is not l0, or eps holds no pixel.

    Source: Brown et al., "Adversarial patch", 2017, section 2: the patch that maximises the
        expected log-probability of the target over images, locations and transformations (EOT).
    Deviations: The attack is untargeted if the objective is. The loss is the log-odds, clipped (see
        `uap_gradient`). Steps follow the sign of the gradient and become smaller. The region and
        the channels of the ball are respected, and the budget counts values.
    """
    _check(scale, rotation, position)
    below_one(momentum=momentum)
    problem = with_loss(problem, "cross_entropy")
    initial = _start(problem, rng, (scale[0], scale[1]), rotation, cast(Position, position))

    def pattern_gradient(visited: Problem, pattern: Pattern, rng: Draws) -> tuple[Images, Verdict]:
        x, mask = visited.x, visited.ball.mask
        # one copy of the pattern per image, so that each image has its own gradient
        leaf = pattern.expand(len(x), *pattern.shape).clone().requires_grad_(True)
        with torch.enable_grad():
            pasted, inside = initial.paste(x, rng, leaf)
        g, verdict = visited.gradient(x + mask(torch.where(inside, pasted.detach(), x) - x))
        (gradient,) = torch.autograd.grad(pasted, leaf, mask(g * inside))
        return gradient, verdict

    def step(pattern: Pattern, g: Pattern, weight: float) -> Pattern:
        return (pattern + total_step * weight * g.sign()).clamp_(0, 1)

    pace = Pace(epochs, batch, momentum, clip)
    return replace(
        initial, pattern=fit_pattern(problem, initial.pattern, pattern_gradient, step, rng, pace)
    )


def _start(
    problem: Problem, rng: Draws, scale: tuple[float, float], rotation: float, position: Position
) -> Patch:
    """Return a patch of the ball's size with values drawn uniformly."""
    ball = pattern_ball(problem.ball)
    if ball.norm != "l0":
        raise SpecError(f"expected norm l0 (a number of values), got {ball.norm}")
    channels, *size = problem.x.shape[1:]
    # channels that may not change do not count in the budget
    allowed = channels if ball.channels is None else len(set(ball.channels))
    # 1e-9 is added because the cube root of 125 is computed as 4.99...
    pixels = min(float(ball.eps) / allowed, math.prod(size))
    side = math.floor(pixels ** (1 / len(size)) + 1e-9)
    side = min(side, *size)
    if side < 1:
        raise SpecError(
            f"expected eps >= {allowed} (one pixel of every channel that may change), "
            f"got {ball.eps:g}"
        )
    shape = (channels, *(side,) * len(size))
    first = rng.fork("start").select(torch.zeros(min(len(problem), 1), dtype=torch.long))
    drawn = first.uniform(*shape)
    pattern = drawn[0] if len(drawn) else torch.full(shape, 0.5)
    return Patch(pattern.to(problem.y.device), scale, rotation, position)


def _check(scale: list[float], rotation: float, position: str) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise SpecError(f"expected scale [least, greatest] in (0, 1], got {scale}")
    if not 0 <= rotation <= 180:
        raise SpecError(f"expected rotation in 0..180 degrees, got {rotation}")
    if position not in _POSITIONS:
        raise SpecError(f"expected position in {', '.join(_POSITIONS)}, got {position!r}")
