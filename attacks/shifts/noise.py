"""Noise of detectors and receivers: the parameter is its strength, the seed fixes its draw."""

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
    title="Gaussian noise",
    summary="Noise of equal strength everywhere, as of electronics.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def gaussian_noise(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.2,
) -> Shifted:
    """Return images with independent Gaussian noise on every value.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: standard deviation at severity 1, in units of [0,1], > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3; their levels are 0.08 to 0.38.
    """
    family = Family(1, partial(_gaussian, strength=strength), signed=False, stochastic=True)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Rician noise",
    summary="Noise of magnitude images, as of MR.",
    source="Gudbjartsson, Patz, MRM 1995",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def rician_noise(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.2,
) -> Shifted:
    """Return the magnitude of images with Gaussian noise on a real and an imaginary part.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: standard deviation of each part at severity 1, in units of [0,1], > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Gudbjartsson, Patz, MRM 1995, equation 1; the image is the signal without noise.
    """
    family = Family(1, partial(_rician, strength=strength), signed=False, stochastic=True)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Poisson noise",
    summary="Noise of counted photons, as of X-ray, CT or PET at a low dose.",
    source="Hasinoff, Computer Vision 2014",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def poisson_noise(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.2,
) -> Shifted:
    """Return images with the noise of photons: its variance is proportional to the value.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: standard deviation at white and severity 1, > 0; 0.2 is 25 photons.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hasinoff, "Photon, Poisson noise", Computer Vision 2014. A count is drawn from the
    normal distribution of equal mean and variance, so that it has a derivative; it is close from
    about 20 photons on.
    """
    family = Family(1, partial(_poisson, strength=strength), signed=False, stochastic=True)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Speckle noise",
    summary="Noise proportional to the value, as of ultrasound.",
    source="Goodman, JOSA 1976",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def speckle_noise(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.5,
) -> Shifted:
    """Return images with Gaussian noise that is multiplied by the value.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: standard deviation of the factor at severity 1, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Goodman, "Some fundamental properties of speckle", JOSA 1976; the multiplicative model,
    with Gaussian and uncorrelated factors.
    """
    family = Family(1, partial(_speckle, strength=strength), signed=False, stochastic=True)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Impulse noise",
    summary="Some values replaced by black or white, as of dead pixels.",
    source="Hendrycks et al., ICLR 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def impulse_noise(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.1,
) -> Shifted:
    """Return images in which some values are 0 or 1, each with the same chance.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: fraction of the values at severity 1, in (0, 1].

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Hendrycks, Dietterich, ICLR 2019, section 3; their levels are 3 % to 27 %.
    """
    family = Family(
        1, partial(_impulse, strength=strength), signed=False, stochastic=True, differentiable=False
    )
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _normal(x: Images, draws: Draws, *words: object) -> Tensor:
    return draws.fork("noise", *words).normal(*x.shape[1:]).to(x)


def _sigma(theta: Tensor, x: Images, strength: float) -> Tensor:
    return strength * theta.reshape(-1, *[1] * (x.ndim - 1))


def _gaussian(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    return x + _sigma(theta, x, strength) * _normal(x, draws)


def _rician(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    sigma = _sigma(theta, x, strength)
    real, imaginary = x + sigma * _normal(x, draws), sigma * _normal(x, draws, "imaginary")
    # the root has no derivative at 0
    return (real**2 + imaginary**2).clamp_min(1e-14).sqrt()


def _poisson(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    return x + _sigma(theta, x, strength) * x.sqrt() * _normal(x, draws)


def _speckle(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    return x * (1 + _sigma(theta, x, strength) * _normal(x, draws))


def _impulse(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    stream = draws.fork("noise")
    hit = stream.fork("place").uniform(*x.shape[1:]) < _sigma(theta, x, strength)
    white = stream.fork("white").uniform(*x.shape[1:]) < 0.5
    return torch.where(hit, white.to(x), x)
