"""Steps that attacks by labels share: walk back to the boundary, and estimate its normal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.label_oracle import LabelOracle
from robustbench_med.rng import Draws
from robustbench_med.types import Images, PerSample, Rows

_FINEST = 2.0**-20  # a line is bisected no finer, because float32 cannot tell the images apart
Noise = Callable[[Draws, Images], Images]


def wide(values: Tensor, like: Images) -> Tensor:
    """Return one number per image, `(b,)`, so that it can be multiplied with images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def length(delta: Images) -> Float[Tensor, "b *one"]:
    """Return the Euclidean length of each image, `(b, 1, ...)`."""
    return wide(delta.flatten(1).norm(dim=1), delta)


def unit(delta: Images) -> Images:
    """Return each image with Euclidean length 1; 0 where it is 0."""
    return delta / length(delta).clamp_min(1e-12)


def to_boundary(oracle: LabelOracle, rows: Rows, z: Images, precision: PerSample) -> Images:
    """Return successes moved toward the clean images until the goal is just still reached.

    In L2 an image moves along the line to the clean image. In L-inf it is clipped to smaller and
    smaller cubes around the clean image.

    Args:
        oracle: answers the queries.
        rows: the sample of each image.
        z: `(r, c, *s)` successes.
        precision: `(r,)` fraction of the distance at which the bisection ends.
    """
    x, ball = oracle.x[rows], oracle.ball.select(rows)
    size = ball.size(z, x)

    def moved(t: PerSample, part: Tensor) -> Images:
        start = x[part]
        if ball.norm == "l2":
            return start + wide(t, start) * (z[part] - start)
        return ball.select(part).at(t * size[part]).project(z[part], start)

    low, high = torch.zeros_like(size), torch.ones_like(size)
    stop = precision.clamp_min(_FINEST)
    while True:
        part = (high - low > stop * high).nonzero()[:, 0]
        part = part[oracle.left[rows[part]] > 0]
        if len(part) == 0:
            break
        middle = (low[part] + high[part]) / 2
        success = oracle.ask(moved(middle, part), rows[part])
        high[part] = torch.where(success, middle, high[part])
        low[part] = torch.where(success, low[part], middle)
    every = torch.arange(len(rows), device=rows.device)
    return torch.where(wide(high == 1, z), z, moved(high, every))


def values(oracle: LabelOracle) -> Float[Tensor, " b"]:
    """Return how many values of each sample may change."""
    return oracle.ball.mask(torch.ones_like(oracle.x)).flatten(1).sum(1)


def started(oracle: LabelOracle) -> tuple[Rows, Images]:
    """Return the samples with a success whose search goes on, and these successes."""
    rows = oracle.open()
    rows = rows[oracle.size[rows].isfinite()]
    return rows, oracle.nearest[rows].clone()


def still_open(oracle: LabelOracle, rows: Rows, *state: Tensor) -> tuple[Tensor, ...]:
    """Return the samples whose search goes on, and their rows of each tensor."""
    keep = torch.isin(rows, oracle.open(rows))
    return rows[keep], *(tensor[keep] for tensor in state)


def estimate_normal(
    oracle: LabelOracle,
    rows: Rows,
    z: Images,
    delta: PerSample,
    count: int,
    noise: Noise,
    rng: Draws,
) -> Images:
    """Return an estimate of the direction in which images near the boundary reach the goal.

    Random directions are tried, and those that reach the goal are averaged against the others. The
    mean answer is subtracted first, which lowers the variance.

    Args:
        oracle: answers the queries.
        rows: the sample of each image.
        z: `(r, c, *s)` images near the boundary.
        delta: `(r,)` Euclidean length of the directions, in image units.
        count: number of directions, fewer where a sample has fewer queries left.
        noise: draws directions of any length for images.
        rng: the draws of these images.

    Returns:
        `(r, c, *s)` directions of any length; 0 where nothing was learned.

    Source: Chen, Jordan, Wainwright, "HopSkipJumpAttack", IEEE S&P 2020, eq. 9, 12 and 16.
    """
    counts = oracle.left[rows].clamp_max(count)
    answers, total = torch.zeros_like(delta), torch.zeros_like(z)
    weighted, steps = torch.zeros_like(z), wide(delta, z)
    at_once = max(1, oracle.at_once // max(len(rows), 1))
    for start in range(0, count, at_once):
        turns = range(start, min(start + at_once, count))
        asks = [(j < counts).nonzero()[:, 0] for j in turns]
        directions = []
        for j, part in zip(turns, asks, strict=True):
            u = oracle.ball.select(rows[part]).mask(noise(rng.select(part).fork(j), z[part]))
            shown = (z[part] + steps[part] * unit(u)).clamp(0, 1)
            directions.append((shown - z[part]) / steps[part])
        part, u = torch.cat(asks), torch.cat(directions)
        if len(part) == 0:
            break
        shown = (z[part] + steps[part] * u).clamp(0, 1)
        answer = oracle.ask(shown, rows[part], keep=False).to(z) * 2 - 1
        # one direction of each sample after another, so that sums do not depend on the batch
        for j, part in enumerate(asks):
            ends = sum(len(other) for other in asks[:j]), sum(len(other) for other in asks[: j + 1])
            phi = answer[slice(*ends)]
            answers[part] += phi
            total[part] += directions[j]
            weighted[part] += wide(phi, z) * directions[j]
    mean = answers / counts.clamp_min(1)
    # where all answers are the same, their mean says where the goal lies
    same = mean.abs() == 1
    return torch.where(wide(same, z), weighted, weighted - wide(mean, z) * total)
