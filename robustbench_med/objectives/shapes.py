"""Shapes: masks that an attacker may draw in place of an organ, in two and three dimensions.

A drawn shape is centred on the organ it replaces, or on the image where the organ is absent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.errors import SpecError

Organ = Bool[Tensor, "b *s"]
Positions = Float[Tensor, "b n *s"]  # of each pixel from the shape's centre; 1 = half its height


def replaced(
    y: Int[Tensor, "b *s"], label: int, mask: str, *, size: float = 0.4, by: int = 3
) -> Int[Tensor, "b *s"]:
    """Return masks in which class `label` has another shape; the pixels it leaves are background.

    Args:
        y: the truth; where it is -1, so is the result.
        label: the class id replaced.
        mask: "heart", "disc", "cross", "shrink", "grow", "move" or "empty".
        size: height of a heart, disc or cross, as a fraction of the image's height.
        by: by how many pixels an organ shrinks, grows or moves (to the right; negative: left).
    """
    organ = y == label
    drawn = _moved(mask, organ, by) if mask in _MOVED else _SHAPES[mask](_positions(organ, size))
    target = y.masked_fill(organ, 0).masked_fill(drawn, label)
    return torch.where(y < 0, y, target)


def check(mask: str, *, size: float, by: int, side: int) -> None:
    """Raise SpecError unless such a mask can be drawn in an image of that smallest side."""
    if mask not in (*_SHAPES, *_MOVED):
        raise SpecError(f"expected mask in {', '.join((*_SHAPES, *_MOVED))}, got {mask!r}")
    if not 0 < size <= 1:
        raise SpecError(f"expected size in (0, 1], got {size}")
    if mask in ("shrink", "grow") and by < 1:
        raise SpecError(f"expected by >= 1 pixels to {mask}, got {by}")
    if mask == "move" and by == 0:
        raise SpecError("expected by != 0 pixels to move, got 0")
    if mask in _MOVED and abs(by) >= side:
        raise SpecError(f"expected by below {side} pixels, the smallest side, to {mask}, got {by}")


def _positions(organ: Organ, size: float) -> Positions:
    """Return the position of each pixel from the organ's centre, in the order of the image axes."""
    sides = organ.shape[1:]
    axes = [torch.arange(n, device=organ.device, dtype=torch.float32) for n in sides]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    weight = organ.flatten(1).float()
    middle = torch.tensor([(n - 1) / 2 for n in sides], device=organ.device)
    centre = weight @ grid.flatten(1).T / weight.sum(1, keepdim=True).clamp_min(1)
    centre = torch.where(organ.flatten(1).any(1)[:, None], centre, middle)
    half = size * sides[-2] / 2
    return (grid[None] - centre.view(*centre.shape, *[1] * len(sides))) / half


def _heart(position: Positions) -> Organ:
    """Return the heart curve (x^2 + y^2 - 1)^3 = x^2 y^3; in 3-D Taubin's surface (1994)."""
    right, up = position[:, -1] * 1.2, -position[:, -2] * 1.2 + 0.1
    if position.shape[1] == 2:
        return (right**2 + up**2 - 1) ** 3 - right**2 * up**3 <= 0
    deep = position[:, 0] * 1.2
    round_ = right**2 + 2.25 * deep**2 + up**2 - 1
    return round_**3 - right**2 * up**3 - 9 / 80 * deep**2 * up**3 <= 0


def _disc(position: Positions) -> Organ:
    return position.square().sum(1) <= 1


def _cross(position: Positions) -> Organ:
    near, far = 1 / 3, position.abs().amax(1) <= 1
    thin = (position.abs() <= near).sum(1) >= position.shape[1] - 1
    return thin & far


def _empty(position: Positions) -> Organ:
    return torch.zeros_like(position[:, 0], dtype=torch.bool)


_SHAPES: dict[str, Callable[[Positions], Organ]] = {
    "heart": _heart,
    "disc": _disc,
    "cross": _cross,
    "empty": _empty,
}
_MOVED = ("shrink", "grow", "move")


def _moved(mask: str, organ: Organ, by: int) -> Organ:
    if mask == "grow":
        return _dilated(organ, by)
    if mask == "shrink":
        return ~_dilated(~organ, by)
    side = organ.shape[-1]
    column = torch.arange(side, device=organ.device) - by
    inside = (column >= 0) & (column < side)
    return organ[..., column.clamp(0, side - 1)] & inside


def _dilated(organ: Organ, by: int) -> Organ:
    """Return the organ grown by `by` pixels in every direction, diagonals included.

    The axes are grown one after another. The result is the same as for all at once, with
    3 (2 by + 1) operations per pixel instead of (2 by + 1)^3.
    """
    axes = organ.ndim - 1
    pool = functional.max_pool2d if axes == 2 else functional.max_pool3d
    grown: Tensor = organ[:, None].float()
    for axis in range(axes):
        wide = [2 * by + 1 if a == axis else 1 for a in range(axes)]
        grown = pool(grown, wide, stride=1, padding=[w // 2 for w in wide])
    return grown[:, 0] > 0
