"""Orthogonal PGD: each step serves the goal or evades the detector and does not undo the other."""

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
_PARALLEL = 1e-6  # an orthogonal part below this fraction of the gradient is a rounding error


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
    """Return the best candidates of an ascent whose steps serve either the goal or the evasion.

    While a sample has not reached the goal, its steps raise the goal's loss; after that they lower
    the suspicion. Without a detector the attack is PGD.

    Args:
        problem: the batch to attack.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, >= 1; each takes two passes.
        total_step: length of all steps of a restart together in units of eps, >= 0; for 0, see
            `pgd`.
        restarts: independent runs, >= 1; only samples that are still robust are attacked again.
        random_start: start uniformly in the ball instead of at the clean image.
        spare: what a step must not undo. With "goal", steps that lower the suspicion leave out the
            part that moves against the goal. With "both", every step is orthogonal to the gradient
            of the other aim (the paper's orthogonal PGD). With "neither", this is selective PGD,
            the same as `pgd(loss="selective")`.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is out of range, or `spare` is not one of these three.

    Source: Bryniarski, Hingun, Pachuca, Wang, Carlini, "Evading adversarial example detection
        defenses with orthogonal projected gradient descent", ICLR 2022, section 4 (selective and
        orthogonal PGD), cited from memory.
    Deviations: By default, steps towards the goal are not projected, and steps that lower the
        suspicion are projected only where they oppose the goal. The features between two classes
        are rare in training images, so an attack that may never raise the suspicion does not cross
        (measured on chest_resnet at 4/255 against kernel density: 16 % of the images pass with
        "both", 94 % with "goal"). The objective decides whether the goal is reached, not the sign
        of a loss. If the two gradients are parallel, there is no orthogonal part, and the gradient
        itself is taken. The best iterate is returned. A sample stops when it is final.
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
            step = torch.where(reached, orthogonal_part(evading, g), orthogonal_part(g, evading))
        else:
            step = torch.where(reached, orthogonal_part(evading, g, against=True), g)
        z = search.active.ball.step(z, step, search.active.x, rel_stepsize)
    search.probe(z)


def orthogonal_part(g: Images, reference: Images, *, against: bool = False) -> Images:
    """Return the part of each gradient that is orthogonal to a reference; all of it if none is.

    >>> orthogonal_part(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]]))
    tensor([[[3., 0.]]])

    Args:
        g: `(b, c, *s)` gradients.
        reference: `(b, c, *s)` gradients that the result is orthogonal to.
        against: whether a gradient that does not oppose the reference is returned unchanged.
    """
    flat, unit = g.flatten(1), reference.flatten(1)
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-30)
    along = (flat * unit).sum(1, keepdim=True)
    remainder = flat - (along.clamp_max(0) if against else along) * unit
    has_orthogonal = remainder.norm(dim=1, keepdim=True) > _PARALLEL * flat.norm(
        dim=1, keepdim=True
    )
    return torch.where(has_orthogonal, remainder, flat).view_as(g)


def _goal(problem: Problem) -> tuple[Problem, bool]:
    """Return the problem without the detector, and whether there was one to evade."""
    objective = problem.objective
    if isinstance(objective, LossOverride):
        objective = objective.base
    if not isinstance(objective, EvadeDetector):
        return problem, False
    return replace(problem, objective=objective.base), True
