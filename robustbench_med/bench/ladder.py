"""The ladder: one attack at rising radii, at little more than the cost of its hardest rung.

Two orders, named by the attack's card:

ascend: smallest radius first; a sample broken at one rung is not attacked above it. Exact for every
attack.

descend: largest radius first. A sample that stands there is taken to stand at every smaller radius
too, because the smaller ball lies inside the larger one; so each sample pays for at most one
failing run, and successes stop early. What an attack misses in the large ball it may still find in
a small one. Hence two
safeguards: the failed candidate is pulled into each smaller ball and judged there, and a keyed draw
of the inferred (sample, rung) pairs is attacked in earnest. If one of those breaks, all inferred
pairs are.

In both orders a sample broken at one rung counts as broken above it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from robustbench_med.bench.record import LadderAudit
from robustbench_med.errors import InvalidOutputError
from robustbench_med.metrics.perturbation import psnr, ssim
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Rows

Attack = Callable[[Problem, Draws], Images]
Columns = dict[str, Tensor]  # name -> (b, ...): what was measured of every sample at one rung
AUDITED = 1 / 16  # share of inferred pairs that is attacked in earnest


def ascend(
    problem: Problem, attack: Attack, rng: Draws, ladder: Sequence[float], depth: int
) -> list[Columns]:
    """Return the columns of each rung, smallest radius first."""
    rungs: list[Columns] = []
    rows = _every_row(problem)
    for eps in ladder:
        columns = _attack_rows(problem, attack, rng, eps, rows, depth)
        if rungs:
            columns = {
                name: value.index_copy(0, rows, columns[name]) for name, value in rungs[-1].items()
            }
        rungs.append(columns)
        rows = (~columns["broken"]).nonzero()[:, 0]
    return rungs


def descend(
    problem: Problem, attack: Attack, rng: Draws, ladder: Sequence[float], depth: int
) -> tuple[list[Columns], LadderAudit]:
    """Return the columns of each rung, smallest radius first, and how the inference was checked."""
    found: list[Columns] = []
    inferred: list[Bool[Tensor, " b"]] = []
    z, rows = problem.x, _every_row(problem)
    for eps in reversed(ladder):
        here = problem.at(eps)
        z = here.ball.project(z, here.x)
        z[rows] = attack(here.take(rows), at_rung(rng, eps).take(rows))
        columns = measure(here, z, depth)
        stood = torch.ones(len(problem), dtype=torch.bool, device=z.device)
        stood[rows] = False
        inferred.append(stood)
        rows = rows[columns["broken"][rows]]
        found.append(columns)
    rungs = found[::-1]
    _carry(rungs)
    return rungs, _audit(problem, attack, rng, ladder, depth, rungs, inferred[::-1])


def measure(problem: Problem, z: Images, depth: int) -> Columns:
    """Return what the judge and the ball say of candidates `z`, a tensor `(b, ...)` a name.

    Raises:
        InvalidOutputError: the judge returned NaN or Inf.
    """
    output, x = problem.outputs(z), problem.x
    if not torch.isfinite(output.logits).all():
        raise InvalidOutputError("expected finite logits, got NaN or Inf on an attacked image")
    broken = problem.objective(output, problem.y).done
    rounded = torch.zeros_like(broken)
    rows = broken.nonzero()[:, 0]
    if len(rows):
        levels = 2**depth - 1
        rounded[rows] = problem.take(rows).probe((z[rows] * levels).round() / levels).done
    flat = (z - x).flatten(1)
    return {
        "logits": output.logits,
        "broken": broken,
        "rounded": rounded,
        "size": problem.ball.size(z, x),
        "linf": flat.abs().amax(1),
        "l2": flat.norm(dim=1),
        "lowest": z.flatten(1).amin(1),
        "highest": z.flatten(1).amax(1),
        "ssim": _chunked(ssim, z, x, problem.chunk),
        "psnr": _chunked(psnr, z, x, problem.chunk),
    }


def _chunked(of: Callable[[Images, Images], Tensor], z: Images, x: Images, chunk: int) -> Tensor:
    pairs = zip(z.split(chunk), x.split(chunk), strict=True)
    return torch.cat([of(a, b) for a, b in pairs])


def _every_row(problem: Problem) -> Rows:
    return torch.arange(len(problem), device=problem.x.device)


def at_rung(rng: Draws, eps: float) -> Draws:
    """Return the draws of one rung: they depend on its radius, not on the ladder it stands in."""
    return rng.fork("eps", repr(eps))


def _attack_rows(
    problem: Problem, attack: Attack, rng: Draws, eps: float, rows: Rows, depth: int
) -> Columns:
    here = problem.at(eps).take(rows)
    return measure(here, attack(here, at_rung(rng, eps).take(rows)), depth)


def _carry(rungs: list[Columns]) -> None:
    """Make a sample broken at one rung broken above it, by the image that broke it."""
    for below, above in zip(rungs, rungs[1:], strict=False):
        rows = (below["broken"] & ~above["broken"]).nonzero()[:, 0]
        for name in above:
            above[name][rows] = below[name][rows]


def _audit(
    problem: Problem,
    attack: Attack,
    rng: Draws,
    ladder: Sequence[float],
    depth: int,
    rungs: list[Columns],
    inferred: list[Bool[Tensor, " b"]],
) -> LadderAudit:
    drawn = rng.fork("ladder audit").uniform(len(ladder)) < AUDITED
    pairs = [stood & ~rung["broken"] for stood, rung in zip(inferred, rungs, strict=True)]
    total = sum(int(pair.sum()) for pair in pairs)

    def rerun(chosen: list[Bool[Tensor, " b"]]) -> tuple[int, int]:
        tried = broken = 0
        for rung, eps, pair in zip(rungs, ladder, chosen, strict=True):
            rows = (pair & ~rung["broken"]).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            columns = _attack_rows(problem, attack, rng, eps, rows, depth)
            tried, broken = tried + len(rows), broken + int(columns["broken"].sum())
            for name, value in columns.items():
                rung[name][rows] = value
        _carry(rungs)
        return tried, broken

    checked, broken = rerun([pair & drawn[:, i] for i, pair in enumerate(pairs)])
    if broken:
        rerun([pair & ~drawn[:, i] for i, pair in enumerate(pairs)])
    return LadderAudit(inferred=total, checked=checked, broken=broken, reran=bool(broken))
