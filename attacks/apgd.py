"""APGD: projected gradient ascent that adapts its step size, untargeted or target by target."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import phases, with_loss
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Search
from robustbench_med.types import Images, PerSample

_MOMENTUM = 0.75  # alpha: Croce & Hein, ICML 2020, section 3.1
_RISING_FRACTION = 0.75  # rho: section 3.2, condition 1
_FIRST_STEP = 2.0  # initial step in units of eps: section 3.2
# in % of the steps: the first checkpoint p_1, and how the gap to the next one shrinks (section 3.2)
_FIRST_CHECK, _GAP_DECREMENT, _MIN_GAP = 22, 3, 6


@attack(
    title="APGD",
    summary="Projected gradient ascent with momentum that halves its own steps, sample by sample.",
    source="Croce & Hein, ICML 2020, algorithm 1",
    version=2,
    aliases=("apgd_ce", "auto_pgd"),
    norms=("linf", "l2"),
    schedule="descend",
    positive=("steps", "restarts"),
    effort=("steps", "restarts"),
    cost=lambda steps, restarts: steps * restarts,
)
def apgd(
    problem: Problem,
    *,
    rng: Draws,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross_entropy",
) -> Images:
    """Return the best candidates of a gradient ascent that adapts its step size for each sample.

    Args:
        problem: the batch to attack; the attack is targeted if the objective is.
        rng: one random stream per sample; each restart forks its own.
        steps: gradient steps per restart, >= 1.
        restarts: independent runs from random starts, >= 1; only samples that are still robust are
            attacked again.
        loss: the loss to maximise: "cross_entropy" (the objective's own loss); for labels and
            findings also "margin" (the largest logit margin) or "dlr" (the margin divided by a
            scale of the leading logits; the margin itself where there is no third class); for
            masks, see `objectives.pixels.with_loss`.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive, or the task has no such loss.

    Source: Croce & Hein, ICML 2020, algorithm 1 with alpha = 0.75 and a first step of 2 eps; the
        checkpoints and conditions 1 (rho = 0.75) and 2 are those of section 3.2, the losses those
        of section 4. The objective gives its cross-entropy as log-odds. This is a monotone map of
        each sample's cross-entropy, so the steps and all comparisons of one sample's losses are the
        paper's, and nothing underflows.
    Deviations: A checkpoint is judged at iterate w_j, which is the last one that its condition 1
        counts, and not one step later. The candidate with the most harm is returned, not the one
        with the highest loss. A sample stops when it is final. All tasks are supported. The paper
        has one label per image; with several findings, "cross_entropy" attacks the nearest one (see
        `objectives.nearest`) with half of the steps, and then the sum of all.
    """
    stages = phases(with_loss(problem, loss), steps)
    search = Search(stages[0][0])
    for restart, (stage, count) in product(range(restarts), stages):
        if search.finished:
            break
        search.active = stage.select(search.rows)
        ascend(
            search, _random_point(search, rng.select(search.rows).fork("restart", restart)), count
        )
    return search.best


@attack(
    title="APGD, targeted",
    summary="APGD toward one wrong class after another, the nearest first.",
    source="Croce & Hein, ICML 2020, section 4.2",
    version=1,
    aliases=("apgd_t",),
    norms=("linf", "l2"),
    tasks=("single_label", "multi_label"),
    schedule="descend",
    positive=("steps", "targets"),
    effort=("steps", "targets"),
    cost=lambda steps, targets: steps * targets,
)
def apgd_targeted(problem: Problem, *, rng: Draws, steps: int = 100, targets: int = 9) -> Images:
    """Return the best candidates of APGD toward one way to the goal after another.

    Args:
        problem: the batch to attack.
        rng: one random stream per sample; each target forks its own.
        steps: gradient steps per target, >= 1.
        targets: how many ways to the goal are tried, >= 1, starting with the nearest at the clean
            image. With K classes there are at most K - 1. Only samples that are still robust go on
            to the next.

    Returns:
        `(b, c, *s)` candidates in the ball: for each sample, the iterate with the most harm.

    Raises:
        SpecError: a parameter is not positive.

    Source: Croce & Hein, ICML 2020, section 4.2 and eq. 7: APGD on the targeted DLR loss toward
        each of the likeliest wrong classes; 9 of them, once each, as in AutoAttack (section 6).
    Deviations: Those of `apgd`. The attack also works with fewer than 4 classes and for findings
        (see LossOverride): the ways are the columns of the margins, and a margin of -inf is not a
        target.
    """
    margins, ways = problem.margins(problem.x).sort(dim=1, descending=True, stable=True)
    return climb_each(problem, margins, ways[:, :targets], rng, steps)


def climb_each(
    problem: Problem,
    margins: Float[Tensor, "b m"],
    ways: Int[Tensor, "b n"],
    rng: Draws,
    steps: int,
) -> Images:
    """Return the best candidates of APGD toward one way to the goal after another.

    Args:
        problem: the batch to attack.
        margins: `(b, m)`, m >= n, in the order of `ways`; where one is -inf there is no such way.
        ways: `(b, n)` columns of the margins, the first to try first.
        rng: one random stream per sample; each way forks its own.
        steps: gradient steps per way.
    """
    search = Search(problem)
    for n in range(ways.shape[1]):
        open_rows = (margins[search.rows, n] > -torch.inf).nonzero()[:, 0]  # an n-th way exists
        if len(open_rows) == 0:
            break
        rows, z = search.rows[open_rows], search.active.x.clone()
        inner_problem = search.active.select(open_rows)
        toward = LossOverride(inner_problem.objective, "toward", ways[rows, n])
        inner = Search(replace(inner_problem, objective=toward))
        ascend(inner, _random_point(inner, rng.select(rows).fork("target", n)), steps)
        z[open_rows] = inner.best
        search.probe(z)
    return search.best


class _Track(NamedTuple):
    """The state of APGD for every active sample."""

    previous: Images  # the iterate before
    best: Images  # the iterate with the highest loss
    slope: Images  # the gradient there
    highest: PerSample  # the loss there
    last: PerSample  # the loss at the iterate before
    mark: PerSample  # the highest loss at the last checkpoint
    rises: PerSample  # steps since the last checkpoint on which the loss rose
    rel_stepsize: PerSample  # the step in units of eps
    halved: Bool[Tensor, " b"]  # whether the step was halved at the last checkpoint


def _random_point(search: Search, rng: Draws) -> Images:
    """Return random starts for the active samples; `rng` holds their streams in the same order."""
    return search.active.ball.sample(search.active.x, rng)


def ascend(search: Search, z: Images, steps: int) -> None:
    """Run algorithm 1 once on the active samples, from `z`."""
    track, checks, since = _start(z), _checkpoints(steps), 0
    for k in range(steps):
        g, z, *state = search.gradient(z, *track)
        if search.finished:
            return
        track = _updated(_Track(*state), z, g, search.loss)
        if k == 0:  # the start does not count as a rise; the first checkpoint compares with it
            track = track._replace(mark=track.highest, rises=torch.zeros_like(track.rises))
        elif k in checks:
            z, g, track = _checkpoint(track, z, g, k - since)
            since = k
        ball, x = search.active.ball, search.active.x
        ahead = ball.step(z, g, x, track.rel_stepsize)
        weight = _MOMENTUM if k else 1.0
        moved = z + weight * (ahead - z) + (1 - weight) * (z - track.previous)
        track, z = track._replace(previous=z), ball.project(moved, x)
    search.probe(z)


def _start(z: Images) -> _Track:
    zero = z.new_zeros(len(z))
    low = zero - torch.inf
    first = zero + _FIRST_STEP
    return _Track(z, z, torch.zeros_like(z), low, low, low, zero, first, zero > 0)


def _updated(track: _Track, z: Images, g: Images, loss: PerSample) -> _Track:
    """Return the track after a new iterate."""
    better = loss > track.highest
    row = _per_image(better, z)
    return track._replace(
        best=torch.where(row, z, track.best),
        slope=torch.where(row, g, track.slope),
        highest=torch.where(better, loss, track.highest),
        last=loss,
        rises=track.rises + (loss > track.last),
    )


def _checkpoint(track: _Track, z: Images, g: Images, length: int) -> tuple[Images, Images, _Track]:
    """Return `z`, `g` and the track after a checkpoint.

    A sample with too little progress goes back to its best iterate and halves its step. Progress
    is too little if the loss rose on too few of the `length` steps since the last checkpoint
    (condition 1), or if the step was not halved there and no higher loss was reached since
    (condition 2).
    """
    halve = track.rises < _RISING_FRACTION * length
    halve |= ~track.halved & (track.highest <= track.mark)
    row = _per_image(halve, z)
    after = track._replace(
        last=torch.where(halve, track.highest, track.last),
        mark=track.highest,
        rises=torch.zeros_like(track.rises),
        rel_stepsize=torch.where(halve, track.rel_stepsize / 2, track.rel_stepsize),
        halved=halve,
    )
    return torch.where(row, track.best, z), torch.where(row, track.slope, g), after


def _checkpoints(steps: int) -> set[int]:
    """Return the iterates w_j = ceil(p_j steps) at which progress is judged.

    >>> sorted(_checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    iterates, p, gap = set[int](), _FIRST_CHECK, _FIRST_CHECK
    while p < 100:
        iterates.add(-(-p * steps // 100))  # p is in whole %: 0.7 * 100 is not 70 in floats
        gap = max(gap - _GAP_DECREMENT, _MIN_GAP)
        p += gap
    return iterates


def _per_image(values: Tensor, like: Images) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
