"""Cubic B-splines on a coarse grid over an image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.errors import SpecError

_AXES = "uvw"


def basis(pixels: int, points: int) -> Float[Tensor, "n p"]:
    """Return the values of the uniform cubic B-splines of an axis at its pixels, `(n, p)` float32.

    The splines are those whose sum is 1 from the first pixel to the last: with p of them the axis
    has p - 3 intervals.

    Args:
        pixels: number of pixels.
        points: number of splines, >= 4.

    Raises:
        SpecError: there are fewer than 4 splines.

    Source: de Boor, "A practical guide to splines", chapter IX; the four pieces of the cubic are
    those of Unser, IEEE Signal Processing Magazine 1999, equation 5.

    >>> bool((basis(5, 4).sum(1) - 1).abs().max() < 1e-6)
    True
    """
    if points < 4:
        raise SpecError(f"expected points >= 4 for a cubic spline, got {points}")
    place = torch.linspace(0, points - 3, pixels, dtype=torch.float64)
    distance = (place[:, None] + 1 - torch.arange(points)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far).float()


def spline(coefficients: Float[Tensor, "b p"], shape: tuple[int, ...], points: int) -> Tensor:
    """Return the tensor-product spline on an image of `shape`, `(b, *shape)`.

    Args:
        coefficients: `(b, points ** axes)`.
        shape: size of the image, 2 or 3 axes.
        points: coefficients along each axis.
    """
    axes = _AXES[: len(shape)]
    grid = coefficients.view(len(coefficients), *[points] * len(shape))
    pixels = axes.upper()
    terms = ",".join(f"{P}{p}" for P, p in zip(pixels, axes, strict=True))
    bases = [basis(n, points).to(coefficients) for n in shape]
    return torch.einsum(f"b{axes},{terms}->b{pixels}", grid, *bases)
