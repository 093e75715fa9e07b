"""DAG: each correct pixel is pulled towards a wrong class, until none is correct."""

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
        problem: the batch to attack, of masks.
        rng: one random stream per sample: the wrong classes.
        steps: gradient steps at most, >= 1.
        gamma: the largest change of a value in a step, in grey levels of 255, > 0.

    Returns:
        `(b, c, *s)` candidates in the ball: of every iterate, the one with the most harm, the last
        included.

    Raises:
        SpecError: a parameter is not positive, or the task is not one of masks.

    Source: Xie et al., "Adversarial examples for semantic segmentation and object detection", ICCV
        2017, Algorithm 1: over the active pixels, those still right, the logit of the adversarial
        label minus that of the truth is maximised along a gradient divided by its L-inf norm and
        times gamma. Adversarial labels are the truth's through a permutation drawn for each image
        that leaves no class in place; gamma = 0.5 and 200 steps are theirs.
    Deviations: each iterate is projected into the ball: theirs has none, which is eps = inf; the
        permutation is a cyclic shift of the class ids; for a target the adversarial label is the
        target's and the logit lowered is that of the class called; the iterate with the most harm
        is returned, not the last; an image without active pixels that is not final goes on with
        all its pixels (see `Pixels.active`), where theirs stops.
    """
    lot = rng.fork("labels").uniform(1)[:, 0].to(problem.x)
    search, z = Search(on_pixels(problem, pull, lot)), problem.x
    for _ in range(steps):
        g, z = search.gradient(z)
        if search.finished or not bool(g.any()):  # all are done, or no step would move any
            return search.best
        ball, x = search.active.ball, search.active.x
        g = ball.mask(g)
        peak = g.flatten(1).abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny)
        z = ball.project(z + gamma / _GREY * g / peak.view(-1, *[1] * (g.ndim - 1)), x)
    search.probe(z)
    return search.best


def pull(pixels: Pixels, lot: Float[Tensor, " b"]) -> PerSample:
    """Return the logits of the adversarial labels minus the lowered ones, over active pixels.

    Args:
        pixels: the pixels.
        lot: drawn in (0,1): the shift of the class ids.
    """
    k = pixels.logits.shape[1]
    shift = 1 + (lot * (k - 1)).long().clamp_max(k - 2)
    lowered = pixels.reference if pixels.away else pixels.called
    raised = (pixels.reference + shift[:, None]) % k if pixels.away else pixels.reference
    rise = (pixels.logits.gather(1, raised[:, None]) - pixels.logits.gather(1, lowered[:, None]))[
        :, 0
    ]
    return (rise * pixels.active).sum(1)
