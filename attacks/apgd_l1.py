"""APGD-L1: sparse ascent projected exactly on the intersection of the L1 ball and the box."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.declarations import attack
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import phases, with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, PerSample

# radii in units of eps, and their percentages of the steps: Croce & Hein, ICML 2021, section 3.2
_STAGES = ((3.0, 30), (2.0, 30), (1.0, 40))
_FEWER = 1.5  # a step changes the number of changed values over this: algorithm 1
_SHRINK, _LEAST_STEP = 1.5, 0.1  # of the step, in units of eps: algorithm 1
_SETTLED = 0.95  # share of the changed values above which their number has settled: algorithm 1
_CHECK = 4  # in % of the steps: algorithm 1


@attack(
    title="APGD-L1",
    summary="Ascends along the few values with the steepest slope; their number adapts itself.",
    source="Croce & Hein, ICML 2021, algorithm 1",
    version=1,
    aliases=("l1_apgd",),
    norms=("l1",),
    schedule="descend",
    positive=("steps", "restarts"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts: steps * restarts,
)
def apgd_l1(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
    wide: bool = True,
) -> Images:
    """Return the best candidates of a sparse gradient ascent in an L1 ball and the box [0,1].

    Args:
        problem: the batch to attack; the attack is targeted if the objective is.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, >= 1.
        restarts: independent runs from random starts, >= 1; only samples that are still robust are
            attacked again.
        loss: the loss to maximise, as for `apgd`.
        wide: whether the ascent begins in balls of three and two times the radius, each for 30 % of
            the steps.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task has no such loss.

    Source: Croce & Hein, ICML 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image
        classifiers", algorithm 1, with the radii of their section 3.2.
    Deviations: A value at the edge of the box toward which its slope points is not among those
        that a step changes, because the projection would undo it. Among equal slopes the first
        are taken, so that no more values change than stated. With fewer than four steps there are
        no wider balls. The candidate with the most harm is returned, not the one with the highest
        loss. A sample stops when it is final in the ball itself; in the wider balls it does not.
        All tasks are supported, see `apgd`.
    """
    parts = phases(with_loss(problem, loss), steps)
    search = Search(parts[0][0])
    for restart, (part, count) in product(range(restarts), parts):
        if search.finished:
            break
        search.active = part.select(search.rows)
        noise = rng.select(search.rows).fork("restart", restart)
        _climb(search, noise.normal(*problem.x.shape[1:]).to(problem.x), count, wide)
    return search.best


def project_in_box(
    delta: Images, x: Images, eps: float | Float[Tensor, " b"]
) -> Float[Tensor, "b c *s"]:
    """Return the Euclidean projection of changes on the L1 ball and the box at once.

    It is exact, unlike the projection on the ball followed by clipping, whose result has a norm
    below eps where pixels are near 0 or 1.

    Args:
        delta: `(b, c, *s)` changes of the images.
        x: `(b, c, *s)` clean images in [0,1].
        eps: radius, or `(b,)` one for each image.

    Returns:
        `(b, c, *s)` the nearest changes with an L1 norm of at most eps that keep `x` in [0,1].

    Source: Croce & Hein, ICML 2021, section 2.1. Each value shrinks by the same amount, down to 0,
        after which it is cut at the box; the amount solves a piecewise linear equation, whose kinks
        are sorted.
    """
    flat, size = delta.flatten(1).double(), delta.flatten(1).double().abs()
    room = torch.where(delta > 0, 1 - x, x).flatten(1).double()
    radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x))[:, None]
    # a value is worth `room` up to the first kink, then falls, and is 0 from the second on
    kinks, order = torch.cat([(size - room).clamp_min(0), size], 1).sort(dim=1)
    turns = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    falling = turns.gather(1, order).cumsum(1)  # values that fall after each kink
    drops = falling[:, :-1] * kinks.diff(dim=1)
    whole = size.minimum(room).sum(1, keepdim=True)
    left = whole - torch.cat([torch.zeros_like(whole), drops.cumsum(1)], 1)  # norm at each kink
    last = (left >= radius).sum(1, keepdim=True).clamp_min(1) - 1
    over = (left.gather(1, last) - radius) / falling.gather(1, last).clamp_min(1)
    shrink = torch.where(whole > radius, kinks.gather(1, last) + over, torch.zeros_like(whole))
    found = flat.sign() * (size - shrink).clamp_min(0).minimum(room)
    return found.to(delta.dtype).view_as(delta)


class _Track(NamedTuple):
    """The state of every active sample."""

    best: Images  # the iterate with the highest loss
    slope: Images  # the gradient there
    highest: PerSample  # the loss there
    rel_stepsize: PerSample  # the step in units of eps
    changed: PerSample  # changed values at the last checkpoint
    sparsity: PerSample  # values that a step changes


def _climb(search: Search, noise: Images, steps: int, wide: bool) -> None:
    """Run the stages on the active samples, from a random point of the widest ball."""
    stages = _STAGES if wide and steps > len(_STAGES) else _STAGES[-1:]
    ends = [-(-steps * percent // 100) for _, percent in stages[:-1]]
    counts = [*ends, steps - sum(ends)]
    z = search.active.x + noise
    for (factor, _), count in zip(stages[:-1], counts, strict=False):
        inner = search.active.at(search.active.ball.eps * factor)
        # a success in a wider ball counts for nothing
        posed = replace(inner, objective=LossOverride(inner.objective, use_all_steps=True))
        z = _ascend(Search(posed), _inside(posed, z), count)
    last = search.active
    _ascend(search, _inside(last, z), counts[-1], judge_last=True)


def _ascend(search: Search, z: Images, steps: int, *, judge_last: bool = False) -> Tensor:
    """Run algorithm 1 once on the active samples, from `z`; return the iterates of most loss."""
    track, every = _start(search.active, z), max(_CHECK * steps // 100, 1)
    for k in range(steps):
        g, z, *state = search.gradient(z, *track)
        if search.finished:
            return z
        track = _updated(_Track(*state), z, g, search.loss)
        if k and k % every == 0:
            z, g, track = _checkpoint(search.active, track, z, g)
        z = _step(search.active, z, g, track)
    if judge_last:
        search.probe(z)
    return track.best


def _start(problem: Problem, z: Images) -> _Track:
    changed = (z != problem.x).flatten(1).sum(1).to(z)
    low, one = torch.full_like(changed, -torch.inf), torch.ones_like(changed)
    return _Track(z, torch.zeros_like(z), low, one, changed, changed / _FEWER)


def _updated(track: _Track, z: Images, g: Images, loss: PerSample) -> _Track:
    """Return the track after a new iterate."""
    better = loss > track.highest
    row = _per_image(better, z)
    return track._replace(
        best=torch.where(row, z, track.best),
        slope=torch.where(row, g, track.slope),
        highest=torch.where(better, loss, track.highest),
    )


def _checkpoint(
    problem: Problem, track: _Track, z: Images, g: Images
) -> tuple[Images, Images, _Track]:
    """Return `z`, `g` and the track after a checkpoint.

    While the number of changed values of the best iterate falls, the step is eps and the sample
    goes back to that iterate; where it has settled, the step shrinks.
    """
    changed = (track.best != problem.x).flatten(1).sum(1).to(z)
    falls = changed < _SETTLED * track.changed
    shrunk = (track.rel_stepsize / _SHRINK).clamp_min(_LEAST_STEP)
    after = track._replace(
        rel_stepsize=torch.where(falls, torch.ones_like(shrunk), shrunk),
        changed=changed,
        sparsity=changed / _FEWER,
    )
    row = _per_image(falls, z)
    return torch.where(row, track.best, z), torch.where(row, track.slope, g), after


def _step(problem: Problem, z: Images, g: Images, track: _Track) -> Images:
    """Return `z` after a step of equal size along the values with the steepest slope."""
    g = problem.ball.mask(g)
    g = torch.where((g > 0) & (z < 1) | (g < 0) & (z > 0), g, torch.zeros_like(g))
    steepest = Ball("l0", track.sparsity.floor().clamp_min(1)).bound(g).sign()
    unit = steepest / _per_image(steepest.flatten(1).abs().sum(1).clamp_min(1), z)
    length = track.rel_stepsize * torch.as_tensor(problem.ball.eps, device=z.device)
    return _inside(problem, z + _per_image(length, z) * unit)


def _inside(problem: Problem, z: Images) -> Images:
    """Return the projection of `z` on the ball, what may change and the box."""
    delta = problem.ball.mask(z - problem.x)
    return (problem.x + project_in_box(delta, problem.x, problem.ball.eps)).clamp(0, 1)


def _per_image(values: Tensor, like: Images) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
