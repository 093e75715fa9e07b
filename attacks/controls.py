"""Controls: perturbations as large as those of an attack but without knowledge of the victim."""

from __future__ import annotations

import torch

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images

from .pgd import pgd


@attack(
    title="Noise (control)",
    summary="The best of a few uniform draws from the ball.",
    source="control",
    version=1,
    norms=("linf", "l2", "l1", "l0"),
    threat="control",
    schedule="ascend",
    positive=("draws",),
    effort=("draws",),
    cost=lambda draws: draws,
)
def noise(problem: Problem, *, rng: Draws, draws: int = 10) -> Images:
    """Return the best of a few uniform draws from the ball.

    Args:
        problem: the batch to attack.
        rng: one random stream per sample; each draw forks its own.
        draws: images drawn for each sample, >= 1.

    Returns:
        `(b, c, *s)` candidates in the ball.

    Raises:
        SpecError: a parameter is not positive.

    Source: control; an attack that is no stronger than noise has learned nothing about the victim.
    """
    search = Search(problem)
    for i in range(draws):
        if search.finished:
            break
        ball, x = search.active.ball, search.active.x
        search.probe(ball.sample(x, rng.select(search.rows).fork("draw", i)))
    return search.best


@attack(
    title="Shuffled PGD (control)",
    summary="PGD's perturbation with shuffled pixels: equally large, without structure.",
    source="control; Madry et al., ICLR 2018, section 2.1",
    version=2,
    norms=("linf", "l2"),
    threat="control",
    schedule="ascend",
    positive=("steps", "restarts"),
    cost=lambda steps, restarts: steps * restarts,
)
def shuffled(
    problem: Problem, *, rng: Draws, steps: int = 40, total_step: float = 0.0, restarts: int = 1
) -> Images:
    """Return candidates whose perturbation is that of PGD with its pixels in another order.

    The channels of a pixel stay together, and pixels are only exchanged where change is allowed. So
    norm and histogram are those of the attack, and its structure is gone. Clipping to [0,1] can
    make the norm smaller.

    Args:
        problem: the batch to attack; its gradients are used.
        rng: one random stream per sample.
        steps: gradient steps of PGD, >= 1.
        total_step: length of all steps of PGD together in units of eps, >= 0; for 0, see `pgd`.
        restarts: independent runs of PGD, >= 1.

    Returns:
        `(b, c, *s)` candidates in the ball.

    Raises:
        SpecError: a parameter is not positive.

    Source: control; PGD: Madry et al., ICLR 2018, section 2.1.
    """
    x, ball = problem.x, problem.ball
    z = pgd(problem, rng=rng.fork("pgd"), steps=steps, total_step=total_step, restarts=restarts)
    closed = (ball.mask(torch.ones_like(x)) == 0).flatten(2).all(1)
    keys = rng.fork("order").uniform(closed.shape[1])
    # pixels that may change come first on both sides: in random order and in their own order
    source = (keys + 2 * closed).argsort(1)[:, None].expand(-1, x.shape[1], -1)
    target = closed.long().argsort(dim=1, stable=True)[:, None].expand_as(source)
    delta = (z - x).flatten(2)
    moved = torch.zeros_like(delta).scatter(2, target, delta.gather(2, source))
    return ball.project(x + moved.view_as(x), x)
