"""Universal perturbations: one pattern, fitted on training images and applied to any others.

The pattern itself lies in the ball. Where an image's [0,1] box cuts a part of it off, the pattern
does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from robustbench_med.ball import Ball
from robustbench_med.errors import SpecError
from robustbench_med.rng import Draws
from robustbench_med.types import Images

Position = Literal["random", "centre", "corner"]
_FIXED: dict[str, float] = {"centre": 0.5, "corner": 0.0}  # fraction of the free range


@runtime_checkable
class Universal(Protocol):
    """A perturbation that does not depend on the image it is applied to."""

    @property
    def pattern(self) -> Float[Tensor, "c *s"]:
        """The pattern that is saved with the record."""
        ...

    def apply(self, x: Images, ball: Ball, rng: Draws) -> Images:
        """Return candidates `(b, c, *s)` in the ball and in [0,1]; `rng`: one stream per sample."""
        ...

    def control(self, ball: Ball, rng: Draws) -> Universal:
        """Return a random perturbation of equal norm; `rng` has one stream."""
        ...


def pattern_ball(ball: Ball) -> Ball:
    """Return the ball of the pattern: one radius, and the region that any of the images may change.

    Raises:
        SpecError: the images have different radii.
    """
    eps = torch.as_tensor(ball.eps).flatten()
    if len(eps) > 1 and not bool((eps == eps[0]).all()):
        raise SpecError(
            f"expected one eps for all images, got {float(eps.min()):g}..{float(eps.max()):g}"
        )
    region = None if ball.region is None else ball.region.any(0, keepdim=True)
    return replace(ball, eps=float(eps[0]) if len(eps) else 0.0, region=region)


@dataclass(frozen=True)
class Additive:
    """A pattern that is added to every image.

    Attributes:
        pattern: `(c, *s)` perturbation in image units, inside the norm's ball.
    """

    pattern: Float[Tensor, "c *s"]

    def apply(self, x: Images, ball: Ball, rng: Draws) -> Images:  # noqa: ARG002 - nothing is drawn
        """Return `x + pattern`, in the ball and in [0,1]."""
        return ball.project(x + self.pattern, x)

    def control(self, ball: Ball, rng: Draws) -> Additive:
        """Return a random direction of the pattern's norm: random signs, or a normal draw for L2.

        Raises:
            SpecError: a norm without such a control.
        """
        if ball.norm not in _DIRECTIONS:
            known = ", ".join(sorted(_DIRECTIONS))
            raise SpecError(f"expected a norm with a random control ({known}), got {ball.norm}")
        drawn = _DIRECTIONS[ball.norm](rng.fork("control"), tuple(self.pattern.shape))
        allowed = pattern_ball(ball)
        pattern = allowed.mask(self.pattern[None])
        size = allowed.size(pattern, torch.zeros_like(pattern))
        return Additive(allowed.at(size).full(drawn.to(pattern))[0])


_DIRECTIONS: dict[str, Callable[[Draws, tuple[int, ...]], Tensor]] = {
    "linf": lambda rng, shape: rng.uniform(*shape) - 0.5,
    "l2": lambda rng, shape: rng.normal(*shape),
}


@dataclass(frozen=True)
class Patch:
    """A square (or cube) of values that is pasted over a part of every image.

    Attributes:
        pattern: `(c, side, side[, side])` values in [0,1].
        scale: smallest and largest size of the pasted patch, as a fraction of the pattern's size.
        rotation: largest angle in degrees, to either side, in the plane of the last two axes.
        position: "random" (anywhere inside the image), "centre", or "corner" (the first).
    """

    pattern: Float[Tensor, "c *s"]
    scale: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    position: Position = "random"

    def apply(self, x: Images, ball: Ball, rng: Draws) -> Images:
        """Return `x` with the patch at a position drawn for each sample."""
        pasted, inside = self.paste(x, rng)
        # a turned square may hold more pixel centres than its area: the ball drops the smallest
        return ball.project(torch.where(inside, pasted, x), x)

    def control(self, ball: Ball, rng: Draws) -> Patch:  # noqa: ARG002 - the size is the pattern's
        """Return the patch with its values in a random order."""
        order = rng.fork("control").uniform(self.pattern.numel())[0].argsort()
        return replace(self, pattern=self.pattern.flatten()[order].view_as(self.pattern))

    def paste(
        self, x: Images, rng: Draws, patterns: Float[Tensor, "b c *t"] | None = None
    ) -> tuple[Images, Bool[Tensor, "b 1 *s"]]:
        """Return the patch pasted on canvases like `x`, and a mask of where it lies.

        Args:
            x: `(b, c, *s)` images; only their shape is used.
            rng: one stream per sample, for position, size and angle.
            patterns: one pattern per sample that replaces the patch's, to be differentiated.
        """
        grid = self._grid(tuple(x.shape[2:]), rng)
        pattern = self.pattern.expand(len(x), *self.pattern.shape)
        if patterns is not None:
            pattern = patterns
        pasted = functional.grid_sample(
            pattern, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        return pasted, (grid.detach().abs() < 1).all(-1)[:, None]

    def _grid(self, size: tuple[int, ...], rng: Draws) -> Float[Tensor, "b *s axes"]:
        """Return the position of each pixel in the pattern, -1..1 inside, last axis first."""
        axes, side = len(size), self.pattern.shape[-1]
        u = rng.fork("place").uniform(axes + 2)
        low, high = self.scale
        scale = low + (high - low) * u[:, 0]
        angle = math.radians(self.rotation) * (2 * u[:, 1] - 1)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.eye(axes, device=u.device).repeat(len(u), 1, 1)
        turn[:, -2, -2], turn[:, -2, -1] = cos, sin
        turn[:, -1, -2], turn[:, -1, -1] = -sin, cos
        # half the box around the turned square, along each axis, in pixels
        half = side * scale[:, None] / 2 * turn.abs().sum(2)
        centre = self._centre(u[:, 2:], half, size)
        ticks = [torch.arange(n, device=u.device, dtype=u.dtype) for n in size]
        pixels = torch.stack(torch.meshgrid(*ticks, indexing="ij"), -1)
        offset = pixels - centre.view(-1, *[1] * axes, axes)
        local = torch.einsum("b...i,bji->b...j", offset, turn)
        return (local * (2 / (side * scale)).view(-1, *[1] * (axes + 1))).flip(-1)

    def _centre(
        self, u: Float[Tensor, "b axes"], half: Float[Tensor, "b axes"], size: tuple[int, ...]
    ) -> Float[Tensor, "b axes"]:
        """Return the centre of the patch in pixels, so that its box lies inside the image."""
        position = u if self.position == "random" else torch.full_like(u, _FIXED[self.position])
        free = (torch.tensor(size, device=u.device) - 2 * half).clamp_min(0).floor()
        return half - 0.5 + (position * (free + 1)).floor().minimum(free)
