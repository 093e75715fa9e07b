"""FMN: the fast minimum-norm attack, which projects its steps onto a ball of adaptive radius."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.declarations import attack
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.nearest import nearest as climb_nearest
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

_LAST_ALPHA = 0.01  # last step over the first; this and the last gamma are those of foolbox 3.3.4
_LAST_GAMMA = 0.001
_ROUNDS = 3  # rounds in which values are restored (L0 only)
_HALVINGS = 8  # halvings of the way to the clean image, down to 1/256 of the distance
_MIN_RADIUS = 1e-6  # as a fraction of the farthest distance; on an exact tie the radius would be 0
CLEARANCE = 1e-4  # harm of a success, as a fraction of the clean margin: rounding cannot undo it
_WAYS = 10  # leading ways whose distances are compared, like the candidates of DeepFool and FAB
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


@attack(
    title="FMN",
    summary="Steps projected on a radius that shrinks after a success and grows after a failure.",
    source="Pintor et al., NeurIPS 2021, Algorithm 1",
    version=2,
    norms=("l2", "linf", "l1", "l0"),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps", "alpha", "gamma"),
    effort=("steps",),
    cost=lambda steps: steps,
)
def fmn(
    problem: Problem, *, rng: Draws, steps: int = 100, alpha: float = 1.0, gamma: float = 0.05
) -> Images:
    """Return the nearest candidates that reach the goal, in L0, L1, L2 or L-inf.

    Args:
        problem: the batch to attack; the radius of its ball is ignored.
        rng: unused; all attacks have the same signature.
        steps: gradient steps, >= 1.
        alpha: L2 length of the first step in image units (x in [0,1]), > 0; annealed to 1 % of it.
        gamma: relative change of the radius in the first step, > 0; annealed to 0.001.

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is not positive.

    Source: Pintor et al., NeurIPS 2021, "Fast minimum-norm adversarial attacks through adaptive
        norm constraints", Algorithm 1. Steps follow g / |g|_2 in every norm, as in the paper.
    Deviations:
        (0) The loss is the margin of the way whose boundary is nearest (see `objectives.nearest`);
        only in L0 it is that of the leading logit, as in the paper. The leading wrong class need
        not be the nearest one, and maximising its margin keeps it in the lead: on a hardened victim
        of four classes the paper's loss gave a median L2 distance of 1.19 where DDN reached 1.07.
        (1) A sample is finished at distance 0, and in L0 at distance 1, because nothing is nearer.
        (2) Before the first success the radius is gamma beyond the linear estimate; the estimate
        alone approaches a curved boundary too slowly. In L0 the estimate is the least number of
        values that cover the margin in the linear model inside the box; the paper starts at 1 and
        grows by gamma.
        (3) The last candidate is judged too.
        (4) A success counts only if its harm is above 1e-4 of the clean margin; below that,
        rounding in another batch could undo it.
        (5) A short search follows. In L1, L2 and L-inf it halves the way to the clean image (8
        forward passes). In L0 it restores values (3 gradients, each followed by about log2(n)
        forward passes, where n is the number of changed values).
    """
    if problem.ball.norm == "l0":
        return fmn_leading(problem, steps=steps, alpha=alpha, gamma=gamma)
    return _minimise(climb_nearest(problem, _WAYS), steps=steps, alpha=alpha, gamma=gamma)


def fmn_leading(
    problem: Problem,
    *,
    rng: Draws | None = None,
    steps: int = 100,
    alpha: float = 1.0,
    gamma: float = 0.05,
) -> Images:
    """Return what `fmn` finds with the loss of the paper: the margin of the leading logit."""
    leading = replace(problem, objective=LossOverride(problem.objective, "margin"))
    return _minimise(leading, steps=steps, alpha=alpha, gamma=gamma)


def _minimise(problem: Problem, *, steps: int, alpha: float, gamma: float) -> Images:
    nearest = Nearest(problem)
    if len(problem):
        clear = _descend(problem, nearest, steps=steps, alpha=alpha, gamma=gamma)
        (restore if problem.ball.norm == "l0" else halve)(problem, nearest, clear)
    return nearest.best


def _descend(
    problem: Problem, nearest: Nearest, *, steps: int, alpha: float, gamma: float
) -> PerSample:
    """Run the steps of Algorithm 1 and keep successes in `nearest`.

    Returns:
        `(b,)` the harm above which a candidate clearly succeeds.
    """
    z, eps = problem.x, problem.x.new_full((len(problem),), torch.inf)
    farthest = _farthest(problem)
    rows: Rows = torch.arange(len(problem), device=z.device)
    active, change = problem, _scaled
    min_size = 0.0
    if problem.ball.norm == "l0":
        change, min_size = _counted, 1.0
    for step in range(steps):
        g, verdict = active.gradient(z)
        loss, harm, done = active.confirm(z, verdict)
        if step == 0:
            clear = CLEARANCE * loss.abs()
            nearest.keep(z, done)
        done = done & (harm > clear[rows])
        nearest.keep(z, done, rows)
        open_rows = (nearest.size[rows] > min_size).nonzero()[:, 0]
        if len(open_rows) < len(rows):
            rows, active = rows[open_rows], active.select(open_rows)
            z, g, eps, loss, done = (v[open_rows] for v in (z, g, eps, loss, done))
        if len(rows) == 0:
            return clear
        g, best = active.ball.mask(g), nearest.size[rows]
        anneal = (1 + math.cos(math.pi * step / steps)) / 2
        rate = _LAST_GAMMA + (gamma - _LAST_GAMMA) * anneal
        eps = torch.where(done, change(eps, -rate).minimum(best), change(eps, rate))
        new = best.isinf().nonzero()[:, 0]
        if len(new):  # no success yet: go beyond the boundary of the linear model
            start = _start(active.select(new), z[new], g[new], loss[new])
            eps = eps.index_copy(0, new, change(start, rate))
        eps = eps.maximum(_MIN_RADIUS * farthest[rows]).minimum(farthest[rows])
        length = alpha * (_LAST_ALPHA + (1 - _LAST_ALPHA) * anneal)
        z = active.ball.at(eps).project(z + length * _unit(g), active.x)
    judge(active, nearest, rows, z, clear)
    return clear


def judge(
    problem: Problem, nearest: Nearest, rows: Rows, z: Images, clear: Tensor
) -> Bool[Tensor, " r"]:
    """Keep the candidates of `rows` that clearly succeed in `nearest`; return which do.

    Args:
        problem: the problem of `rows`.
        nearest: keeps the nearest successes of all samples.
        rows: `(r,)` indices of the samples.
        z: `(r, c, *s)` their candidates.
        clear: `(b,)` the harm above which a candidate clearly succeeds.
    """
    verdict = problem.probe(z)
    done = verdict.is_final & (verdict.harm > clear[rows])
    nearest.keep(z, done, rows)
    return done


def _scaled(eps: PerSample, rate: float) -> PerSample:
    return eps * (1 + rate)


def _counted(eps: PerSample, rate: float) -> PerSample:
    """Change a number of values by the fraction `rate`, and by at least one; never below one."""
    scaled = (eps * (1 + rate)).floor()
    return (scaled.maximum(eps + 1) if rate > 0 else scaled.minimum(eps - 1)).clamp_min(1)


def _farthest(problem: Problem) -> PerSample:
    """Return the norm of the largest change that the box allows, `(b,)`."""
    corner = problem.x + problem.ball.mask((problem.x < 0.5).to(problem.x) - problem.x)
    return problem.ball.size(corner, problem.x)


def _start(problem: Problem, z: Images, g: Images, loss: PerSample) -> PerSample:
    """Return the radius at which the linear model at `z` crosses the boundary.

    This is the eps-step of Algorithm 1: the size of the change so far plus the remaining distance,
    which is the loss divided by the dual norm of g.
    """
    size, flat = problem.ball.size(z, problem.x), g.flatten(1).abs()
    missing = loss.abs()
    if problem.ball.norm == "l0":
        gain = (g * ((g > 0).to(z) - z)).flatten(1).sort(dim=1, descending=True).values
        return size + 1 + (gain.cumsum(1) <= missing[:, None]).sum(1)
    dual: Tensor = flat.norm(p=DUAL[problem.ball.norm], dim=1)
    return size + missing / dual.clamp_min(torch.finfo(g.dtype).tiny)


def _unit(g: Images) -> Images:
    """Return `g` scaled to L2 length 1, however small it is; 0 where it is 0."""
    return Ball("l2", 1.0).steepest(g)


def halve(problem: Problem, nearest: Nearest, clear: Tensor) -> None:
    """Halve the way between the nearest success and the clean image, `_HALVINGS` times.

    `clear` is `(b,)`, the harm above which a candidate clearly succeeds.
    """
    rows = ((nearest.size > 0) & nearest.size.isfinite()).nonzero()[:, 0]
    if len(rows) == 0:
        return
    active, far = problem.select(rows), nearest.best[rows]
    low = far.new_zeros((len(rows), *[1] * (far.ndim - 1)))
    high = low + 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        z = active.x + middle * (far - active.x)
        success = judge(active, nearest, rows, z, clear).view_as(middle)
        low, high = torch.where(success, low, middle), torch.where(success, middle, high)


def restore(problem: Problem, nearest: Nearest, clear: Tensor) -> None:
    """Restore the values that matter least, as many as the goal allows; for L0 only.

    `clear` is `(b,)`, the harm above which a candidate clearly succeeds.

    Before that, every changed value moves to the edge of the box to which the gradient points,
    unless this loses the success. Fewer changed values are then enough.
    """
    for _ in range(_ROUNDS):
        rows = ((nearest.size > 1) & nearest.size.isfinite()).nonzero()[:, 0]
        if len(rows) == 0:
            return
        active, z = problem.select(rows), nearest.best[rows]
        g, _ = active.gradient(z)
        pushed = torch.where((z != active.x) & (g != 0), (g > 0).to(z), z)
        done = judge(active, nearest, rows, pushed, clear)
        z = torch.where(done.view(-1, *[1] * (z.ndim - 1)), pushed, z)
        _bisect_restored(active, nearest, rows, z, g, clear)


def _bisect_restored(
    problem: Problem, nearest: Nearest, rows: Rows, z: Images, g: Images, clear: Tensor
) -> None:
    """Find by bisection how many changed values can be restored, least gain first."""
    changed = (z != problem.x).flatten(1)
    gain = (g * (z - problem.x)).flatten(1).masked_fill(~changed, torch.inf)
    rank = gain.argsort(dim=1, stable=True).argsort(dim=1).view_as(z)
    low, high = torch.zeros_like(rows), changed.sum(1)
    for _ in range(math.ceil(math.log2(max(int(high.max()), 2)))):
        middle = (low + high) // 2
        near = torch.where(rank < middle.view(-1, *[1] * (z.ndim - 1)), problem.x, z)
        done = judge(problem, nearest, rows, near, clear)
        low, high = torch.where(done, middle, low), torch.where(done, high, middle)
