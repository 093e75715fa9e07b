"""DeepFool: step to the nearest linearised boundary until it is crossed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem, Slopes
from robustbench_med.rng import Draws
from robustbench_med.types import Images

from .linearised import L1_CAP, Way, clearance, least_move, nearest_way, shrink

# least step beyond the boundary, in image units at every pixel: float32 near 1 resolves 6e-8
_FLOOR = 1e-6


@attack(
    title="DeepFool",
    summary="Steps to the nearest linearised boundary until it is crossed.",
    source="Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016, Algorithm 2",
    version=1,
    norms=("l2", "linf"),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps", "overshoot", "candidates"),
    effort=("steps", "candidates"),
    cost=lambda steps, candidates: steps * candidates,
)
def deepfool(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    refine: int = 2,
) -> Images:
    """Return candidates just across the boundary that is nearest by repeated linearisation.

    Args:
        problem: the batch to attack; the radius of its ball is ignored.
        rng: unused; all attacks have the same signature.
        steps: largest number of linearisations per sample, >= 1; the shipped victims need two or
            three.
        overshoot: how far beyond the linearised boundary each step goes, as a fraction of the whole
            perturbation, > 0.
        candidates: how many of the leading ways to the goal are linearised, >= 1; each costs a
            backward pass.
        refine: forward passes that move back along the line to the clean image, >= 0.

    Returns:
        `(b, c, *s)` candidates that succeed; the clean image where no step succeeded.

    Raises:
        SpecError: a parameter is not positive.

    Source: Moosavi-Dezfooli, Fawzi, Frossard, CVPR 2016, Algorithm 2; for L-inf its eq. 10 and 11.
        Overshoot 0.02 and 50 steps are the paper's (section 3.3 and the authors' code).
    Deviations: The overshoot is applied at every step and not once after the last, because an
        iterate that only converges to the boundary may never cross it. The step is the least one
        within [0,1], and values at the edge of the box that cannot move count as 0 in the norm of
        the slope; with such values the paper's step would be clipped and fall short. Only the
        leading ways are linearised. A success must clear the boundary (see `clearance`). The
        crossing is moved back to the boundary (`refine`; 0 gives the paper's result).
    """
    if refine < 0:
        raise SpecError(f"expected refine >= 0, got {refine}")
    if len(problem) == 0:
        return problem.x
    slopes = problem.jacobian(problem.x, candidates)
    # a guide's margins may be inexact; those of the judge cost another forward pass
    margins = slopes.margins if problem.guide is None else problem.margins(problem.x)
    clean = margins.amax(1)
    best, harm = problem.x.clone(), clean.clone()
    rows = torch.arange(len(problem), device=problem.x.device)
    active, z, robust = problem, problem.x, ~(clean > 0)
    way = _nearest(active, z, margins, slopes)
    clear = clearance(way)
    for step in range(steps):
        if step:
            way = _nearest(active, z, margins, active.jacobian(z, candidates))
        z, moved = _step(active, z, way, overshoot), way.size > 0
        margins = active.margins(z)
        margin = margins.amax(1)
        success = robust & (margin > clear[rows])
        best[rows[success]], harm[rows[success]] = z[success], margin[success]
        robust = robust & moved & ~success
        open_rows = robust.nonzero()[:, 0]  # finished samples are dropped
        if len(open_rows) == 0:
            break
        if len(open_rows) < len(rows):
            rows, active, z, margins = (
                rows[open_rows],
                active.select(open_rows),
                z[open_rows],
                margins[open_rows],
            )
            robust = robust[open_rows]
    across = ((harm > 0) & ~(clean > 0)).nonzero()[:, 0]
    ends = best[across], clean[across], harm[across], clear[across]
    return best.index_copy(0, across, shrink(problem.select(across), *ends, passes=refine))


def _nearest(problem: Problem, z: Images, margins: Float[Tensor, "b m"], slopes: Slopes) -> Way:
    """Return the nearest way, with the margin of the judge and the slope of the guide."""
    leading, allowed = margins.gather(1, slopes.columns), problem.ball.mask(torch.ones_like(z))
    return nearest_way(leading, slopes.jacobian, z, allowed, problem.ball.norm)


def _step(problem: Problem, z: Images, way: Way, overshoot: float) -> Images:
    """Return `z` moved beyond the linearised boundary; unchanged where no way is open."""
    norm = problem.ball.norm
    floor = _FLOOR * problem.ball.size(torch.ones_like(z), torch.zeros_like(z))
    beyond = torch.maximum(overshoot * problem.ball.size(z, problem.x), floor)
    gain = (1 + overshoot) * way.margin.abs() + beyond * way.size
    cap = L1_CAP if norm == "l1" else 1.0
    moved = (z + least_move(z, way.slope, gain, norm, cap=cap)).clamp_(0, 1)
    return torch.where((way.size > 0).view(-1, *[1] * (z.ndim - 1)), moved, z)
