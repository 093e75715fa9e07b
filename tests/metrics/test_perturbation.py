"""SSIM and PSNR equal scikit-image's, and torchmetrics' to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from skimage import metrics as skimage
from torch import Tensor
from torchmetrics.functional import image

from robustbench_med.metrics.perturbation import psnr, ssim

peak_signal_noise_ratio: Any = skimage.peak_signal_noise_ratio  # untyped
structural_similarity: Any = skimage.structural_similarity


def pair(b: int, channels: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    coarse = torch.rand(b, channels, 4, 4, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (side, side + 3), mode="bilinear")
    noise = torch.randn(x.shape, generator=generator) * torch.linspace(0.01, 0.2, b).view(
        -1, 1, 1, 1
    )
    return (x + noise).clamp(0, 1), x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [11, 28, 64])
@pytest.mark.parametrize("b", [1, 4])
def test_ssim_and_psnr_are_those_of_scikit_image(b: int, channels: int, side: int) -> None:
    z, x = pair(b, channels, side)
    similar, ratio = ssim(z, x), psnr(z, x)
    assert similar.shape == ratio.shape == (b,)
    for i in range(b):
        expected = structural_similarity(
            x[i].double().numpy(),
            z[i].double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=0,
        )
        assert float(similar[i]) == pytest.approx(expected, abs=2e-5)
        expected = peak_signal_noise_ratio(x[i].numpy(), z[i].numpy(), data_range=1.0)
        assert float(ratio[i]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "shape", [(70, 3, 96, 64), (3, 1, 700, 500), (33, 1, 28, 28), (2, 4, 24, 40, 30)]
)
def test_ssim_and_psnr_are_those_of_torchmetrics_to_the_last_bit(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    z = (x + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    _, similarity = image.structural_similarity_index_measure(
        z, x, data_range=1.0, reduction="none", return_full_image=True
    )
    for axis in range(2, x.ndim):  # torchmetrics pads the image
        similarity = similarity.narrow(axis, 5, x.shape[axis] - 10)
    assert torch.equal(ssim(z, x), similarity.flatten(1).mean(1))
    expected = image.peak_signal_noise_ratio(
        z, x, data_range=1.0, reduction="none", dim=tuple(range(1, x.ndim))
    )
    assert torch.equal(psnr(z, x), expected)


def test_nothing_changed() -> None:
    _, x = pair(2, 1, 16)
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    assert torch.isinf(psnr(x, x)).all()


@pytest.mark.parametrize("shape", [(3, 1, 10, 64), (3, 1, 64, 10), (3, 3, 8, 8)])
def test_an_image_smaller_than_the_window_has_no_ssim(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    z = (x + 0.1).clamp(0, 1)
    assert ssim(z, x).shape == (3,)
    assert torch.isnan(ssim(z, x)).all()
    assert torch.isfinite(psnr(z, x)).all()


def test_no_images() -> None:
    x = torch.zeros(0, 1, 16, 16)
    assert ssim(x, x).shape == psnr(x, x).shape == (0,)


def test_a_known_psnr() -> None:
    x = torch.zeros(1, 1, 12, 12)
    assert float(psnr(x + 0.1, x)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(x + 1 / 255, x)) == pytest.approx(20 * np.log10(255), abs=1e-3)
