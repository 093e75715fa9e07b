"""MI-FGSM: iterated FGSM that follows an accumulated gradient."""

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
    """Return the best candidates of a momentum ascent started at the clean image.

    Args:
        problem: the batch to attack; the attack is targeted if the objective is.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        total_step: length of all steps together in units of eps, > 0; one step is
            eps * total_step / steps.
        decay: factor on the momentum from step to step, >= 0; 0 is BIM.
        loss: what is maximised: "cross_entropy" (the objective's own loss), of labels "margin" or
            "dlr"; of masks a pixel loss; see `objectives.pixels.with_loss`.

    Returns:
        `(b, c, *s)` candidates in the ball: of every iterate, the one with the most harm.

    Raises:
        SpecError: a parameter is out of range, or the loss is not one of the task.

    Source: Dong et al., CVPR 2018, algorithm 1: the momentum of eq. 6 with gradients of unit L1
        norm, the sign step of eq. 7; L2: the step of eq. 8. Steps 10, decay 1.0 and steps of
        eps / steps are theirs (section 4.1).
    Deviations: the best iterate is returned, not the last; a sample that is final stops (unless the
        objective uses all steps, as transfer wants); cross-entropy as log-odds, whose gradient has
        the same direction and, at unit norm, the same value; of several findings the nearest is
        attacked (see `objectives.nearest`), as the paper has one label an image.
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
    """Return `g` at L1 norm 1 per sample, scaled by its peak first: 1e-40 has a direction too."""
    shape = (-1, *[1] * (g.ndim - 1))
    g = g / g.flatten(1).abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny).view(shape)
    return g / g.flatten(1).abs().sum(1).clamp_min(torch.finfo(g.dtype).tiny).view(shape)
