"""PAdam: Adam on the pixels' loss, projected into the ball after each step."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import LOSSES, on_pixels, with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images

_BETA_1, _BETA_2, _TINY = 0.9, 0.999, 1e-8  # of Adam


@attack(
    title="PAdam",
    summary="Climbs a loss of masks by Adam, and projects each step into the ball.",
    source="Halmosi, Mohos, Jelasity, ECCV 2024",
    version=1,
    norms=("linf",),
    tasks=("segmentation",),
    schedule="descend",
    positive=("steps", "rel_stepsize"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def padam(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 200,
    rel_stepsize: float = 0.25,
    loss: str = "cross_entropy",
    random_start: bool = True,
) -> Images:
    """Return the best candidates of projected Adam.

    Args:
        problem: the batch to attack, of a segmentation task.
        rng: one random stream per sample.
        steps: gradient steps, >= 1.
        rel_stepsize: length of the first step in units of eps, > 0.
        loss: the loss to maximise, a name in `objectives.pixels.LOSSES`.
        random_start: start uniformly in the ball instead of at the clean image.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive, there is no such loss, or the task is not
            segmentation.

    Source: Halmosi, Mohos, Jelasity, "Evaluating the adversarial robustness of semantic
        segmentation: trying harder pays off", ECCV 2024, PAdam-CE: AMSGrad with steps of 2/255 at
        a radius of 8/255, 200 of them, each projected into ball and box.
    Deviations: The step is a fraction of eps. A sample's gradients are divided by the peak of its
        first one, because Adam's constant of 1e-8 is not small beside the gradient of a mean over
        pixels. The iterate with the most harm is returned. A sample stops when it is final. The
        paper's loss by cosine similarity of logits is left out: of a single logit it is constant.
    """
    # a task or loss that does not fit is refused
    posed = on_pixels(problem, LOSSES[loss]) if loss in LOSSES else with_loss(problem, loss)
    search, z = Search(posed), problem.x
    if random_start:
        z = problem.ball.sample(z, rng)
    mean, square, largest = (torch.zeros_like(z) for _ in range(3))
    unit = z.new_zeros(len(z))
    for step in range(1, steps + 1):
        g, z, mean, square, largest, unit = search.gradient(z, mean, square, largest, unit)
        if search.finished:
            return search.best
        active = search.active
        g = active.ball.mask(g)
        unit = torch.where(unit > 0, unit, g.flatten(1).abs().amax(1))
        g = g / _wide(unit, z).clamp_min(torch.finfo(g.dtype).tiny)
        mean = _BETA_1 * mean + (1 - _BETA_1) * g
        square = _BETA_2 * square + (1 - _BETA_2) * g.square()
        largest = torch.maximum(largest, square)
        scale = (largest / (1 - _BETA_2**step)).sqrt() + _TINY
        move = mean / (1 - _BETA_1**step) / scale
        eps = torch.as_tensor(active.ball.eps).to(z).expand(len(z))
        z = active.ball.project(z + rel_stepsize * _wide(eps, z) * move, active.x)
    search.probe(z)
    return search.best


def _wide(values: Tensor, like: Images) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
