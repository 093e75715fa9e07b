"""FAB: project onto the linearised boundary, biased towards the clean image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem, Slopes
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample

from .deepfool import deepfool
from .linearised import L1_CAP, Way, clearance, least_move, nearest_way, shrink


class _Settings(NamedTuple):
    steps: int
    candidates: int
    alpha: float
    extrapolation: float
    backward: float
    clear: PerSample  # harm above which a candidate succeeds


@attack(
    title="FAB",
    summary="Projects onto the nearest linearised boundary, biased towards the clean image.",
    source="Croce, Hein, ICML 2020, Algorithm 1",
    version=1,
    norms=("linf", "l2", "l1"),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps", "restarts", "candidates"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts, candidates: steps * restarts * candidates,
)
def fab(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 100,
    restarts: int = 1,
    candidates: int = 10,
    alpha: float = 0.1,
    extrapolation: float = 1.05,
    backward: float = 0.9,
    refine: int = 3,
) -> Images:
    """Return the nearest successes of the fast adaptive boundary attack.

    Args:
        problem: the batch to attack; the radius of its ball is ignored.
        rng: one random stream per sample; each restart after the first forks its own.
        steps: linearisations per restart, >= 1.
        restarts: how many runs, >= 1; the first starts at the clean image, the others at a random
            point half as far away as the best success.
        candidates: how many of the leading ways to the goal are linearised, >= 1; each costs a
            backward pass.
        alpha: largest weight of the projection of the clean image, in [0, 1).
        extrapolation: factor on a projection, >= 1; 1 ends on the linearised boundary.
        backward: factor on the perturbation after a success, in (0, 1).
        refine: forward passes of the final search, >= 0.

    Returns:
        `(b, c, *s)` nearest successful candidates; the clean image where there is none.

    Raises:
        SpecError: a parameter is out of its range.

    Source: Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", ICML 2020, Algorithm 1: projections eq. 5 and 6, nearest class eq. 7, biased step
        eq. 8 and 9, final search eq. 10; alpha 0.1, extrapolation (eta) 1.05, backward (beta) 0.9
        and 100 steps are of its section 4.
    Deviations: Values that the box does not let move count as 0 in the norm of eq. 7. A success
        must clear the boundary (see `clearance`), and the projection aims at a plane a little
        beyond it, because where every moved value is at 0 or 1 extrapolation has no effect. An
        iterate after the backward step that still succeeds counts as a success too, since its
        verdict costs nothing. Only the leading ways are linearised. A sample that has no success
        after half of the steps goes on from that of DeepFool, and in L1 by steps of at most 0.05
        per value; the paper's L1 steps move few values as far as the box allows, where the linear
        model no longer holds, and may never cross the boundary. A sample without any success
        restarts within half of its linear distance. The final search aims a little beyond the root
        (see `shrink`).
    """
    _check(alpha, extrapolation, backward, refine)
    if len(problem) == 0:
        return problem.x
    slopes = problem.jacobian(problem.x, candidates)
    # a guide's margins may be inexact; those of the judge cost another forward pass
    margins = slopes.margins if problem.guide is None else problem.margins(problem.x)
    clean = margins.amax(1)
    rows = (~(clean > 0)).nonzero()[:, 0]  # the others are at distance 0
    if len(rows) == 0:
        return problem.x.clone()
    way = _nearest(problem, problem.x, slopes)
    active, way = problem.select(rows), Way(*(value[rows] for value in way))
    clear, nearest = clearance(way), Nearest(active)
    settings = _Settings(steps, candidates, alpha, extrapolation, backward, clear)
    _run_steps(active, active.x, way, nearest, settings)
    for restart in range(1, restarts):
        linear = (way.margin.abs() / way.size).nan_to_num(nan=0.0, posinf=0.0)
        radius = torch.where(torch.isfinite(nearest.size), nearest.size, linear) / 2
        z = active.ball.at(radius).sample(active.x, rng.select(rows).fork("restart", restart))
        _run_steps(active, z, None, nearest, settings)
    best = nearest.best
    succeeded = torch.isfinite(nearest.size).nonzero()[:, 0]
    inner, z = active.select(succeeded), best[succeeded]
    ends = clean[rows[succeeded]], inner.margins(z).amax(1), clear[succeeded]
    best[succeeded] = shrink(inner, z, *ends, passes=refine)
    return problem.x.index_copy(0, rows, best)


def _run_steps(
    problem: Problem, z: Images, way: Way | None, nearest: Nearest, settings: _Settings
) -> None:
    """Run all steps from `z`; `way` is the nearest way at `z`, None where it is not known."""
    shape, clear = (-1, *[1] * (z.ndim - 1)), settings.clear
    cap = torch.ones_like(nearest.size)
    for step in range(settings.steps):
        if step == max(1, settings.steps // 2):
            stuck = torch.isinf(nearest.size)
            cap = torch.where(stuck, L1_CAP, cap) if problem.ball.norm == "l1" else cap
            z = _seeded(problem, z, nearest, stuck, settings)
        if step or way is None:
            slopes = problem.jacobian(z, settings.candidates)
            verdict = problem.confirm(z, slopes.verdict)
            nearest.keep(z, verdict.is_final & (verdict.harm > clear))
            way = _nearest(problem, z, slopes)
        z = _biased(problem, z, way, cap, settings)
        success = problem.margins(z).amax(1) > clear
        nearest.keep(z, success)
        back = (problem.x + settings.backward * (z - problem.x)).clamp_(0, 1)
        z = torch.where(success.view(shape), back, z)


def _nearest(problem: Problem, z: Images, slopes: Slopes) -> Way:
    leading, allowed = (
        slopes.margins.gather(1, slopes.columns),
        problem.ball.mask(torch.ones_like(z)),
    )
    return nearest_way(leading, slopes.jacobian, z, allowed, problem.ball.norm)


def _seeded(
    problem: Problem, z: Images, nearest: Nearest, stuck: Bool[Tensor, " b"], settings: _Settings
) -> Images:
    """Return `z`, in which DeepFool replaces each sample that has no success yet."""
    rows = stuck.nonzero()[:, 0]
    if len(rows) == 0:
        return z
    inner = problem.select(rows)
    # DeepFool draws nothing at random
    seed = deepfool(inner, rng=Draws.of(0, []), candidates=settings.candidates)
    nearest.keep(seed, inner.margins(seed).amax(1) > 0, rows)
    return z.index_copy(0, rows, seed)


def _biased(problem: Problem, z: Images, way: Way, cap: Tensor, settings: _Settings) -> Images:
    """Return the mean of the projections of `z` and the clean image, weighted by eq. 9."""
    ball, x = problem.ball, problem.x
    at_x = way.margin + (way.slope * (x - z)).flatten(1).sum(1)  # the linear margin at x
    lift = 2 * settings.clear
    both = settings.extrapolation * least_move(
        torch.cat([z, x]),
        torch.cat([way.slope, way.slope]),
        torch.cat([lift - way.margin, lift - at_x]),
        ball.norm,
        cap=torch.cat([cap, cap]),
    )
    from_z, from_x = both.chunk(2)
    zero = torch.zeros_like(x)
    near, far = ball.size(from_z, zero), ball.size(from_x, zero)
    weight = (near / (near + far)).nan_to_num(nan=0.0).clamp_max(settings.alpha)
    weight = weight.view(-1, *[1] * (z.ndim - 1))
    # written as differences, so that rounding changes nothing where nothing moves
    moved = z + from_z + weight * (x - z + from_x - from_z)
    return moved.clamp_(0, 1)


def _check(alpha: float, extrapolation: float, backward: float, refine: int) -> None:
    rules = (
        ("alpha", alpha, "in [0, 1)", 0 <= alpha < 1),
        ("extrapolation", extrapolation, ">= 1", extrapolation >= 1),
        ("backward", backward, "in (0, 1)", 0 < backward < 1),
        ("refine", refine, ">= 0", refine >= 0),
    )
    for name, value, rule, valid in rules:
        if not valid:
            raise SpecError(f"expected {name} {rule}, got {value}")
