"""SegPGD: PGD on masks whose weight shifts from the correct pixels to all of them."""

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
    """Return the best candidates of PGD whose loss weighs right and wrong pixels by the step.

    Args:
        problem: the batch to attack, of masks.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, T, >= 1.
        total_step: length of all steps of a restart together in units of eps, > 0.
        restarts: independent runs, >= 1; only samples that are still robust are attacked again.
        random_start: start uniformly in the ball instead of at the clean image.

    Returns:
        `(b, c, *s)` candidates in the ball: of every iterate, the one with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task is not one of masks.

    Source: Gu, Zhao, Tresp, Torr, "SegPGD", ECCV 2022: at step t of T the cross-entropy of the
        pixels still right weighs 1 - lambda and that of the wrong ones lambda, with
        lambda = (t - 1) / (2 T), both over the number of all pixels.
    Deviations: only pixels that count are averaged; for a target the pixels that have its
        class weigh lambda, the others 1 - lambda, and the loss is descended; steps of eps *
        total_step / steps as in `pgd` (theirs: 0.01); the best iterate is returned; a sample that
        is final stops.
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
    """Return the cross-entropy with `weight` on pixels that reached the goal.

    The others have 1 - weight.
    """
    return pixels.gain(pixels.cross_entropy * torch.where(pixels.reached, weight, 1 - weight))
