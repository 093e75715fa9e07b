"""Geometry: the patient lies otherwise, or tissue is deformed. Masks move along."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift
from .splines import basis, spline


@attack(
    title="Affine",
    summary="Another position, angle or size of the patient.",
    source="Pérez-García et al., CMPB 2021",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "degrees", "scale", "move"),
    effort=("draws", "steps"),
    cost=passes,
)
def affine(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    degrees: float = 15.0,
    scale: float = 0.15,
    move: float = 0.1,
) -> Shifted:
    """Return images that are rotated, scaled and moved; masks move along.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        degrees: largest rotation at severity 1, in degrees, > 0.
        scale: largest logarithm of the scale at severity 1, > 0.
        move: largest translation at severity 1, in units of each side, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Pérez-García et al., "TorchIO", CMPB 2021, RandomAffine; volumes are rotated in the
    plane of a slice. Images are interpolated linearly and repeat their border, masks take the
    nearest pixel.
    """
    family = _affine_family(tuple(problem.x.shape[2:]), degrees, scale, move)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Elastic",
    summary="Soft tissue that is deformed smoothly.",
    source="Rueckert et al., IEEE TMI 1999",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "points", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def elastic(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    points: int = 6,
    strength: float = 0.05,
) -> Shifted:
    """Return images deformed by a cubic B-spline on a coarse grid; masks move along.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        points: coefficients along each axis, >= 4.
        strength: largest displacement along each axis at severity 1, in units of its side, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Rueckert et al., IEEE TMI 1999 (free-form deformation). Images are
    interpolated linearly and repeat their border, masks take the nearest pixel.
    """
    family = _elastic_family(tuple(problem.x.shape[2:]), points, strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


Grid = Callable[[Tensor], Tensor]  # parameters (1, p) -> where each pixel comes from, (1, *s, axes)


def _moving(size: int, grid_of: Grid) -> Family:
    """Return the family of the images that are read at the places of a grid."""

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        grid = grid_of(theta.to(x))
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=True)

    def move(y: Tensor, theta: Tensor, draws: Draws) -> Tensor:
        grid = grid_of(theta).float()
        # ids are whole numbers that float32 holds; -1 (not counted) moves along too
        read = functional.grid_sample(
            y[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=True
        )
        return read[:, 0].to(y.dtype)

    return Family(size, apply, move=move)


def _identity(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return the places of the pixels in [-1,1], `(1, *shape, axes)`, the last axis first."""
    lines = [torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1], -1)[None]


def _affine_family(shape: tuple[int, ...], degrees: float, scale: float, move: float) -> Family:
    height, width = shape[-2] - 1, shape[-1] - 1

    def grid_of(theta: Tensor) -> Tensor:
        angle, size = math.radians(degrees) * theta[0, 0], (scale * theta[0, 1]).exp()
        grid = _identity(shape, theta)
        # in units of pixels, so that a rotation keeps shapes
        x, y = grid[..., 0] * width, grid[..., 1] * height
        turned = torch.stack(
            [
                (angle.cos() * x + angle.sin() * y) / width,
                (angle.cos() * y - angle.sin() * x) / height,
                *grid[..., 2:].unbind(-1),
            ],
            -1,
        )
        return turned / size - 2 * move * theta[0, 2:]

    return _moving(2 + len(shape), grid_of)


def _elastic_family(shape: tuple[int, ...], points: int, strength: float) -> Family:
    axes = len(shape)
    basis(shape[0], points)  # refuses too few points, also for no image at all

    def grid_of(theta: Tensor) -> Tensor:
        coefficients = strength * theta.reshape(axes, -1)
        moved = spline(coefficients, shape, points)
        return _identity(shape, theta) + 2 * moved.movedim(0, -1)[None]

    return _moving(axes * points**axes, grid_of)
