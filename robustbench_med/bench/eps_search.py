"""The ladder: one attack at rising radii, at little more than the cost of its hardest rung.

Three ways, named by the attack's card:

ascend: smallest radius first; a sample broken at one rung is not attacked above it. Exact for every
attack, and cheap for those of one step.

descend: every sample looks for its own lowest broken rung. A failed run costs all its steps, a
successful one stops early, so each sample should fail once: where it stands at a radius, it is
taken to stand at every smaller one, because the smaller ball lies inside the larger. The first rung
tried is the highest it would stand at by the linear estimate of its distance, or, for an attack
that asks for no gradients, the last; from there up or down by one. The last candidate, grown or
pulled into the next ball, is judged there first: an image that just failed at one radius mostly
breaks the next. What an attack misses in a large ball it may still find in a small one. Hence the
failed candidate is pulled into each smaller ball and judged there, and a keyed draw of the inferred
(sample, rung) pairs is attacked in earnest; if one of them breaks, all inferred pairs are.

distance: the attack minimises the norm itself. It runs once without a radius, and a sample is
broken at every rung its distance does not exceed; below, it keeps its clean image.

worst: of masks, whose harm has degrees. Every rung is attacked in earnest, and each sample keeps
the most harmful of what was found at this radius, at the smaller ones, and of the clean image: the
worst case of each image, never better at a larger radius.

A fifth way, `separately`, is for attackers who cannot tell which radius worked: there nothing is
carried; and for guarded victims, whose suspicion at each radius is of interest itself. In the
others, a sample broken at one rung counts as broken above it, by the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.bench.measurements import Measurements, Table, measure
from robustbench_med.bench.record import LadderAudit
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.stats.intervals import miss_bound
from robustbench_med.types import Images, Rows

Attack = Callable[[Problem, Draws], Images]
AUDITED = 1 / 16  # share of inferred pairs that is attacked in earnest
LEAST_AUDITED = 20  # of them on average, where there are as many: bounds the miss rate at 14 %


def ascend(
    problem: Problem, attack: Attack, rng: Draws, ladder: Sequence[float], depth: int
) -> Measurements:
    """Return the columns of all rungs, `(r, b, ...)` a name, smallest radius first."""
    table = Table(len(ladder), len(problem))
    streams = _streams(rng, ladder)
    rows = _every_row(problem)
    for i, eps in enumerate(ladder):
        here = problem.at(eps).select(rows)
        columns = measure(here, attack(here, Draws(streams[i, rows])), depth)
        table.put(i, rows, columns)
        rows = rows[~columns["success"]]
    table.carry()
    return table.columns


def separately(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    depth: int,
    *,
    carry: bool = False,
) -> Measurements:
    """Return the columns of all rungs, each attacked for itself.

    None is carried upward by attackers who cannot know which radius worked: those of a surrogate,
    of one perturbation for all images. With `carry`, an image that stands at a radius and broke at
    a smaller one counts as broken, by that image.
    """
    table, rows = Table(len(ladder), len(problem)), _every_row(problem)
    for i, eps in enumerate(ladder):
        here = problem.at(eps)
        table.put(i, rows, measure(here, attack(here, at_rung(rng, eps)), depth))
    if carry:
        table.carry()
    return table.columns


def worst(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    depth: int,
    rest: Measurements,
) -> Measurements:
    """Return the columns of all rungs, each with the most harmful candidate of every sample.

    Args:
        problem: of masks.
        attack: as it is applied.
        rng: one stream a sample.
        ladder: rising radii.
        depth: bits a pixel is stored with.
        rest: of the clean images: an attacker may leave an image as it is.
    """
    table, streams = Table(len(ladder), len(problem)), _streams(rng, ladder)
    # what was lost before the attack is not its doing
    everyone, best = _every_row(problem), rest | {"success": torch.zeros_like(rest["success"])}
    for i, eps in enumerate(ladder):
        rows = everyone[~best["done"]]
        here = problem.at(eps).select(rows)
        columns = measure(here, attack(here, Draws(streams[i, rows])), depth)
        columns["success"] &= ~rest["success"][rows]
        worse = columns["harm"] > best["harm"][rows]
        table.put(i, everyone, best)
        table.put(i, rows[worse], {name: value[worse] for name, value in columns.items()})
        best = {name: value[i].clone() for name, value in table.columns.items()}
    return table.columns


def descend(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    depth: int,
    *,
    guess: bool = True,
) -> tuple[Measurements, LadderAudit]:
    """Return the columns of all rungs as `ascend` does, and how the inference was checked.

    `guess` the first rung by a gradient; without one, every sample starts at the largest radius:
    the rungs it is broken at are the cheap ones, and it still fails only once.
    """
    table = Table(len(ladder), len(problem))
    streams, radii = _streams(rng, ladder), problem.x.new_tensor(ladder)
    stands = torch.full_like(_every_row(problem), -1)  # highest rung a sample stands at
    falls = torch.full_like(stands, len(ladder))  # lowest rung it is broken at
    ran = torch.zeros(len(ladder), len(problem), dtype=torch.bool, device=problem.x.device)
    failed, near = problem.x.clone(), problem.x.clone()  # candidates at `stands`; at the last rung
    turn = _first_rung(problem, radii) if guess else torch.full_like(stands, len(ladder) - 1)
    known = False
    while len(rows := (falls - stands > 1).nonzero()[:, 0]):
        if known:  # the last candidate may decide the next rung, for one forward pass
            rows = rows[~_judge(problem, near, radii, turn, rows, depth, table, falls)]
        rung = turn[rows]
        here = problem.select(rows).at(radii[rung])
        z = attack(here, Draws(streams[rung, rows]))
        columns = measure(here, z, depth)
        table.put(rung, rows, columns)
        ran[rung, rows], broken, known = True, columns["success"], True
        falls[rows[broken]] = rung[broken]
        stands[rows[~broken]] = rung[~broken]
        failed[rows[~broken]] = z[~broken]
        turn[rows] = torch.where(broken, rung - 1, rung + 1)
        grown = (radii[turn[rows].clamp(0, len(radii) - 1)] / radii[rung]).clamp_min(1)
        near[rows] = here.x + (z - here.x) * grown.view(-1, *[1] * (z.ndim - 1))
    inferred = ~ran & (torch.arange(len(ladder), device=stands.device)[:, None] < stands)
    for i, eps in enumerate(ladder):  # the failed image, pulled in and judged
        rows = inferred[i].nonzero()[:, 0]
        here = problem.at(eps).select(rows)
        table.put(i, rows, measure(here, here.ball.project(failed[rows], here.x), depth))
    table.carry()
    return table.columns, _audit(problem, attack, streams, radii, depth, table, inferred)


def by_distance(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    depth: int,
    rest: Measurements,
) -> tuple[Measurements, Float[Tensor, " b"]]:
    """Return the columns of all rungs as `ascend` does, and each sample's distance, inf where none.

    `rest` are those of the clean images: what a sample keeps below its distance.
    """
    here = problem.at(torch.inf)
    found = measure(here, attack(here, rng), depth)
    distance = found["size"].masked_fill(~found["success"], torch.inf)
    table, rows = Table(len(ladder), len(problem)), _every_row(problem)
    for i, eps in enumerate(ladder):
        table.put(i, rows, rest)
        near = (distance <= eps).nonzero()[:, 0]
        table.put(i, near, {name: value[near] for name, value in found.items()})
    return table.columns, distance


def _first_rung(problem: Problem, radii: Float[Tensor, " r"]) -> Rows:
    """Return the highest rung each sample would stand at if its loss were linear, `(b,)`."""
    g, verdict = problem.gradient(problem.x)
    slope = (g * problem.ball.steepest(g)).flatten(1).sum(1)  # the dual norm of the gradient
    return (torch.bucketize(-verdict.harm / slope, radii) - 1).clamp_min(0)


def _judge(
    problem: Problem,
    near: Images,
    radii: Float[Tensor, " r"],
    turn: Int[Tensor, " b"],
    rows: Rows,
    depth: int,
    table: Table,
    falls: Int[Tensor, " b"],
) -> Bool[Tensor, " rows"]:
    """Return which samples break at their next rung by the last candidate, grown or pulled in."""
    here = problem.select(rows).at(radii[turn[rows]])
    columns = measure(here, here.ball.project(near[rows], here.x), depth)
    broken = columns["success"]
    hit = rows[broken]
    table.put(turn[hit], hit, {name: value[broken] for name, value in columns.items()})
    falls[hit] = turn[hit]
    turn[hit] -= 1
    return broken


def _every_row(problem: Problem) -> Rows:
    return torch.arange(len(problem), device=problem.x.device)


def at_rung(rng: Draws, eps: float) -> Draws:
    """Return the draws of one rung: they depend on its radius, not on the ladder it stands in."""
    return rng.fork("eps", repr(eps))


def _streams(rng: Draws, ladder: Sequence[float]) -> Int[Tensor, "r b"]:
    """Return the keys of each sample's draws at each rung."""
    return torch.stack([at_rung(rng, eps).keys for eps in ladder])


def _audit(
    problem: Problem,
    attack: Attack,
    streams: Int[Tensor, "r b"],
    radii: Float[Tensor, " r"],
    depth: int,
    table: Table,
    inferred: Bool[Tensor, "r b"],
) -> LadderAudit:
    """Attack a keyed draw of the pairs inferred to stand; all of them if one of those breaks."""
    broken = table.columns["success"]
    pairs = inferred & ~broken
    total = int(pairs.sum())

    def attacked(chosen: Bool[Tensor, "r b"]) -> tuple[int, int]:
        rung, rows = (chosen & ~broken).nonzero().unbind(1)
        here = problem.select(rows).at(radii[rung])
        columns = measure(here, attack(here, Draws(streams[rung, rows])), depth)
        table.put(rung, rows, columns)
        table.carry()
        return len(rows), int(columns["success"].sum())

    lots = [Draws(keys).fork("ladder audit").uniform(1)[:, 0] for keys in streams]
    drawn = torch.stack(lots) < max(AUDITED, LEAST_AUDITED / max(total, 1))
    checked, fell = attacked(pairs & drawn)
    if fell:
        attacked(pairs & ~drawn)
    bound = 0.0 if fell or not total else miss_bound(checked)
    return LadderAudit(
        inferred=total, checked=checked, success=fell, reran=bool(fell), miss_bound=bound
    )
