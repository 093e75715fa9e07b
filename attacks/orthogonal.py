"""Orthogonal PGD: each step serves the goal or evades the detector without undoing the other."""

from __future__ import annotations

from dataclasses import replace

import torch

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images

from .pgd import pgd, step_lengths

SPARE = ("goal", "both", "neither")
_PARALLEL = 1e-6  # share of a gradient below which what is left of it is rounding


@attack(
    title="Orthogonal PGD",
    summary="PGD on a detector: reaches the goal first, then lowers suspicion and keeps the goal.",
    source="Bryniarski, Hingun, Pachuca, Wang, Carlini, ICLR 2022, section 4",
    version=2,
    norms=("linf", "l2"),
    schedule="descend",
    positive=("steps", "restarts"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts: 2 * steps * restarts,
)
def orthogonal_pgd(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 40,
    total_step: float = 0.0,
    restarts: int = 1,
    random_start: bool = True,
    spare: str = "goal",
) -> Images:
    """Return the best candidates of an ascent that serves goal and detector one at a time.

    Each step follows the gradient of what a sample has not reached: of the goal's loss, or, once
    the goal is reached, of the suspicion's negative. Without a detector it is PGD.

    Args:
        problem: the batch to attack.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, >= 1; two passes each.
        total_step: length of all steps of a restart together in units of eps, >= 0; 0: see `pgd`.
        restarts: independent runs, >= 1; only samples that are still robust are attacked again.
        random_start: start uniformly in the ball instead of at the clean image.
        spare: what a step must not undo. "goal": steps that lower the suspicion leave out what
            moves against the goal; "both": every step is orthogonal to the other's gradient, the
            paper's orthogonal PGD; "neither": selective PGD, which is `pgd(loss="selective")`.

    Returns:
        `(b, c, *s)` candidates in the ball: of every iterate, the one with the most harm.

    Raises:
        SpecError: a parameter is out of range, or `spare` is none of the three.

    Source: Bryniarski, Hingun, Pachuca, Wang, Carlini, "Evading adversarial example detection
        defenses with orthogonal projected gradient descent", ICLR 2022, section 4 (selective and
        orthogonal PGD), cited from memory. Deviations: by default the way to the goal is not
        projected, and the way to calm only where it leads back: between two classes features are
        rare, and an attack that may never raise the suspicion stays on its side (measured on
        chest_resnet at 4/255 against kernel density: 16 % pass with "both", 94 % with "goal");
        the goal counts as reached by its own rule, not by a loss's sign; where the two gradients
        are parallel nothing orthogonal is left, and the gradient itself is taken; the best iterate
        is returned; a sample that is final stops.
    """
    if spare not in SPARE:
        raise SpecError(f"expected spare in {', '.join(SPARE)}, got {spare!r}")
    if not _goal(problem)[1] or spare == "neither":
        return pgd(
            problem,
            rng=rng,
            steps=steps,
            total_step=total_step,
            restarts=restarts,
            random_start=random_start,
            loss="selective" if _goal(problem)[1] else "cross_entropy",
        )
    lengths = step_lengths(steps, total_step)
    search = Search(with_loss(problem, "suspicion"))
    for restart in range(restarts):
        if search.finished:
            break
        start = rng.fork("restart", restart) if random_start else None
        _ascend(search, start, spare, lengths)
    return search.best


def _ascend(search: Search, start: Draws | None, spare: str, lengths: list[float]) -> None:
    z = search.active.x
    if start is not None:
        z = search.active.ball.sample(z, start.select(search.rows))
    for rel_stepsize in lengths:
        evading, z = search.gradient(z)
        if search.finished:
            return
        g, verdict = _goal(search.active)[0].gradient(z)
        reached = verdict.success.view(-1, *[1] * (z.ndim - 1))
        if spare == "both":
            step = torch.where(reached, apart(evading, g), apart(g, evading))
        else:
            step = torch.where(reached, apart(evading, g, against=True), g)
        z = search.active.ball.step(z, step, search.active.x, rel_stepsize)
    search.probe(z)


def apart(g: Images, reference: Images, *, against: bool = False) -> Images:
    """Return the part of each gradient that is orthogonal to the other; all of it if none is.

    >>> apart(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]]))
    tensor([[[3., 0.]]])

    Args:
        g: `(b, c, *s)`.
        reference: `(b, c, *s)`.
        against: whether a gradient that does not oppose the other is returned unchanged.
    """
    flat, away = g.flatten(1), reference.flatten(1)
    away = away / away.norm(dim=1, keepdim=True).clamp_min(1e-30)
    along = (flat * away).sum(1, keepdim=True)
    remainder = flat - (along.clamp_max(0) if against else along) * away
    some = remainder.norm(dim=1, keepdim=True) > _PARALLEL * flat.norm(dim=1, keepdim=True)
    return torch.where(some, remainder, flat).view_as(g)


def _goal(problem: Problem) -> tuple[Problem, bool]:
    """Return the problem of the goal alone, and whether a detector had to be passed."""
    objective = problem.objective
    if isinstance(objective, LossOverride):
        objective = objective.base
    if not isinstance(objective, EvadeDetector):
        return problem, False
    return replace(problem, objective=objective.base), True
