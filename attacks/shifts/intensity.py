"""Intensity: gamma, brightness, contrast and the window of a display."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift


@attack(
    title="Gamma",
    summary="Every value raised to a power, as by another display curve or scanner.",
    source="Pérez-García et al., CMPB 2021",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def gamma(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.7,
) -> Shifted:
    """Return images whose values are raised to a power between exp(-strength) and exp(strength).

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: largest logarithm of the power at severity 1, > 0; 0.7 is a power of 0.5 to 2.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Pérez-García et al., "TorchIO", CMPB 2021, RandomGamma: the logarithm of the power is
    drawn uniformly; 0.3 is its default.
    """
    family = Family(1, partial(_gamma, strength=strength))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Brightness",
    summary="One number added to every value.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def brightness(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.3,
) -> Shifted:
    """Return images with one number added to every value, positive or negative.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: largest number at severity 1, in units of [0,1], > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3 (brightness); here of grey values too.
    """
    family = Family(1, lambda x, theta, _: x + strength * _spread(theta[:, 0], x))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Contrast",
    summary="The distance of every value from the mean of the image, scaled.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def contrast(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 1.0,
) -> Shifted:
    """Return images whose distance from their mean is scaled by exp(-strength) to exp(strength).

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: largest logarithm of the factor at severity 1, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3 (contrast); here the mean is that of each
    channel, and the contrast may rise too.
    """
    family = Family(1, partial(_contrast, strength=strength))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Window",
    summary="Another level and width of the window that maps stored values to grey.",
    source="DICOM PS3.3, C.11.2.1.2",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def window(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.4,
) -> Shifted:
    """Return images behind another window: a level and a width, values outside are clipped.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: largest shift of the level, in widths, and largest logarithm of the width at
            severity 1, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: DICOM PS3.3, C.11.2.1.2, the linear function of a window; the ends are 0 and 1, and the
    half grey level of its discrete form is left out.
    """
    family = Family(2, partial(_window, strength=strength))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _spread(values: Tensor, x: Images) -> Tensor:
    """Return one value an image in the shape of the images."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _gamma(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    power = _spread((strength * theta[:, 0]).exp(), x)
    # 0 stays 0, and has no infinite derivative
    return torch.where(x > 0, x.clamp_min(1e-6) ** power, 0.0)


def _contrast(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    mean = x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return mean + (x - mean) * _spread((strength * theta[:, 0]).exp(), x)


def _window(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    level = 0.5 + _spread(strength * theta[:, 0], x)
    width = _spread((strength * theta[:, 1]).exp(), x)
    return (x - level) / width + 0.5
