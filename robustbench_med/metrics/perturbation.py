"""Measure how visible a perturbation is: SSIM and PSNR per image.

Both are those of torchmetrics to the last bit, but for images of exactly one window, whose last
digit differs. Its SSIM takes twice as long and twenty times the memory, and its import takes five
seconds and 220 MiB.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from robustbench_med.types import Images, PerSample

_WINDOW = 11  # pixels; Wang et al. 2004, section III.C: 11 x 11 Gaussian window, sigma 1.5
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2  # the same, section III.B: K1 = 0.01, K2 = 0.03 of a range of 1
_AT_ONCE = 2**18  # values of the images that are compared at a time; more leave the cache


def ssim(z: Images, x: Images) -> PerSample:
    """Return the structural similarity of each image to its clean one, `(b,)`; 1 = identical.

    Windows that leave the image do not count. It is NaN for images smaller than the window.

    Source: Wang et al., IEEE TIP 2004.
    """
    if len(x) == 0 or min(x.shape[2:]) < _WINDOW:
        return x.new_full((len(x),), torch.nan)
    size = max(1, _AT_ONCE // math.prod(x.shape[1:]))
    pieces = zip(z.split(size), x.split(size), strict=True)
    similarity = torch.cat([_similarity(*piece) for piece in pieces])
    means: Tensor = similarity.flatten(1).mean(1)
    return means


def _similarity(z: Images, x: Images) -> Float[Tensor, "b c *t"]:
    """Return the similarity of every window that lies within the image."""
    convolve = functional.conv2d if x.ndim == 4 else functional.conv3d
    moments = torch.cat((z, x, z * z, x * x, z * x))
    averages = convolve(moments, _window(x), groups=x.shape[1])
    mean_z, mean_x, square_z, square_x, product = averages.split(len(x))
    both = mean_z * mean_x
    squares_of_means = mean_z.pow(2), mean_x.pow(2)
    # a variance is not negative, but may become so by rounding
    variances = [
        (square - of_mean).clamp(min=0)
        for square, of_mean in zip((square_z, square_x), squares_of_means, strict=True)
    ]
    upper = (2 * both + _C1) * (2 * (product - both) + _C2)
    similarity: Tensor = upper / ((sum(squares_of_means) + _C1) * (sum(variances) + _C2))
    return similarity


def _window(x: Images) -> Float[Tensor, "c 1 *k"]:
    """Return the Gaussian window, whose weights sum to 1, once for each channel."""
    half = (_WINDOW - 1) / 2
    distance = torch.arange(-half, half + 1, dtype=x.dtype, device=x.device)
    line = torch.exp(-((distance / _SIGMA) ** 2) / 2)
    line = line / line.sum()
    window = line[:, None] * line
    if x.ndim == 5:
        window = window[:, :, None] * line
    return window.expand(x.shape[1], 1, *window.shape)


def psnr(z: Images, x: Images) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio in dB, `(b,)`; inf for unchanged images."""
    if len(x) == 0:
        return x.new_empty(0)
    difference = (z - x).flatten(1)
    mean_square = (difference * difference).sum(1) / difference.shape[1]
    return -torch.log(mean_square) * (10 / torch.log(torch.tensor(10.0)))
