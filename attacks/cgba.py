"""CGBA: walk along a semicircle to a nearer boundary, asking for the label alone."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.label_oracle import LabelOracle, find_start
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, PerSample, Rows

from .boundary import (
    Noise,
    estimate_normal,
    started,
    still_open,
    to_boundary,
    unit,
    values,
    wide,
)

_STARTS = 25  # queries that look for a near success to start from
_MOST_STARTS = 100  # of a sample without one
_SIGMA = 2e-4  # root mean square of a random change, in image units: as in the authors' code
_PRECISION = 1e-4  # fraction of the distance to which the first boundary is bisected
_ANGLE = 1e-3  # radians to which a boundary on a semicircle is bisected
_FEWEST = 4  # frequencies along each axis
_HALVINGS = 10  # halvings of an angle at which the goal is not reached


@attack(
    title="CGBA",
    summary="Follows a semicircle toward the estimated normal; sees only the label.",
    source="Reza, Rahmati, Wu, Dai, ICCV 2023, Algorithms 1 and 2",
    version=1,
    norms=("l2",),
    threat="label",
    schedule="distance",
    positive=("queries", "directions", "frequencies"),
    effort=("queries",),
    cost=lambda queries: queries,
)
def cgba(
    problem: Problem,
    *,
    rng: Draws,
    queries: int = 1000,
    directions: int = 30,
    frequencies: float = 0.125,
) -> Images:
    """Return the nearest candidates that reach the goal, found along semicircles.

    The plane of a round holds the direction to the nearest success and the estimated normal of the
    boundary there. Every point of the semicircle in that plane, from the success to the clean
    image, is nearer than the success. The attack bisects where the semicircle leaves the goal. It
    asks only whether the goal is reached.

    Args:
        problem: the batch to attack. If the radius of its ball is finite, a sample is finished once
            a success is that near.
        rng: one random stream per sample; each direction forks its own.
        queries: how many images are shown to the victim per sample, the clean one included, >= 1.
        directions: random directions of the first round, >= 1; the t-th has sqrt(t) times as many.
        frequencies: fraction of the frequencies along each axis, the lowest first, of which random
            directions are made, in (0, 1], but at least 4. On two shipped victims an
            eighth came 3.7 and 1.7 times nearer than all (medians of 8 images, 500 queries).

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is out of range.

    Source: Reza, Rahmati, Wu, Dai, "CGBA: Curvature-aware Geometric Black-box Attack", ICCV 2023:
        Algorithm 1 (the attack) and 2 (boundary search along a semicircular path); 30 directions
        and changes of 2e-4 are those of the authors' code.
    Deviations: The start is the first success among noise, the inverted image, grey levels and
        coarse patterns. The semicircle is searched by its angle. The normal is that of
        HopSkipJump, whose mean answer is subtracted. Random directions keep an eighth of the
        frequencies, not a quarter.
    """
    if not frequencies <= 1:
        raise SpecError(f"expected frequencies <= 1, got {frequencies}")
    if len(problem) == 0:
        return problem.x
    oracle = LabelOracle(problem, queries)
    find_start(oracle, rng, least=_STARTS, most=_MOST_STARTS)
    rows, z = started(oracle)
    z = to_boundary(oracle, rows, z, torch.full_like(oracle.size[rows], _PRECISION))
    noise = _low(frequencies)
    for t in itertools.count(1):
        rows, z = still_open(oracle, rows, z)
        if len(rows) == 0:
            break
        draws, count = rng.select(rows).fork("round", t), round(directions * math.sqrt(t))
        delta = _SIGMA * values(oracle)[rows].sqrt()
        normal = estimate_normal(oracle, rows, z, delta, count, noise, draws)
        z = _along_semicircle(oracle, rows, z, normal)
    return oracle.closest()


def _along_semicircle(oracle: LabelOracle, rows: Rows, z: Images, normal: Images) -> Images:
    """Return the images at which the semicircles toward the normals leave the goal."""
    x = oracle.x[rows]
    v = unit(z - x)
    distance = (z - x).flatten(1).norm(dim=1)
    along = (normal * v).flatten(1).sum(1)
    across = unit(normal - wide(along, v) * v)

    def at(angle: PerSample, part: Tensor) -> Images:
        cos, sin = wide(angle.cos(), z), wide(angle.sin(), z)
        direction = cos * v[part] + sin * across[part]
        return (x[part] + wide(distance[part], z) * cos * direction).clamp(0, 1)

    # the direction of the normal, but no farther than the clean image
    high = torch.atan2((normal * across).flatten(1).sum(1), along).clamp(0, math.pi / 2)
    low, failed = torch.zeros_like(high), torch.zeros_like(high, dtype=torch.bool)
    middle = high.clone()
    for turn in range(2 * _HALVINGS):
        narrow = failed & (high - low <= _ANGLE) | (turn > 0) & (low == high)
        part = (~narrow & (high > 0)).nonzero()[:, 0]
        part = part[oracle.left[rows[part]] > 0]
        if len(part) == 0:
            break
        success = oracle.ask(at(middle[part], part), rows[part])
        low[part] = torch.where(success, middle[part], low[part])
        high[part] = torch.where(success, high[part], middle[part])
        failed[part] |= ~success
        middle = (low + high) / 2
    every = torch.arange(len(rows), device=rows.device)
    return torch.where(wide(low > 0, z), at(low, every), z)


def _low(frequencies: float) -> Noise:
    """Return normal noise that is made of the lowest frequencies of each axis."""

    def noise(rng: Draws, x: Images) -> Images:
        if frequencies == 1:
            return rng.normal(*x.shape[1:])
        c, *size = x.shape[1:]
        kept = [min(length, max(_FEWEST, round(frequencies * length))) for length in size]
        drawn = rng.normal(c, *kept)
        for dim, (count, length) in enumerate(zip(kept, size, strict=True), start=2):
            waves = _cosines(length, count).to(x)
            drawn = torch.tensordot(drawn, waves, dims=([dim], [0])).movedim(-1, dim)
        return drawn

    return noise


def _cosines(length: int, count: int) -> Tensor:
    """Return the `count` lowest cosines of the orthogonal DCT-II, `(count, length)`."""
    k, n = torch.arange(count)[:, None], torch.arange(length)[None]
    waves = torch.cos(math.pi * k * (2 * n + 1) / (2 * length)) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves
