"""MedMNIST-C: the corruptions of a published benchmark, in its own five levels, at 8 bits."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy import ndimage, stats
from torch import Tensor

from robustbench_med.corruption_tables import find_corruption, level_of
from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift

Picture = NDArray[np.uint8]  # (h, w, 3)
Level = int | float
ALL, AUTO = "all", "auto"  # the bench puts names in their place, for the data of a case


@attack(
    title="MedMNIST-C",
    summary="A corruption of MedMNIST-C at its five levels, severities 0.2 to 1.",
    source="Di Salvo et al., 2024",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    tasks=("single_label", "multi_label"),
    positive=("draws", "steps"),
    cost=passes,
)
def medmnist_c(
    problem: Problem,
    *,
    rng: Draws,
    corruption: str = "all",
    table: str = "auto",
    search: str = "random",
    draws: int = 10,
    steps: int = 20,
) -> Shifted:
    """Return images with a corruption of MedMNIST-C, rounded to 8 bits as its authors' are.

    Args:
        problem: the batch; the radius of its ball is the severity, a fifth for each level.
        rng: one random stream per sample.
        corruption: the name of the corruption; all = a case for each of the data set's.
        table: the data set whose levels are used; auto = that of the case.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.

    Raises:
        SpecError: there is no such search, corruption or table, or the images are no pictures of
            one or three channels.

    Source: Di Salvo, Doerrich, Ledig, "MedMNIST-C", 2024, arXiv:2406.17536, and the parameters of
    its package. Its order is kept: a grey image becomes three equal channels, is corrupted, cut
    to whole grey levels and becomes grey again, so noise of grey images is a weighted sum of three.
    Lengths are in pixels of 224x224 images. Every image has its own random stream.
    """
    channels, size = problem.x.shape[1], problem.x.shape[2:]
    if len(size) != 2 or channels not in (1, 3):
        raise SpecError(
            f"expected pictures of 1 or 3 channels for MedMNIST-C, got {channels} channels and "
            f"{len(size)} axes"
        )
    family = corruption_family(table, corruption)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def corruption_family(table: str, corruption: str) -> Family:
    """Return the family of a corruption, whose parameter is a fifth of its level.

    Raises:
        SpecError: there is no such table or corruption.
    """
    levels = find_corruption(table, corruption).levels
    corrupt = _CORRUPTIONS[corruption]

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        level = level_of(float(theta[0, 0]))
        if level == 0:
            return x
        picture = (x[0].movedim(0, -1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        grey = picture.shape[-1] == 1
        made = corrupt(
            np.repeat(picture, 3, axis=-1) if grey else picture, levels[level - 1], draws
        )
        made = np.asarray(Image.fromarray(made).convert("L"))[..., None] if grey else made
        return torch.from_numpy(made.astype(np.float32) / 255).movedim(-1, 0)[None].to(x)

    return Family(1, apply, signed=False, stochastic=True, differentiable=False)


def _uniform(draws: Draws, shape: tuple[int, ...], word: str) -> NDArray[np.float64]:
    stream = draws.fork("corruption", word).uniform(*shape)[0]
    return stream.cpu().double().numpy()


def _normal(draws: Draws, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return draws.fork("corruption", "normal").normal(*shape)[0].cpu().double().numpy()


def _whole(values: NDArray[Any]) -> Picture:
    """Return values in units of [0,1] as grey levels; a part of a level is cut off."""
    grey: Picture = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grey


def _gaussian(picture: Picture, level: Level, draws: Draws) -> Picture:
    return _whole(picture / 255 + level * _normal(draws, picture.shape))


def _speckle(picture: Picture, level: Level, draws: Draws) -> Picture:
    return _whole(picture / 255 * (1 + level * _normal(draws, picture.shape)))


def _shot(picture: Picture, level: Level, draws: Draws) -> Picture:
    counts = stats.poisson.ppf(_uniform(draws, picture.shape, "counts"), picture / 255 * level)
    return _whole(np.maximum(counts, 0) / level)  # the quantile of a mean of 0 is -1


def _impulse(picture: Picture, level: Level, draws: Draws) -> Picture:
    hit = _uniform(draws, picture.shape, "place") < level
    white = _uniform(draws, picture.shape, "white") < 0.5
    return np.where(hit, np.where(white, 255, 0), picture).astype(np.uint8)


def _pixelate(picture: Picture, level: Level, draws: Draws) -> Picture:
    height, width = picture.shape[:2]
    fewer = max(1, int(width * level)), max(1, int(height * level))
    small = Image.fromarray(picture).resize(fewer, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg(picture: Picture, level: int, draws: Draws) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=level)
    return np.asarray(Image.open(buffer))


def _brightness(picture: Picture, level: Level, draws: Draws) -> Picture:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(level))


def _contrast(picture: Picture, level: Level, draws: Draws) -> Picture:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(picture)).enhance(level))


def _gamma(picture: Picture, level: Level, draws: Draws) -> Picture:
    return ((256 - 1e-3) * (picture / 255) ** level).astype(np.uint8)


def _gaussian_blur(picture: Picture, level: int, draws: Draws) -> Picture:
    """Blur with a kernel of `level` pixels, whose standard deviation follows from its size."""
    sigma = 0.3 * ((level - 1) / 2 - 1) + 0.8
    kernel = _bell(np.arange(level) - level // 2, sigma)
    values = picture.astype(np.float32)
    for axis in (0, 1):
        values = ndimage.correlate1d(values, kernel, axis=axis, mode="mirror")
    return values.round().clip(0, 255).astype(np.uint8)


def _defocus(picture: Picture, level: tuple[Level, Level], draws: Draws) -> Picture:
    """Blur with a disk of a radius, whose edge is softened by a 3x3 kernel."""
    radius, softness = level
    place = np.arange(-8, 9)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    soft = _bell(np.arange(-1, 2), softness)
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, soft, axis=axis, mode="mirror")
    channels = [ndimage.correlate(picture[..., i] / 255, disk, mode="mirror") for i in range(3)]
    return _whole(np.stack(channels, axis=-1) + 1e-9)


def _motion(picture: Picture, level: tuple[Level, Level], draws: Draws) -> Picture:
    """Add up copies that are moved along a line, at an angle between -45 and 45 degrees."""
    angle = math.pi / 2 * (float(_uniform(draws, (1,), "angle")[0]) - 0.5)
    return motion_blur(picture, level, angle)


def motion_blur(picture: Picture, level: tuple[Level, Level], angle: float) -> Picture:
    """Return a picture blurred to one side along a line, as MotionBlurImage of ImageMagick does.

    The copies are weighted by half of a Gaussian and moved by whole pixels; the border is repeated.

    Args:
        picture: `(h, w, 3)`.
        level: reach, and standard deviation of the weights, in pixels.
        angle: of the line, in radians, clockwise from the first axis of the screen.

    Source: ImageMagick, reference of -motion-blur.
    """
    radius, sigma = level
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = _bell(steps, sigma)
    height, width = picture.shape[:2]
    total = np.zeros(picture.shape)
    for step, weight in zip(steps.tolist(), weights, strict=True):
        right = math.ceil(step * math.cos(angle) - 0.5)
        down = math.ceil(step * math.sin(angle) - 0.5)
        rows = (np.arange(height) + down).clip(0, height - 1)
        columns = (np.arange(width) + right).clip(0, width - 1)
        total += weight * picture[rows[:, None], columns]
    return total.round().clip(0, 255).astype(np.uint8)


def _bell(place: NDArray[Any], sigma: Level) -> NDArray[np.float64]:
    weights = np.exp(-(place.astype(np.float64) ** 2) / (2 * sigma**2))
    bell: NDArray[np.float64] = weights / weights.sum()
    return bell


_CORRUPTIONS: dict[str, Callable[[Picture, Any, Draws], Picture]] = {
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
    "gaussian_noise": _gaussian,
    "speckle_noise": _speckle,
    "impulse_noise": _impulse,
    "shot_noise": _shot,
    "gaussian_blur": _gaussian_blur,
    "defocus_blur": _defocus,
    "motion_blur": _motion,
    "brightness_up": _brightness,
    "brightness_down": _brightness,
    "contrast_up": _contrast,
    "contrast_down": _contrast,
    "gamma_corr_up": _gamma,
    "gamma_corr_down": _gamma,
}
