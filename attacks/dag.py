"""DAG: pull each correct pixel towards a wrong class, until none is correct."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import on_pixels
from robustbench_med.objectives.segmentation import Pixels
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, PerSample

_GREY = 255  # gamma is given in grey levels, as in the paper; x is in [0,1]


@attack(
    title="DAG",
    summary="Pulls each correct pixel towards a wrong class drawn for it, until none is correct.",
    source="Xie et al., ICCV 2017, Algorithm 1",
    version=1,
    norms=("linf", "l2"),
    tasks=("segmentation",),
    schedule="descend",
    fixed_step=True,
    positive=("steps", "gamma"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def dag(problem: Problem, *, rng: Draws, steps: int = 200, gamma: float = 0.5) -> Images:
    """Return the best candidates of dense adversary generation.

    Args:
        problem: the batch to attack, of a segmentation task.
        rng: one random stream per sample, which draws the wrong classes.
        steps: largest number of gradient steps, >= 1.
        gamma: the largest change of a value in a step, in grey levels of 255, > 0.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm; the
        last iterate is judged too.

    Raises:
        SpecError: a parameter is not positive, or the task is not segmentation.

    Source: Xie et al., "Adversarial examples for semantic segmentation and object detection", ICCV
        2017, Algorithm 1: over the active pixels, which are those still right, the attack maximises
        the logit of the adversarial label minus that of the truth. A step is the gradient divided
        by its L-inf norm and multiplied by gamma. The adversarial label of a pixel is its true
        class under a permutation that is drawn for each image and leaves no class in place. gamma =
        0.5 and 200 steps are the paper's.
    Deviations: Each iterate is projected into the ball; the paper has no ball, which is eps = inf.
        The permutation is a cyclic shift of the class ids. For a target, the adversarial label is
        that of the target, and the logit of the predicted class is lowered. The iterate with the
        most harm is returned, not the last. If an image has no active pixels but is not final, the
        attack goes on with all its pixels (see `Pixels.active`); the paper's stops.
    """
    lot = rng.fork("labels").uniform(1)[:, 0].to(problem.x)
    search, z = Search(on_pixels(problem, pull, lot)), problem.x
    for _ in range(steps):
        g, z = search.gradient(z)
        if search.finished or not bool(g.any()):  # without any gradient no step would move
            return search.best
        ball, x = search.active.ball, search.active.x
        g = ball.mask(g)
        peak = g.flatten(1).abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny)
        z = ball.project(z + gamma / _GREY * g / peak.view(-1, *[1] * (g.ndim - 1)), x)
    search.probe(z)
    return search.best


def pull(pixels: Pixels, lot: Float[Tensor, " b"]) -> PerSample:
    """Return the adversarial labels' logits minus the lowered ones, summed over active pixels.

    Args:
        pixels: the pixels.
        lot: a random number in (0,1) per image, from which the shift of the class ids follows.
    """
    k = pixels.logits.shape[1]
    shift = 1 + (lot * (k - 1)).long().clamp_max(k - 2)
    lowered = pixels.reference if pixels.away else pixels.predicted
    raised = (pixels.reference + shift[:, None]) % k if pixels.away else pixels.reference
    rise = (pixels.logits.gather(1, raised[:, None]) - pixels.logits.gather(1, lowered[:, None]))[
        :, 0
    ]
    return (rise * pixels.active).sum(1)
