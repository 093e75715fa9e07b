"""Linearised: the nearest linearised way, the least move to it, and the way back.

What DeepFool and FAB share. Near a candidate every way's margin is taken for a plane: `nearest_way`
picks the closest, `least_move` goes there by the smallest change the box [0,1] allows, and `shrink`
walks a success back toward its clean image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_med.cards import Norm
from robustbench_med.problem import Problem
from robustbench_med.types import Images, PerSample

_CLEAR = 1e-4  # of the clean margin
_ROUNDING = 2e-7  # of each value of an image: thrice what float32 resolves near 1
_NUDGE = 0.01  # fraction of the way back to a known success: lands beyond the root, not on it
# the least L1 change moves a few values by all their room, where no slope holds; smaller steps keep
# to it: of 0.01 to 1, this one crossed with the smallest L1 norm on three phantom victims
L1_CAP = 0.05
_CLOSE = 1e-3  # a way back shorter than this fraction of the perturbation is not worth a pass
_TURNS = 50  # of Newton's method: four or five are needed


class Way(NamedTuple):
    """The nearest linearised way of each sample.

    Attributes:
        margin: its margin, below 0 where the goal is not reached.
        slope: its gradient; 0 where no change is allowed.
        size: dual norm of the slope where there is room to move; 0 where the way is closed.
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
    """Return the linearised way with the nearest plane: margin over the dual norm of its slope.

    Args:
        margins: `(b, n)` margins at `z`; -inf is no way.
        jacobian: `(b, n, c, *s)` their gradients.
        z: `(b, c, *s)` candidates.
        allowed: `(b, c, *s)` 1 where change is allowed, 0 elsewhere.
        norm: of the perturbation.
    """
    size = torch.stack(
        [
            _dual(_free(jacobian[:, j] * allowed, margins[:, j], z), norm)
            for j in range(margins.shape[1])  # one way at a time: memory of one gradient
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

    Another batch size rounds otherwise, and the judge would reject a candidate on the boundary
    itself. So a success must exceed it by 1e-4 of the clean margin, or by what the rounding of the
    image can change.

    Args:
        clean: the nearest way at the clean images.
    """
    rounding = _ROUNDING * clean.slope.flatten(1).abs().sum(1)
    return torch.maximum(_CLEAR * clean.margin.abs(), rounding)


def least_move(
    x: Images, slope: Images, gain: PerSample, norm: Norm, *, cap: PerSample | float = 1.0
) -> Images:
    """Return the smallest change of `x` in [0,1] that raises a linear function by `gain`.

    Where the box does not allow as much, every value goes to the side that gains: the point of the
    box nearest to the plane (Croce & Hein, ICML 2020, eq. 6).

    >>> x, slope = torch.tensor([[[0.5, 0.9]]]), torch.tensor([[[1.0, 1.0]]])
    >>> least_move(x, slope, torch.tensor([0.4]), "linf")  # the second value stops at 1
    tensor([[[0.3000, 0.1000]]])

    Args:
        x: `(b, c, *s)` images in [0,1].
        slope: `(b, c, *s)` gradient of the function.
        gain: `(b,)` by how much it must rise, or fall where negative.
        norm: of the change.
        cap: the most one value may change, of each sample or of all.

    Source: the problem is eq. 5 of Croce & Hein. Its solution for L-inf and L2 is
        min(t u, room) with u = 1 or |slope|, for the t that meets the plane; they find t by sorting
        the values at which an entry stops, here Newton's method finds the same t in a few passes
        (the gain is concave and piecewise linear in t). L1 fills the steepest entries first.
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
    """Return successes nearer to the clean images, on the line to them.

    Args:
        problem: of samples that all succeeded.
        z: `(b, c, *s)` their successful candidates.
        below: `(b,)` harm of the clean images, <= 0.
        above: `(b,)` harm of `z`, > 0.
        clear: `(b,)` harm above which a candidate succeeds.
        passes: forward passes spent, at most.

    Source: the final search of Croce & Hein, ICML 2020, eq. 10: the root of the harm's linear
        interpolation. Deviations: the point aimed at lies 1 % of the bracket beyond the root, so
        that it succeeds where the harm is linear; an end that stays twice has its harm halved (the
        Illinois rule), so that both ends close in where the harm is curved.
    """
    below, above = below - clear, above - clear
    low, high, last = torch.zeros_like(above), torch.ones_like(above), torch.zeros_like(above)
    best, change = z.clone(), z - problem.x
    rows, active = torch.arange(len(z), device=z.device), problem
    for _ in range(passes):
        fraction = _aim(below, above, low, high)
        # the others have nothing to gain
        open_rows = (fraction < high * (1 - _CLOSE)).nonzero()[:, 0]
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
        # the Illinois rule: an end that stays for a second time counts half
        below = torch.where(success, torch.where(last > 0, below / 2, below), harm)
        above = torch.where(success, harm, torch.where(last < 0, above / 2, above))
        low, high = torch.where(success, low, fraction), torch.where(success, fraction, high)
        last = torch.where(success, 1.0, -1.0)
    return best


def _aim(below: PerSample, above: PerSample, low: PerSample, high: PerSample) -> PerSample:
    """Return a little more than the fraction of the change at which a linear harm would be 0."""
    root = low + (high - low) * (below / (below - above)).nan_to_num(nan=0.5).clamp(0, 1)
    return root + _NUDGE * (high - root)


def _free(slope: Images, margin: PerSample, z: Images) -> Images:
    """Return the slope with 0 where the box leaves no room toward the plane."""
    toward = torch.where(margin > 0, -1.0, 1.0).view(-1, *[1] * (z.ndim - 1))
    return slope * torch.where(slope * toward > 0, z < 1, z > 0)


def _dual(slope: Images, norm: Norm) -> PerSample:
    flat = slope.flatten(1).abs()
    if norm == "linf":
        return flat.sum(1)
    peak = flat.amax(1)
    if norm == "l1":
        return peak
    # scaled by the largest entry: the squares of small gradients would vanish
    tiny = torch.finfo(flat.dtype).tiny
    size: Tensor = peak * (flat / peak.clamp_min(tiny)[:, None]).norm(dim=1)
    return size


def _together(
    steep: Float[Tensor, "b d"],
    room: Float[Tensor, "b d"],
    need: PerSample,
    speed: Float[Tensor, "b d"],
) -> Float[Tensor, "b d"]:
    """Return min(t speed, room) with the t at which steep times it sums to `need`."""
    rate, most = steep * speed, steep * room
    top = torch.finfo(steep.dtype).max ** 0.5  # for inf, which times 0 is NaN
    t = torch.zeros_like(need)
    stopped: Bool[Tensor, "b d"] = speed * t[:, None] > room
    for _ in range(_TURNS):
        gained = torch.where(stopped, most, 0.0).sum(1)
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
    missing = need[:, None] - (gain.cumsum(1) - gain)  # what the steeper entries have not gained
    fraction = (missing / gain).nan_to_num(nan=0.0).clamp(0, 1)
    return torch.zeros_like(room).scatter_(1, order, fraction * room.gather(1, order))
