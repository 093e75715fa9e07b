"""HopSkipJump: walk along the boundary by an estimated normal, asking for the label alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from robustbench_med.declarations import attack
from robustbench_med.label_oracle import LabelOracle, find_start
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, PerSample, Rows

from .boundary import Noise, estimate_normal, started, still_open, to_boundary, unit, values, wide

_STARTS = 25  # queries that look for a near success to start from
_MOST_STARTS = 100  # of a sample without one
_FIRST = 0.1  # delta of the first round, in image units; as in the authors' code
_LEAST = 1e-5  # root mean square of the least random change: less is lost in float32
_HALVINGS = 15  # halvings of a step that leaves the goal


@attack(
    title="HopSkipJump",
    summary="Estimates the normal of the boundary and steps along it; sees only the label.",
    source="Chen, Jordan, Wainwright, IEEE S&P 2020, Algorithm 2",
    version=1,
    aliases=("hsj", "hopskipjump"),
    norms=("l2", "linf"),
    threat="label",
    schedule="distance",
    positive=("queries", "directions"),
    effort=("queries",),
    cost=lambda queries: queries,
)
def hop_skip_jump(
    problem: Problem, *, rng: Draws, queries: int = 1000, directions: int = 100
) -> Images:
    """Return the nearest candidates that reach the goal, found by walking along the boundary.

    Each round moves the nearest success to the boundary, asks on which side random directions end
    there, steps in their mean direction into the goal, and goes back to the boundary. The attack
    asks only whether the goal is reached.

    Args:
        problem: the batch to attack. If the radius of its ball is finite, a sample is finished once
            a success is that near.
        rng: one random stream per sample; each direction forks its own.
        queries: how many images are shown to the victim per sample, the clean one included, >= 1.
        directions: random directions of the first round, >= 1; the t-th has sqrt(t) times as many.

    Returns:
        `(b, c, *s)` nearest success of each sample; the clean image where there is none.

    Raises:
        SpecError: a parameter is not positive.

    Source: Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
        IEEE S&P 2020: Algorithm 1 (bisection), 2 (the attack), eq. 16 (estimate), section III-C
        (theta, delta, step and number of directions).
    Deviations: The start is the first success among noise, the inverted image, grey levels and
        coarse patterns; the paper draws noise. Distances are bisected to theta times the distance,
        but not below float32's precision. A sample whose queries end within a round keeps what it
        has found.
    """
    if len(problem) == 0:
        return problem.x
    oracle = LabelOracle(problem, queries)
    find_start(oracle, rng, least=_STARTS, most=_MOST_STARTS)
    rows, z = started(oracle)
    for t in itertools.count(1):
        rows, z = still_open(oracle, rows, z)
        if len(rows) == 0:
            break
        z = _round(oracle, rows, z, rng.select(rows).fork("round", t), t, directions)
    return oracle.closest()


def _round(
    oracle: LabelOracle, rows: Rows, z: Images, rng: Draws, t: int, directions: int
) -> Images:
    """Return successes after the t-th round: to the boundary, and a step from there."""
    norm, d = oracle.ball.norm, values(oracle)[rows]
    power, noise, direction = _NORMS[norm]
    z = to_boundary(oracle, rows, z, d ** -(1 + power))
    size = oracle.ball.select(rows).size(z, oracle.x[rows])
    # before the first round the distance says nothing about the boundary near the image
    delta = torch.full_like(size, _FIRST) if t == 1 else size / d
    delta = torch.maximum(delta, _LEAST * d.sqrt())
    v = estimate_normal(oracle, rows, z, delta, round(directions * math.sqrt(t)), noise, rng)
    return _step(oracle, rows, z, direction(v), size / math.sqrt(t))


def _step(oracle: LabelOracle, rows: Rows, z: Images, v: Images, step: PerSample) -> Images:
    """Return images after a step, halved until the goal is reached; unmoved where it never is."""
    moved, part = z.clone(), torch.arange(len(rows), device=rows.device)
    for _ in range(_HALVINGS):
        part = part[oracle.left[rows[part]] > 0]
        if len(part) == 0:
            break
        shown = (z[part] + wide(step[part], z) * v[part]).clamp(0, 1)
        success = oracle.ask(shown, rows[part])
        moved[part[success]] = shown[success]
        step = step / 2
        part = part[~success]
    return moved


def _normal(rng: Draws, x: Images) -> Images:
    return rng.normal(*x.shape[1:])


def _uniform(rng: Draws, x: Images) -> Images:
    return rng.uniform(*x.shape[1:]) * 2 - 1


# theta is d to the power of -1 minus this; the random directions; the step along a normal
_NORMS: dict[str, tuple[float, Noise, Callable[[Images], Images]]] = {
    "l2": (0.5, _normal, unit),
    "linf": (1.0, _uniform, torch.sign),
}
