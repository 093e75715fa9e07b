"""SegPGD: PGD on masks with weights that shift from the correct pixels to all of them."""

from __future__ import annotations

from functools import partial

import torch

from robustbench_med.declarations import attack
from robustbench_med.objectives.pixels import on_pixels
from robustbench_med.objectives.segmentation import Pixels
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, PerSample


@attack(
    title="SegPGD",
    summary="PGD on masks: correct pixels weigh most at first; at the end all weigh the same.",
    source="Gu, Zhao, Tresp, Torr, ECCV 2022",
    version=1,
    norms=("linf", "l2"),
    tasks=("segmentation",),
    schedule="descend",
    positive=("steps", "total_step", "restarts"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts: steps * restarts,
)
def segpgd(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 40,
    total_step: float = 2.5,
    restarts: int = 1,
    random_start: bool = True,
) -> Images:
    """Return the best candidates of PGD whose weights of right and wrong pixels depend on the step.

    Args:
        problem: the batch to attack, of a segmentation task.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart (T in the paper), >= 1.
        total_step: length of all steps of a restart together in units of eps, > 0.
        restarts: independent runs, >= 1; only samples that are still robust are attacked again.
        random_start: start uniformly in the ball instead of at the clean image.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task is not segmentation.

    Source: Gu, Zhao, Tresp, Torr, "SegPGD", ECCV 2022: at step t of T, the cross-entropy has weight
        1 - lambda at pixels that are still right and lambda at wrong ones, with
        lambda = (t - 1) / (2 T); both sums are divided by the number of all pixels.
    Deviations: Only pixels that count are averaged. For a target, the pixels that have its class
        have weight lambda, the others 1 - lambda, and the loss is minimised. Steps are eps *
        total_step / steps, as in `pgd` (the paper's are 0.01). The best iterate is returned. A
        sample stops when it is final.
    """
    search = Search(on_pixels(problem, weighted))
    for restart in range(restarts):
        if search.finished:
            break
        z = search.active.x
        if random_start:
            z = search.active.ball.sample(z, rng.fork("restart", restart).select(search.rows))
        for t in range(1, steps + 1):
            weight = (t - 1) / (2 * steps)
            search.active = on_pixels(search.active, partial(weighted, weight=weight))
            g, z = search.gradient(z)
            if search.finished:
                return search.best
            z = search.active.ball.step(z, g, search.active.x, total_step / steps)
        search.probe(z)
    return search.best


def weighted(pixels: Pixels, *, weight: float = 0.0) -> PerSample:
    """Return the cross-entropy weighted by `weight` where the goal is reached, else 1 - weight."""
    return pixels.gain(pixels.cross_entropy * torch.where(pixels.reached, weight, 1 - weight))
