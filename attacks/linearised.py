"""Shared by DeepFool and FAB: the nearest linearised boundary, the step to it, and the way back.

Near a candidate, the margin of every way to the goal is treated as linear. `nearest_way` returns
the way whose boundary is nearest, `least_move` the smallest change in the box [0,1] that reaches
it, and `shrink` moves a success back toward its clean image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.cards import Norm
from robustbench_med.problem import Problem
from robustbench_med.types import Images, PerSample

_CLEARANCE = 1e-4  # margin of a success, as a fraction of the clean margin
_ROUNDING = 2e-7  # rounding error of a value of an image: three times that of float32 near 1
_NUDGE = 0.01  # fraction of the bracket by which the search aims beyond the root
# The least L1 change moves a few values as far as the box allows, where the linear model no longer
# holds; smaller steps stay close to it. Of caps from 0.01 to 1, this one crossed the boundary with
# the smallest L1 norm on three phantom victims.
L1_CAP = 0.05
_MIN_GAIN = 1e-3  # a pass is not worth it if it shrinks the perturbation by a smaller fraction
_NEWTON_STEPS = 50  # at most; four or five are needed


class Way(NamedTuple):
    """The nearest linearised way to the goal of each sample.

    Attributes:
        margin: the margin of the way; above 0 where the goal is reached.
        slope: the gradient of the margin; 0 where no change is allowed.
        size: the dual norm of the slope over the values that can move; 0 if there is no way.
    """

    margin: PerSample
    slope: Images
    size: PerSample


def nearest_way(
    margins: Float[Tensor, "b n"],
    jacobian: Float[Tensor, "b n c *s"],
    z: Images,
    allowed: Images,
    norm: Norm,
) -> Way:
    """Return the way whose linearised boundary is nearest.

    The distance to a boundary is the margin divided by the dual norm of its slope.

    Args:
        margins: `(b, n)` margins at `z`; -inf where there is no way.
        jacobian: `(b, n, c, *s)` gradients of the margins.
        z: `(b, c, *s)` candidates.
        allowed: `(b, c, *s)` 1 where change is allowed, 0 elsewhere.
        norm: norm of the perturbation.
    """
    size = torch.stack(
        [
            slope_size(_free(jacobian[:, j] * allowed, margins[:, j], z), norm)
            for j in range(margins.shape[1])  # one way at a time, to keep memory low
        ],
        1,
    )
    distance = torch.where(size > 0, margins.abs() / size, torch.inf)
    distance = distance.nan_to_num(nan=torch.inf, posinf=torch.inf)
    pick = distance.argmin(1)[:, None]
    near = torch.isfinite(distance.gather(1, pick)[:, 0])
    rows = torch.arange(len(z), device=z.device)
    return Way(
        margins.gather(1, pick)[:, 0].nan_to_num(nan=0.0, neginf=0.0),
        jacobian[rows, pick[:, 0]] * allowed,
        size.gather(1, pick)[:, 0] * near,
    )


def clearance(clean: Way) -> PerSample:
    """Return by how much a success must clear the boundary, in logits, `(b,)`.

    Another batch size rounds differently, so the judge could reject a candidate on the boundary
    itself. A success must therefore exceed it by 1e-4 of the clean margin, or by the change that
    rounding the image can cause, whichever is larger.

    Args:
        clean: the nearest way at the clean images.
    """
    rounding = _ROUNDING * clean.slope.flatten(1).abs().sum(1)
    return torch.maximum(_CLEARANCE * clean.margin.abs(), rounding)


def least_move(
    x: Images, slope: Images, gain: PerSample, norm: Norm, *, cap: PerSample | float = 1.0
) -> Images:
    """Return the smallest change of `x` in [0,1] that raises a linear function by `gain`.

    If the box does not allow so large a gain, every value goes to the edge that gains. This is the
    point of the box nearest to the plane (Croce & Hein, ICML 2020, eq. 6).

    >>> x, slope = torch.tensor([[[0.5, 0.9]]]), torch.tensor([[[1.0, 1.0]]])
    >>> least_move(x, slope, torch.tensor([0.4]), "linf")  # the second value stops at 1
    tensor([[[0.3000, 0.1000]]])

    Args:
        x: `(b, c, *s)` images in [0,1].
        slope: `(b, c, *s)` gradient of the function.
        gain: `(b,)` by how much the function must rise, or fall if negative.
        norm: norm of the change.
        cap: largest change of one value, for each sample or for all.

    Source: The problem is eq. 5 of Croce & Hein. Its solution for L-inf and L2 is
        min(t u, room) with u = 1 or |slope|, for the t at which the plane is reached. The authors
        find t by sorting the values at which an entry stops; here Newton's method finds the same t
        in a few passes, because the gain is concave and piecewise linear in t. In L1, the steepest
        entries are used up first.
    """
    slope = slope * gain.sign().view(-1, *[1] * (x.ndim - 1))
    steep = slope.flatten(1).abs()
    peak = steep.amax(1).clamp_min(torch.finfo(x.dtype).tiny)
    steep, need = steep / peak[:, None], gain.abs() / peak
    room = torch.where(slope > 0, 1 - x, x).flatten(1) * (steep > 0)
    room = torch.minimum(room, torch.as_tensor(cap).to(room).reshape(-1, 1))
    if norm == "l1":
        move = _steepest_first(steep, room, need)
    else:
        move = _together(steep, room, need, (steep > 0).to(steep) if norm == "linf" else steep)
    return slope.sign() * move.view_as(slope)


def shrink(
    problem: Problem,
    z: Images,
    below: PerSample,
    above: PerSample,
    clear: PerSample,
    *,
    passes: int,
) -> Images:
    """Return successes nearer to the clean images, on the line from `z` to them.

    Args:
        problem: a problem in which all samples have succeeded.
        z: `(b, c, *s)` successful candidates.
        below: `(b,)` harm of the clean images, <= 0.
        above: `(b,)` harm of `z`, > 0.
        clear: `(b,)` harm above which a candidate succeeds.
        passes: largest number of forward passes.

    Source: the final search of Croce & Hein, ICML 2020, eq. 10, which takes the root of a linear
        interpolation of the harm.
    Deviations: The search aims at a point that lies 1 % of the bracket beyond the root, so that it
        succeeds where the harm is linear. If an end of the bracket stays twice, its harm is halved
        (the Illinois rule), so that both ends move where the harm is curved.
    """
    below, above = below - clear, above - clear
    low, high, last = torch.zeros_like(above), torch.ones_like(above), torch.zeros_like(above)
    best, change = z.clone(), z - problem.x
    rows, active = torch.arange(len(z), device=z.device), problem
    for _ in range(passes):
        fraction = _aim(below, above, low, high)
        # the other samples have hardly anything to gain
        open_rows = (fraction < high * (1 - _MIN_GAIN)).nonzero()[:, 0]
        if len(open_rows) == 0:
            break
        if len(open_rows) < len(rows):
            rows, active, change = rows[open_rows], active.select(open_rows), change[open_rows]
            state = (below, above, low, high, last, clear, fraction)
            below, above, low, high, last, clear, fraction = (value[open_rows] for value in state)
        trial = (active.x + fraction.view(-1, *[1] * (z.ndim - 1)) * change).clamp_(0, 1)
        harm = active.margins(trial).amax(1) - clear
        success = harm > 0
        best[rows[success]] = trial[success]
        # the Illinois rule: the harm of an end that stays for a second time is halved
        below = torch.where(success, torch.where(last > 0, below / 2, below), harm)
        above = torch.where(success, harm, torch.where(last < 0, above / 2, above))
        low, high = torch.where(success, low, fraction), torch.where(success, fraction, high)
        last = torch.where(success, 1.0, -1.0)
    return best


def _aim(below: PerSample, above: PerSample, low: PerSample, high: PerSample) -> PerSample:
    """Return a little more than the fraction of the change at which the harm would be 0.

    The harm is interpolated linearly.
    """
    root = low + (high - low) * (below / (below - above)).nan_to_num(nan=0.5).clamp(0, 1)
    return root + _NUDGE * (high - root)


def _free(slope: Images, margin: PerSample, z: Images) -> Images:
    """Return the slope, set to 0 where the box does not let a value move toward the plane."""
    toward = torch.where(margin > 0, -1.0, 1.0).view(-1, *[1] * (z.ndim - 1))
    return slope * torch.where(slope * toward > 0, z < 1, z > 0)


def slope_size(slope: Images, norm: Norm) -> PerSample:
    """Return the dual norm of a slope: how fast the function rises per unit of the norm.

    >>> slope_size(torch.tensor([[[3.0, -4.0]]]), "l2"), slope_size(torch.tensor([[[3.0]]]), "linf")
    (tensor([5.]), tensor([3.]))
    """
    flat = slope.flatten(1).abs()
    if norm == "linf":
        return flat.sum(1)
    peak = flat.amax(1)
    if norm == "l1":
        return peak
    # scaled by the largest entry, because the squares of small gradients would underflow
    tiny = torch.finfo(flat.dtype).tiny
    size: Tensor = peak * (flat / peak.clamp_min(tiny)[:, None]).norm(dim=1)
    return size


def _together(
    steep: Float[Tensor, "b d"],
    room: Float[Tensor, "b d"],
    need: PerSample,
    speed: Float[Tensor, "b d"],
) -> Float[Tensor, "b d"]:
    """Return min(t speed, room) for the t at which its product with `steep` sums to `need`."""
    rate, largest_gain = steep * speed, steep * room
    top = torch.finfo(steep.dtype).max ** 0.5  # in place of inf, because inf * 0 is NaN
    t = torch.zeros_like(need)
    stopped: Bool[Tensor, "b d"] = speed * t[:, None] > room
    for _ in range(_NEWTON_STEPS):
        gained = torch.where(stopped, largest_gain, 0.0).sum(1)
        slope = torch.where(stopped, 0.0, rate).sum(1)
        t = ((need - gained) / slope).nan_to_num(nan=0.0, posinf=top).clamp(0, top)
        beyond = speed * t[:, None] > room
        if not bool((beyond & ~stopped).any()):
            break
        stopped = beyond
    return torch.minimum(speed * t[:, None], room)


def _steepest_first(
    steep: Float[Tensor, "b d"], room: Float[Tensor, "b d"], need: PerSample
) -> Float[Tensor, "b d"]:
    """Return a move that uses up the room of the steepest entries first."""
    order = steep.argsort(dim=1, descending=True)
    gain = (steep * room).gather(1, order)
    missing = need[:, None] - (gain.cumsum(1) - gain)  # gain still needed after steeper entries
    fraction = (missing / gain).nan_to_num(nan=0.0).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, fraction * room.gather(1, order))
