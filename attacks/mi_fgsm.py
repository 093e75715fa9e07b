"""MI-FGSM: iterated FGSM that follows an accumulated gradient (momentum)."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images


@attack(
    title="MI-FGSM",
    summary="BIM along an accumulated gradient, which transfers better to other victims.",
    source="Dong et al., CVPR 2018, algorithm 1",
    version=2,
    aliases=("mim", "mifgsm"),
    norms=("linf", "l2"),
    schedule="descend",
    positive=("steps", "total_step"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def mi_fgsm(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 10,
    total_step: float = 1.0,
    decay: float = 1.0,
    loss: str = "cross_entropy",
) -> Images:
    """Return the best candidates of a gradient ascent with momentum from the clean image.

    Args:
        problem: the batch to attack; the attack is targeted if the objective is.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        total_step: length of all steps together in units of eps, > 0; one step is
            eps * total_step / steps.
        decay: factor on the momentum from step to step, >= 0; with 0 the attack is BIM.
        loss: the loss to maximise: "cross_entropy" (the objective's own loss); for labels also
            "margin" or "dlr"; for masks a pixel loss, see `objectives.pixels.with_loss`.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is out of range, or the task has no such loss.

    Source: Dong et al., CVPR 2018, algorithm 1: the momentum of eq. 6 with gradients of unit L1
        norm, the sign step of eq. 7, and in L2 the step of eq. 8. 10 steps, decay 1.0 and a step of
        eps / steps are the paper's (section 4.1).
    Deviations: The best iterate is returned, not the last. A sample stops when it is final, unless
        the objective uses all steps, as transfers do. The cross-entropy is given as log-odds; its
        gradient has the same direction, so it is the same at unit norm. The paper has one label per
        image; with several findings, the nearest one is attacked (see `objectives.nearest`).
    """
    if not decay >= 0:
        raise SpecError(f"expected decay >= 0, got {decay}")
    search, z = Search(with_loss(problem, loss)), problem.x
    momentum = torch.zeros_like(z)
    for _ in range(steps):
        g, z, momentum = search.gradient(z, momentum)
        if search.finished:
            return search.best
        ball, x = search.active.ball, search.active.x
        momentum = decay * momentum + _unit_l1(ball.mask(g))
        z = ball.step(z, momentum, x, total_step / steps)
    search.probe(z)
    return search.best


def _unit_l1(g: Tensor) -> Tensor:
    """Return `g` scaled to L1 norm 1 per sample; by its peak first, so that tiny values count."""
    shape = (-1, *[1] * (g.ndim - 1))
    g = g / g.flatten(1).abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny).view(shape)
    return g / g.flatten(1).abs().sum(1).clamp_min(torch.finfo(g.dtype).tiny).view(shape)
