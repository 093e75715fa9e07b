"""Blur: Gaussian, and out of focus."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift


@attack(
    title="Gaussian blur",
    summary="A Gaussian filter, as of a soft kernel or a large focal spot.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def gaussian_blur(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.03,
) -> Shifted:
    """Return images behind a Gaussian filter along all axes.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: standard deviation at severity 1, in units of the shorter side, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, appendix B (Gaussian blur); the filter is cut at 4
    standard deviations of severity 1, and the border is repeated.
    """
    family = _gaussian_family(tuple(problem.x.shape[2:]), strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Defocus",
    summary="A disk as the image of a point, as of a camera or microscope out of focus.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def defocus(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.05,
) -> Shifted:
    """Return images in which each point is a disk; of volumes, slice by slice.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: radius of the disk at severity 1, in units of the shorter side of a slice, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3 (defocus blur); the edge of the disk is one
    pixel wide, so that its radius has a derivative.
    """
    family = _defocus_family(tuple(problem.x.shape[2:]), strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _gaussian_family(shape: tuple[int, ...], strength: float) -> Family:
    widest = strength * min(shape[-2:])
    reach = max(1, math.ceil(4 * widest))
    place = torch.arange(-reach, reach + 1)

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        variance = (widest * theta[0, 0]) ** 2
        weights = (-(place.to(x) ** 2) / (2 * variance).clamp_min(1e-6)).exp()
        weights = weights / weights.sum()
        for axis in range(2, x.ndim):
            x = _filtered(x, weights, axis)
        return x

    return Family(1, apply, signed=False)


def _filtered(x: Images, weights: Tensor, axis: int) -> Images:
    """Return images filtered along one axis; the border is repeated."""
    reach, size = len(weights) // 2, x.shape[axis]
    rows = torch.arange(-reach, size + reach, device=x.device).clamp(0, size - 1)
    padded = x.index_select(axis, rows)
    return torch.stack([w * padded.narrow(axis, i, size) for i, w in enumerate(weights)]).sum(0)


def _defocus_family(shape: tuple[int, ...], strength: float) -> Family:
    largest = strength * min(shape[-2:])
    reach = math.ceil(largest + 0.5)
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    distance = (place[:, None] ** 2 + place**2).sqrt()

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        disk = (largest * theta[0, 0] - distance.to(x) + 0.5).clamp(0, 1)
        disk = disk / disk.sum()
        # every channel and slice is a picture of its own
        pictures = x.reshape(-1, 1, *x.shape[-2:])
        padded = functional.pad(pictures, (reach,) * 4, mode="replicate")
        return functional.conv2d(padded, disk[None, None]).reshape(x.shape)

    return Family(1, apply, signed=False)
