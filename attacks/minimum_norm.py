"""Minimum norm: several minimum-norm attacks share the steps; in L0 a search by swaps follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.cards import Norm
from robustbench_med.declarations import attack
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.search import Nearest
from robustbench_med.types import Images, PerSample, Rows

from .fmn import CLEARANCE, fmn, fmn_leading
from .pdpgd import pdpgd
from .sigma_zero import sigma_zero

# the members of each norm and their percentages of the steps; L0 spends the rest by size
_MEMBERS: dict[Norm, tuple[tuple[Callable[..., Images], int], ...]] = {
    "l0": ((sigma_zero, 20), (fmn, 20)),
    "l1": ((fmn_leading, 40), (fmn, 30), (pdpgd, 30)),
    "l2": ((fmn, 60), (fmn_leading, 40)),
    "linf": ((fmn, 60), (fmn_leading, 40)),
}
_FEW = 10  # changed values above which FMN is given two thirds of what is left in L0
_ADDED, _REMOVED = 3, 2  # values to add and to remove that are tried together, each pair once
_SWAP_COST = (2 + _ADDED * _REMOVED) / 2  # of a swap, in passes forward and backward
_TABU = 6  # swaps during which a value that was swapped stays as it is


@attack(
    title="Minimum norm",
    summary="Minimum-norm attacks of several kinds share the steps; in L0 values are swapped last.",
    source="this bench",
    version=1,
    norms=("l2", "linf", "l1", "l0"),
    tasks=("single_label", "multi_label"),
    schedule="distance",
    positive=("steps",),
    effort=("steps",),
    cost=lambda steps: steps,
)
def minimum_norm(problem: Problem, *, rng: Draws, steps: int = 500) -> Images:
    """Return the nearest candidates that any of several attacks finds, in L0, L1, L2 or L-inf.

    Args:
        problem: the batch to attack; the radius of its ball is ignored.
        rng: unused; all attacks have the same signature.
        steps: gradient steps of all attacks together, >= 1.

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is not positive.

    Source: this bench. L2 and L-inf: FMN toward the nearest boundary, then toward the leading
        class. L1: both and PDPGD. L0: sigma-zero and FMN; FMN with more steps where more than ten
        values changed; and then a search that swaps values: it takes one changed value less than
        the best success, and exchanges a changed value for one of the steepest others until that
        succeeds too. Which member is nearest differs by image; see docs/optimality.md.
    """
    nearest, norm = Nearest(problem), problem.ball.norm
    for member, percent in _MEMBERS[norm]:
        _run(member, problem, nearest, rng, steps * percent // 100)
    if norm == "l0":
        left = steps * (100 - sum(percent for _, percent in _MEMBERS["l0"])) // 100
        many = nearest.size > _FEW
        _run(fmn, problem, nearest, rng, left * 2 // 3, many)
        swap(problem, nearest, int(left // 3 / _SWAP_COST), many)
        swap(problem, nearest, int(left / _SWAP_COST), ~many)
    return nearest.best


def _run(
    member: Callable[..., Images],
    problem: Problem,
    nearest: Nearest,
    rng: Draws,
    steps: int,
    which: Bool[Tensor, " b"] | None = None,
) -> None:
    """Run a member on the samples of `which`, all by default, and keep what is nearer."""
    rows = _unfinished(problem, nearest, which)
    if len(rows) == 0:
        return
    part = problem.select(rows)
    z = member(part, rng=rng.select(rows), steps=max(steps, 1))
    # a member returns a success, or the clean image, which may be one
    moved = (z != part.x).flatten(1).any(1)
    nearest.keep(z, moved | part.probe(z).is_final, rows)


def _unfinished(problem: Problem, nearest: Nearest, which: Bool[Tensor, " b"] | None) -> Rows:
    """Return the samples for which something nearer than the best success can exist."""
    is_open = nearest.size > (1 if problem.ball.norm == "l0" else 0)
    rows: Rows = (is_open if which is None else is_open & which).nonzero()[:, 0]
    return rows


class _Swaps(NamedTuple):
    """The state of the search by swaps, for every active sample."""

    z: Images  # candidates with one changed value less than the nearest success
    tabu: Float[Tensor, "r d"]  # the swap until which each value stays as it is


def swap(
    problem: Problem, nearest: Nearest, swaps: int, which: Bool[Tensor, " b"] | None = None
) -> None:
    """Look for successes with fewer changed values by exchanging single values.

    Args:
        problem: the problem in L0.
        nearest: successes to begin with; better ones are kept in it.
        swaps: how many exchanges are made, each after one gradient and six forward passes.
        which: `(b,)` the samples that are searched; None = all.
    """
    problem = replace(problem, objective=LossOverride(problem.objective, "margin"))
    rows = _unfinished(problem, nearest, which)
    rows = rows[nearest.size[rows].isfinite()]
    if len(rows) == 0:
        return
    clear = CLEARANCE * problem.probe(problem.x).harm.abs()
    z = nearest.best[rows]
    state = _Swaps(z, torch.zeros_like(z.flatten(1)))
    for count in range(swaps):
        still_open = (nearest.size[rows] > 1).nonzero()[:, 0]
        rows, state = rows[still_open], _Swaps(*(value[still_open] for value in state))
        if len(rows) == 0:
            return
        active = problem.select(rows)
        g = active.ball.mask(active.gradient(state.z)[0]).flatten(1)
        state = _without_one(active, state, g, nearest.size[rows])
        state = _best_swap(active, nearest, rows, clear, state, g, count)


def _without_one(problem: Problem, state: _Swaps, g: Tensor, size: PerSample) -> _Swaps:
    """Restore the values that matter least where as many changed as in the nearest success."""
    z, x = state.z.flatten(1), problem.x.flatten(1)
    changed = z != x
    excess = changed.sum(1) - size + 1
    gain = (g * (z - x)).masked_fill(~changed, torch.inf)
    rank = gain.argsort(dim=1, stable=True).argsort(dim=1)
    kept = torch.where(rank < excess[:, None], x, z)
    return state._replace(z=kept.view_as(state.z))


def _best_swap(
    problem: Problem,
    nearest: Nearest,
    rows: Rows,
    clear: PerSample,
    state: _Swaps,
    g: Tensor,
    count: int,
) -> _Swaps:
    """Exchange the pair of values after which the margin is largest; keep successes."""
    z, x = state.z.flatten(1), problem.x.flatten(1)
    changed, free = z != x, state.tabu <= count
    edge = (g > 0).to(z)
    gain = (g * (edge - z)).masked_fill(changed | ~free, -torch.inf)
    loss = (g * (z - x)).masked_fill(~changed, torch.inf)
    loss = torch.where(free | ~changed, loss, loss + loss.abs() + 1e6)  # rather not a recent one
    add = gain.topk(min(_ADDED, z.shape[1]), dim=1).indices
    remove = loss.topk(min(_REMOVED, z.shape[1]), dim=1, largest=False).indices
    best, chosen, pair = (
        torch.full_like(clear[rows], -torch.inf),
        z,
        torch.stack([add[:, 0]] * 2, 1),
    )
    few = changed.sum(1) + 1 < nearest.size[rows]  # room for one more value
    for i in add.T:
        for j in remove.T:
            moved = z.scatter(1, i[:, None], edge.gather(1, i[:, None]))
            kept = few | (i == j) | ~changed.gather(1, j[:, None])[:, 0]
            back = torch.where(kept[:, None], moved.gather(1, j[:, None]), x.gather(1, j[:, None]))
            moved = moved.scatter(1, j[:, None], back)
            candidate = moved.view_as(state.z)
            verdict = problem.probe(candidate)
            nearest.keep(candidate, verdict.is_final & (verdict.harm > clear[rows]), rows)
            better = verdict.harm > best
            best = torch.where(better, verdict.harm, best)
            chosen = torch.where(better[:, None], moved, chosen)
            pair = torch.where(better[:, None], torch.stack([i, j], 1), pair)
    tabu = state.tabu.scatter(1, pair, float(count + 1 + _TABU))
    return _Swaps(chosen.view_as(state.z), tabu)
