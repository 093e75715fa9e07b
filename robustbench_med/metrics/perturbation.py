"""Measure how visible a perturbation is: SSIM and PSNR per image, computed by torchmetrics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.types import Images, PerSample

_WINDOW = 11  # pixels; Wang et al. 2004, section III.C: 11 x 11 Gaussian window, sigma 1.5


def ssim(z: Images, x: Images) -> PerSample:
    """Return the structural similarity of each image to its clean one, `(b,)`; 1 = identical.

    It is NaN for images smaller than the window.

    Source: Wang et al., IEEE TIP 2004.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if len(x) == 0 or min(x.shape[2:]) < _WINDOW:
        return x.new_full((len(x),), torch.nan)
    _, similarity = structural_similarity_index_measure(
        z, x, data_range=1.0, reduction="none", return_full_image=True
    )
    # drop the pixels whose window leaves the image: torchmetrics pads there, the paper does not
    edge = _WINDOW // 2
    for axis, side in enumerate(x.shape[2:], start=2):
        similarity = similarity.narrow(axis, edge, side - 2 * edge)
    means: Tensor = similarity.flatten(1).mean(1)
    return means


def psnr(z: Images, x: Images) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio in dB, `(b,)`; inf for unchanged images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if len(x) == 0:
        return x.new_empty(0)
    axes = tuple(range(1, x.ndim))
    return peak_signal_noise_ratio(z, x, data_range=1.0, reduction="none", dim=axes)
