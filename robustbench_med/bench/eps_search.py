"""Run one attack at all radii of a ladder, at little more than the cost of a single radius.

`ascend` starts at the smallest radius. An image with a success at one rung is not attacked at
larger radii. That is exact for every attack, and cheap for attacks of one step.

`descend` searches the lowest success of each image separately. A failure costs all steps and a
success stops early, so each image should fail once. An image that is robust at a radius is inferred
to be robust at every smaller one, because the larger ball contains the smaller. The search starts
at the highest rung at which the image should be robust by the linear estimate of its distance, or
at the last rung for an attack without gradients; from there it moves by one rung at a time. The
last candidate is first scaled to the next ball and judged there, because a candidate that just
failed at one radius mostly succeeds at the next. An attack that fails in a large ball may still
succeed in a small one. Therefore the failed candidate is projected into each smaller ball and
judged there, and a random sample of the inferred (image, rung) pairs is attacked; if one of those
is a success, all inferred pairs are attacked.

`by_distance` is for attacks that minimise the norm. They run once without a radius. The candidate
counts as a success at every radius of at least its distance; at smaller ones the image stays clean.

`worst` is for masks, where harm has degrees. Every rung is attacked, and each image keeps the most
harmful candidate of this radius, of the smaller ones and the clean image. That is the worst case of
each image, and it never gets better at a larger radius.

`separately` attacks every radius independently. It is for attackers who cannot know at which radius
they succeed, and for victims with a detector, whose suspicion is measured at each radius.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustbench_med.bench.measurements import Measurements, Table, measure
from robustbench_med.bench.record import LadderAudit
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import images_of
from robustbench_med.stats.intervals import miss_bound
from robustbench_med.stored_images import shards
from robustbench_med.types import Images, Rows

Attack = Callable[[Problem, Draws], Any]  # returns Images, or Shifted for a shift
AUDITED = 1 / 16  # fraction of the inferred pairs that is attacked
LEAST_AUDITED = 20  # at least so many on average, which bounds the miss rate at 14 %


def ascend(
    problem: Problem, attack: Attack, rng: Draws, ladder: Sequence[float], levels: int
) -> Measurements:
    """Return the measurements of all rungs, `(r, b, ...)` by name, smallest radius first."""
    table = Table(len(ladder), len(problem))
    streams = _streams(rng, ladder)
    rows = _every_row(problem)
    for i, eps in enumerate(ladder):
        subproblem = problem.at(eps).select(rows)
        columns = measure(subproblem, attack(subproblem, Draws(streams[i, rows])), levels)
        table.put(i, rows, columns)
        rows = rows[~columns["success"]]
    table.carry()
    return table.columns


def separately(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    levels: int,
    *,
    carry: bool = False,
) -> Measurements:
    """Return the measurements of all rungs, each attacked independently.

    With `carry`, a success at a smaller radius counts at larger radii too, by the same candidate.
    This is not for attackers who cannot know at which radius they succeed: those with a surrogate,
    or with one perturbation for all images.
    """
    table, rows = Table(len(ladder), len(problem)), _every_row(problem)
    for i, eps in enumerate(ladder):
        at_radius = problem.at(eps)
        table.put(i, rows, measure(at_radius, attack(at_radius, at_rung(rng, eps)), levels))
    if carry:
        table.carry()
    return table.columns


def worst(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    levels: int,
    clean: Measurements,
) -> Measurements:
    """Return the measurements of all rungs, each of the most harmful candidate of every image.

    Args:
        problem: a problem on masks.
        attack: the attack as it is applied.
        rng: one random stream for each image.
        ladder: rising radii.
        levels: steps between the stored values behind 0 and 1.
        clean: the measurements of the clean images, since an attacker may leave an image unchanged.
    """
    table, streams = Table(len(ladder), len(problem)), _streams(rng, ladder)
    # if the clean image reaches the goal, this is no success of the attack
    every_row, best = _every_row(problem), clean | {"success": torch.zeros_like(clean["success"])}
    for i, eps in enumerate(ladder):
        rows = every_row[~best["done"]]
        subproblem = problem.at(eps).select(rows)
        columns = measure(subproblem, attack(subproblem, Draws(streams[i, rows])), levels)
        columns["success"] &= ~clean["success"][rows]
        worse = columns["harm"] > best["harm"][rows]
        table.put(i, every_row, best)
        table.put(i, rows[worse], {name: value[worse] for name, value in columns.items()})
        best = {name: value[i].clone() for name, value in table.columns.items()}
    return table.columns


def descend(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    levels: int,
    *,
    guess: bool = True,
) -> tuple[Measurements, Bool[Tensor, "r b"]]:
    """Return the measurements of all rungs as `ascend` does, and which pairs were inferred.

    `check_inferred` checks these pairs of a rung and an image.

    With `guess`, a gradient determines the first rung. Without, every image starts at the largest
    radius: rungs with a success are cheap, and each image still fails only once.
    """
    table = Table(len(ladder), len(problem))
    streams, radii = _streams(rng, ladder), problem.x.new_tensor(ladder)
    robust_rung = torch.full_like(_every_row(problem), -1)  # highest rung with a failure
    success_rung = torch.full_like(robust_rung, len(ladder))  # lowest rung with a success
    ran = torch.zeros(len(ladder), len(problem), dtype=torch.bool, device=problem.x.device)
    # the candidates at `robust_rung`, and those of the last rung scaled to the next
    failed, scaled = problem.x.clone(), problem.x.clone()
    next_rung = (
        _first_rung(problem, radii) if guess else torch.full_like(robust_rung, len(radii) - 1)
    )
    first = True
    while len(rows := (success_rung - robust_rung > 1).nonzero()[:, 0]):
        if not first:  # the last candidate may decide the next rung, for one forward pass
            success = _judge_scaled(
                problem, scaled, radii, next_rung, rows, levels, table, success_rung
            )
            rows = rows[~success]
        rung = next_rung[rows]
        subproblem = problem.select(rows).at(radii[rung])
        z = images_of(attack(subproblem, Draws(streams[rung, rows])))
        columns = measure(subproblem, z, levels)
        table.put(rung, rows, columns)
        ran[rung, rows], success, first = True, columns["success"], False
        success_rung[rows[success]] = rung[success]
        robust_rung[rows[~success]] = rung[~success]
        failed[rows[~success]] = z[~success]
        next_rung[rows] = torch.where(success, rung - 1, rung + 1)
        scale = (radii[next_rung[rows].clamp(0, len(radii) - 1)] / radii[rung]).clamp_min(1)
        x = subproblem.x
        scaled[rows] = x + (z - x) * scale.view(-1, *[1] * (z.ndim - 1))
    rungs = torch.arange(len(ladder), device=robust_rung.device)
    inferred = ~ran & (rungs[:, None] < robust_rung)
    for i, eps in enumerate(ladder):  # the failed candidate, pulled in and judged
        rows = inferred[i].nonzero()[:, 0]
        subproblem = problem.at(eps).select(rows)
        z = subproblem.ball.project(failed[rows], subproblem.x)
        table.put(i, rows, measure(subproblem, z, levels))
    table.carry()
    return table.columns, inferred


def by_distance(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    levels: int,
    clean: Measurements,
) -> tuple[Measurements, Float[Tensor, " b"]]:
    """Return the measurements of all rungs and the distance of each image, inf without a success.

    `clean` holds the measurements of the clean images, which count at radii below the distance.
    """
    unbounded = problem.at(torch.inf)
    nearest = measure(unbounded, attack(unbounded, rng), levels)
    # if the clean image reaches the goal, as a mask may, this is no success of the attack
    nearest["success"] &= ~clean["success"]
    clean = clean | {"success": torch.zeros_like(clean["success"])}
    distance = nearest["size"].masked_fill(~nearest["success"], torch.inf)
    table, rows = Table(len(ladder), len(problem)), _every_row(problem)
    for i, eps in enumerate(ladder):
        table.put(i, rows, clean)
        inside = (distance <= eps).nonzero()[:, 0]
        table.put(i, inside, {name: value[inside] for name, value in nearest.items()})
    return table.columns, distance


def _first_rung(problem: Problem, radii: Float[Tensor, " r"]) -> Rows:
    """Return the highest rung at which each image is robust if its loss is linear, `(b,)`."""
    g, verdict = problem.gradient(problem.x)
    slope = (g * problem.ball.steepest(g)).flatten(1).sum(1)  # the dual norm of the gradient
    return (torch.bucketize(-verdict.harm / slope, radii) - 1).clamp_min(0)


def _judge_scaled(
    problem: Problem,
    scaled: Images,
    radii: Float[Tensor, " r"],
    next_rung: Int[Tensor, " b"],
    rows: Rows,
    levels: int,
    table: Table,
    success_rung: Int[Tensor, " b"],
) -> Bool[Tensor, " rows"]:
    """Return on which images the last candidate, scaled to the next rung, is a success."""
    subproblem = problem.select(rows).at(radii[next_rung[rows]])
    z = subproblem.ball.project(scaled[rows], subproblem.x)
    columns = measure(subproblem, z, levels)
    success = columns["success"]
    hit = rows[success]
    table.put(next_rung[hit], hit, {name: value[success] for name, value in columns.items()})
    success_rung[hit] = next_rung[hit]
    next_rung[hit] -= 1
    return success


def _every_row(problem: Problem) -> Rows:
    return torch.arange(len(problem), device=problem.x.device)


def at_rung(rng: Draws, eps: float) -> Draws:
    """Return the draws of one rung, which depend on its radius and not on the other rungs."""
    return rng.fork("eps", repr(eps))


def _streams(rng: Draws, ladder: Sequence[float]) -> Int[Tensor, "r b"]:
    """Return the keys of each image's draws at each rung."""
    return torch.stack([at_rung(rng, eps).keys for eps in ladder])


def check_inferred(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    levels: int,
    columns: Measurements,
    inferred: Bool[Tensor, "r b"],
) -> tuple[Measurements, LadderAudit]:
    """Attack a random sample of the pairs inferred to be robust; all pairs if one is a success.

    Args:
        problem: all attacked images of the case.
        attack: the attack as it is applied.
        rng: one random stream for each image.
        ladder: rising radii.
        levels: steps between the stored values behind 0 and 1.
        columns: the measurements of all rungs.
        inferred: which pairs were inferred.

    Returns:
        The measurements with those of the pairs that were attacked, and the result of the check.
    """
    table, streams = Table.of(columns), _streams(rng, ladder)
    radii = torch.tensor(ladder, device=inferred.device)
    success = table.columns["success"]
    pairs = inferred & ~success
    total = int(pairs.sum())

    def attack_pairs(drawn: Bool[Tensor, "r b"]) -> tuple[int, int]:
        every_rung, every_row = (drawn & ~success).nonzero().unbind(1)
        successes = 0
        for part in shards(every_row, problem.x):
            rung, rows = every_rung[part], every_row[part]
            subproblem = problem.select(rows).at(radii[rung])
            measured = measure(subproblem, attack(subproblem, Draws(streams[rung, rows])), levels)
            table.put(rung, rows, measured)
            successes += int(measured["success"].sum())
        table.carry()
        return len(every_row), successes

    lots = [Draws(keys).fork("ladder audit").uniform(1)[:, 0] for keys in streams]
    drawn = torch.stack(lots) < max(AUDITED, LEAST_AUDITED / max(total, 1))
    checked, successes = attack_pairs(pairs & drawn)
    if successes:
        attack_pairs(pairs & ~drawn)
    bound = 0.0 if successes or not total else miss_bound(checked)
    audit = LadderAudit(
        inferred=total, checked=checked, success=successes, reran=bool(successes), miss_bound=bound
    )
    return table.columns, audit
