"""Families of shifts against closed forms, moments and independent implementations."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.shift import Family
from tests.toys import draws, small_victim


def family(name: str, *size: int, channels: int = 1, **parameters: Any) -> Family:  # noqa: ANN401
    """Return the family of a shift on images of a size."""
    card = registry.find("attacks", name)
    victim = small_victim(2, channels=channels)
    x = torch.zeros(0, channels, *size)
    problem = Problem(
        x, torch.zeros(0, dtype=torch.int64), Ball("severity", 1.0), Untargeted(), victim
    )
    settings = {**card.parameters, **parameters}
    found: Family = registry.function("attacks", card)(problem, rng=draws(0), **settings).family
    return found


def shifted(name: str, x: Tensor, *theta: float, **parameters: Any) -> Tensor:  # noqa: ANN401
    """Return images under a shift with the same parameters each, without clipping."""
    made = family(name, *x.shape[2:], channels=x.shape[1], **parameters)
    rng, values = draws(len(x)), torch.tensor([theta])
    return torch.cat(
        [made.apply(x[i : i + 1], values, rng.select(torch.tensor([i]))) for i in range(len(x))]
    )


def pictures(n: int = 1, *size: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, *(size or (16, 16)), generator=rng)


# --- intensity -----------------------------------------------------------------------------------


def test_intensities_follow_their_formulas() -> None:
    x = pictures()
    assert torch.allclose(shifted("gamma", x, 1.0, strength=math.log(2)), x**2, atol=1e-5)
    assert torch.allclose(shifted("gamma", x, -1.0, strength=math.log(2)), x.sqrt(), atol=1e-3)
    assert torch.allclose(shifted("brightness", x, -0.5, strength=0.3), x - 0.15)
    doubled = x.mean() + 2 * (x - x.mean())
    assert torch.allclose(shifted("contrast", x, 1.0, strength=math.log(2)), doubled, atol=1e-6)
    # level 0.7 and twice the width: from -0.3 to 1.7
    windowed = shifted("window", x, 0.2 / math.log(2), 1.0, strength=math.log(2))
    assert torch.allclose(windowed, (x + 0.3) / 2, atol=1e-6)


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.3, 0.8])
def test_noise_has_the_moments_of_its_law(value: float) -> None:
    x, n = torch.full((1, 1, 200, 200), value), 200 * 200
    near = 5 / math.sqrt(n)
    gaussian = shifted("gaussian_noise", x, 0.5, strength=0.2) - value
    assert float(gaussian.mean()) == pytest.approx(0, abs=0.1 * near)
    assert float(gaussian.std()) == pytest.approx(0.1, rel=near)
    rician = shifted("rician_noise", x, 0.5, strength=0.2)
    law = stats.rice(value / 0.1, scale=0.1)
    assert float(rician.mean()) == pytest.approx(law.mean(), abs=0.1 * near)
    assert float(rician.std()) == pytest.approx(law.std(), rel=2 * near)
    # counts of N photons at white have the variance value / N, as a share of N
    poisson = shifted("poisson_noise", x, 1.0, strength=0.1)
    assert float(poisson.mean()) == pytest.approx(value, abs=0.1 * near)
    counts = stats.poisson(100 * value).std() / 100 if value else 0.0
    assert float(poisson.std()) == pytest.approx(counts, rel=2 * near, abs=1e-7)
    speckle = shifted("speckle_noise", x, 1.0, strength=0.2)
    assert float(speckle.std()) == pytest.approx(0.2 * value, rel=2 * near, abs=1e-6)
    impulse = shifted("impulse_noise", x, 0.5, strength=0.2)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.05, abs=near)
    assert float((impulse != value).float().mean()) == pytest.approx(
        0.1 if value else 0.05, abs=near
    )


def test_noise_of_two_images_is_independent() -> None:
    x = torch.full((2, 1, 100, 100), 0.5)
    one, other = shifted("gaussian_noise", x, 1.0).flatten(1) - 0.5
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.05


# --- blur and resolution -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 20), (12, 12, 12), (2, 20, 20)])
@pytest.mark.parametrize("theta", [0.4, 1.0])
def test_a_gaussian_blur_is_that_of_scipy(size: tuple[int, ...], theta: float) -> None:
    x = pictures(1, *size)
    ours = shifted("gaussian_blur", x, theta, strength=0.1)[0, 0]
    sigma = 0.1 * min(size[-2:]) * theta
    theirs = ndimage.gaussian_filter(x[0, 0].numpy(), sigma, mode="nearest", truncate=8)
    assert np.abs(ours.numpy() - theirs).max() < 2e-4


def test_defocus_makes_a_disk_of_a_point_and_keeps_the_mean() -> None:
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    disk = shifted("defocus", x, 1.0, strength=8 / 41)[0, 0]
    assert float(disk.sum()) == pytest.approx(1, abs=1e-5)
    assert int((disk > 0).sum()) == pytest.approx(math.pi * 8.5**2, rel=0.05)
    inside = disk[20, 14:27]
    assert torch.allclose(inside, inside[:1].expand(13), atol=1e-6)
    assert float(inside[0]) == pytest.approx(1 / (math.pi * 64), rel=0.05)


def test_pixels_are_means_of_blocks() -> None:
    x = pictures(1, 16, 16)
    blocks = x.reshape(1, 1, 8, 2, 8, 2).mean((3, 5))
    pixelated = shifted("pixelation", x, 1.0, strength=2.0)
    assert torch.allclose(pixelated, blocks.repeat_interleave(2, 2).repeat_interleave(2, 3))
    volume = pictures(1, 8, 6, 6)
    thick = shifted("thick_slices", volume, 1.0, strength=2.0)
    means = volume.reshape(1, 1, 4, 2, 6, 6).mean(3)
    between = 0.75 * means[:, :, 1] + 0.25 * means[:, :, 2]
    assert torch.allclose(thick[:, :, 3], between, atol=1e-6)


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(SpecError, match=r"expected axis in 0\.\.1, got 2"):
        family("thick_slices", 8, 8, axis=2)
    with pytest.raises(SpecError, match="expected strength > 1"):
        family("pixelation", 8, 8, strength=0.5)


# --- k-space -------------------------------------------------------------------------------------


def test_parts_that_move_alike_move_the_image() -> None:
    # all parts but the centre, of as many parts as lines, by 2 pixels of 16: a rolled image whose
    # line of frequency 0 stayed
    x = pictures(1, 16, 16)
    made = family("motion", 16, 16, parts=16, strength=2 / 16)
    theta = torch.zeros(1, 16, 2)
    theta[..., 0] = 1
    z = made.apply(x, theta.view(1, -1), draws(1))
    # frequency 0 along the rows does not change when rows are rolled
    assert torch.allclose(z, x.roll(2, 2), atol=1e-4)


def test_a_part_that_moved_leaves_its_lines_at_another_place() -> None:
    x = pictures(1, 16, 16)
    made = family("motion", 16, 16, parts=4, strength=3 / 16)
    theta = torch.zeros(1, 4, 2)
    theta[0, 0, 1] = 1  # lines -8 .. -5, along the columns
    lines = np.fft.fftfreq(16, 1 / 16)
    still = np.fft.fft2(x[0, 0].numpy())
    moved = np.fft.fft2(np.roll(x[0, 0].numpy(), 3, axis=1))
    joined = np.where((lines <= -5)[:, None], moved, still)
    z = made.apply(x, theta.view(1, -1), draws(1))[0, 0]
    assert np.abs(z.numpy() - np.abs(np.fft.ifft2(joined))).max() < 1e-5


def test_ghosts_are_copies_a_quarter_of_the_image_apart() -> None:
    x = pictures(1, 16, 16)
    z = shifted("ghosting", x, 0.5, ghosts=4, strength=1.0)
    copies = torch.stack([x.roll(4 * i, 2) for i in range(4)]).mean(0)
    expected = x - 0.5 * (copies - x.mean(2, keepdim=True))
    assert torch.allclose(z, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(17, 17), (11, 13, 9)])
def test_ringing_is_that_of_monai_where_its_centre_is_a_frequency(size: tuple[int, ...]) -> None:
    from monai.transforms.intensity.array import GibbsNoise

    x = pictures(1, *size)
    ours = shifted("gibbs_ringing", x, 0.7, strength=0.8)[0, 0]
    # MONAI's radius is in units of half the diagonal of a cube
    largest = math.sqrt(sum((n // 2) ** 2 for n in size))
    alpha = 1 - (1 - 0.56) * largest / (max(size) * math.sqrt(2) / 2)
    theirs = torch.as_tensor(GibbsNoise(alpha=alpha)(x[0]))[0]
    assert float((ours - theirs).abs().max()) < 1e-5


def test_spikes_are_two_values_of_k_space() -> None:
    x = pictures(3, 16, 16)
    stripes = shifted("spikes", x, 0.5, strength=0.2) - x
    for stripe in stripes[:, 0]:
        k_space = torch.fft.fft2(stripe).abs()
        assert int((k_space > 1e-3 * k_space.max()).sum()) == 2
        assert float(stripe.square().mean().sqrt()) == pytest.approx(0.1 / math.sqrt(2), rel=1e-4)
        assert k_space[0, 0] < 1e-3


# --- compression ---------------------------------------------------------------------------------


def test_jpeg_is_that_of_pillow_and_colour_images_stay_one_picture() -> None:
    x = pictures(1, 16, 24).expand(1, 3, 16, 24) * torch.tensor([1, 0.5, 0.2]).view(1, 3, 1, 1)
    ours = shifted("jpeg_codec", x, 1.0, lowest=30)
    grey = (x[0] * 255).round().byte().movedim(0, -1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="JPEG", quality=30)
    theirs = torch.from_numpy(np.asarray(Image.open(buffer)) / 255).float().movedim(-1, 0)
    assert torch.equal(ours[0], theirs)
    volume = pictures(1, 3, 16, 16)
    alone = shifted("jpeg_codec", volume[:, :, 1], 1.0, lowest=30)
    assert torch.equal(shifted("jpeg_codec", volume, 1.0, lowest=30)[:, :, 1], alone)


def test_a_quality_that_no_codec_has_is_refused() -> None:
    with pytest.raises(SpecError, match=r"expected lowest in 1\.\.99, got 100"):
        family("jpeg_codec", 8, 8, lowest=100)


# --- lens and colour -----------------------------------------------------------------------------


def test_a_vignette_takes_its_part_from_the_corners_and_nothing_from_the_centre() -> None:
    x = torch.full((1, 1, 17, 17), 0.6)
    z = shifted("vignette", x, 0.5, strength=0.8)[0, 0]
    assert float(z[0, 0]) == pytest.approx(0.6 * 0.6)
    assert float(z[8, 8]) == pytest.approx(0.6)
    assert float(z[0, 8]) == pytest.approx(0.6 * 0.8)  # half of the squared distance


def test_black_corners_leave_the_circle() -> None:
    x = torch.full((1, 1, 101, 101), 0.6)
    z = shifted("black_corners", x, 1.0, smallest=0.5)[0, 0]
    assert int((z == 0.6).sum()) == pytest.approx(math.pi * 20**2, rel=0.1)
    assert int((z > 0).sum()) == pytest.approx(math.pi * 25**2, rel=0.02)


def test_stain_is_a_step_in_the_colour_space_of_scikit_image() -> None:
    from skimage.color import hed2rgb, rgb2hed

    x = 0.3 + 0.4 * torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    theta = (0.5, -0.5, 0.0, 0.2, 0.0, -0.2)
    ours = shifted("stain", x, *theta, strength=0.3, shift=0.05)[0].movedim(0, -1)
    amounts = rgb2hed(x[0].movedim(0, -1).double().numpy())
    changed = amounts * (1 + 0.3 * np.array(theta[:3])) + 0.05 * np.array(theta[3:])
    # where scikit-image clips no amount at 0, both are the same
    inside = ((amounts > 0) & (changed > 0)).all(-1)
    assert inside.sum() > 3
    assert np.abs(ours.numpy() - hed2rgb(changed))[inside].max() < 1e-4


def test_a_stain_of_grey_images_is_refused() -> None:
    with pytest.raises(SpecError, match="expected images of 3 channels for a stain, got 1"):
        family("stain", 8, 8)


# --- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(15, 15), (5, 15, 15)])
def test_a_quarter_turn_and_whole_steps_move_images_and_masks_alike(size: tuple[int, ...]) -> None:
    x = pictures(1, *size)
    y = (x[:, 0] * 7).long() - 1
    zeros = [0.0] * len(size)
    made = family("affine", *size, degrees=90.0, move=3 / 14)
    quarter = torch.tensor([[1.0, 0.0, *zeros]])
    z, moved = made.apply(x, quarter, draws(1)), made.truth(y, quarter, draws(1))
    assert torch.allclose(z, x.rot90(-1, (-2, -1)), atol=1e-4)
    assert torch.equal(moved, y.rot90(-1, (-2, -1)))
    aside = torch.tensor([[0.0, 0.0, 1.0, *zeros[1:]]])
    z, moved = made.apply(x, aside, draws(1)), made.truth(y, aside, draws(1))
    assert torch.allclose(z[..., 3:], x[..., :-3], atol=1e-5)
    assert torch.equal(moved[..., 3:], y[..., :-3])


def test_equal_coefficients_of_a_deformation_move_the_whole_image() -> None:
    x = pictures(1, 21, 21)
    y = (x[:, 0] * 7).long()
    made = family("elastic", 21, 21, points=4, strength=2 / 20)
    theta = torch.zeros(1, 2, 16)
    theta[0, 0] = 1  # two pixels along the last axis
    z = made.apply(x, theta.view(1, -1), draws(1))
    assert torch.allclose(z[..., :-2], x[..., 2:], atol=1e-5)
    assert torch.equal(made.truth(y, theta.view(1, -1), draws(1))[..., :-2], y[..., 2:])
    assert torch.equal(made.truth(y, 0 * theta.view(1, -1), draws(1)), y)
