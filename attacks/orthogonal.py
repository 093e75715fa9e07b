"""Orthogonal PGD: climbs the goal or the detector, whichever is not had yet, sparing the other."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.objectives.climb import Climb
from robustbench_med.objectives.evasion import Undetected
from robustbench_med.objectives.pixels import climbing
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images

from .pgd import pgd

_PARALLEL = 1e-6  # share of a gradient below which what is left of it is rounding


def orthogonal_pgd(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 40,
    reach: float = 2.5,
    restarts: int = 1,
    random_start: bool = True,
    orthogonal: bool = True,
) -> Images:
    """Return the best candidates of an ascent that takes goal and detector one at a time.

    Each step follows the gradient of what a sample has not reached: of the goal's loss, or, once
    the goal is reached, of the suspicion's negative. Without a detector it is PGD.

    Args:
        problem: the batch attacked.
        rng: one stream a sample; each restart forks its own.
        steps: gradient steps a restart, >= 1; two passes each.
        reach: length of all steps of a restart together in units of eps, > 0.
        restarts: independent runs, >= 1; only samples still standing are run again.
        random_start: start uniformly in the ball instead of at the clean image.
        orthogonal: take of the gradient only what is orthogonal to the other's; False is selective
            PGD, which is `pgd(loss="selective")`.

    Returns:
        `(b, c, *s)` candidates in the ball: of every iterate, the one with the most harm.

    Raises:
        SpecError: a parameter is not positive.

    Source: Bryniarski, Hingun, Pachuca, Wang, Carlini, "Evading adversarial example detection
        defenses with orthogonal projected gradient descent", ICLR 2022, section 4 (selective and
        orthogonal PGD), cited from memory. Deviations: the goal counts as reached by its own rule,
        not by a loss's sign; where the two gradients are parallel nothing orthogonal is left, and
        the gradient itself is taken; the best iterate is returned; a sample that is done stops.
    """
    if not _goal(problem)[1]:
        return pgd(
            problem,
            rng=rng,
            steps=steps,
            reach=reach,
            restarts=restarts,
            random_start=random_start,
        )
    if not orthogonal:
        return pgd(
            problem,
            rng=rng,
            steps=steps,
            reach=reach,
            restarts=restarts,
            random_start=random_start,
            loss="selective",
        )
    for name, value in {"steps": steps, "restarts": restarts, "reach": reach}.items():
        if not value > 0:
            raise SpecError(f"expected {name} > 0, got {value}")
    search = Search(climbing(problem, "suspicion"))
    for restart in range(restarts):
        if search.finished:
            break
        start = rng.fork("restart", restart) if random_start else None
        _ascend(search, start, steps=steps, share=reach / steps)
    return search.best


def _ascend(search: Search, start: Draws | None, *, steps: int, share: float) -> None:
    z = search.open.x
    if start is not None:
        z = search.open.ball.sample(z, start.take(search.rows))
    for _ in range(steps):
        calming, z = search.climb(z)
        if search.finished:
            return
        g, verdict = _goal(search.open)[0].gradient(z)
        reached = verdict.broken.view(-1, *[1] * (z.ndim - 1))
        wanted, other = torch.where(reached, calming, g), torch.where(reached, g, calming)
        z = search.open.ball.step(z, apart(wanted, other), search.open.x, share)
    search.look(z)


def apart(g: Images, other: Images) -> Tensor:
    """Return what of each image's gradient is orthogonal to the other; all of it if nothing is.

    >>> apart(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]]))
    tensor([[[3., 0.]]])
    """
    flat, away = g.flatten(1), other.flatten(1)
    away = away / away.norm(dim=1, keepdim=True).clamp_min(1e-30)
    left = flat - (flat * away).sum(1, keepdim=True) * away
    some = left.norm(dim=1, keepdim=True) > _PARALLEL * flat.norm(dim=1, keepdim=True)
    return torch.where(some, left, flat).view_as(g)


def _goal(problem: Problem) -> tuple[Problem, bool]:
    """Return the problem of the goal alone, and whether a detector had to be passed."""
    objective = problem.objective
    if isinstance(objective, Climb):
        objective = objective.base
    if not isinstance(objective, Undetected):
        return problem, False
    return replace(problem, objective=objective.base), True
