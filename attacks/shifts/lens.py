"""Lens and colour: vignette, black corners, a colour cast, and stain."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift


@attack(
    title="Vignette",
    summary="Light that falls toward the corners.",
    source="Goldman, IEEE TPAMI 2010",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def vignette(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.8,
) -> Shifted:
    """Return images whose light falls with the squared distance from the centre.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: part of the light that the corners lose at severity 1, in (0, 1].

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Goldman, "Vignette and exposure calibration and compensation", IEEE TPAMI 2010, the
    polynomial of even powers, of which the first is kept. Of volumes, slice by slice.
    """
    family = Family(1, partial(_vignette, strength=strength), signed=False)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Black corners",
    summary="The round edge of a dermoscope or endoscope enters the image.",
    source="Di Salvo et al., 2024",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "smallest"),
    effort=("draws", "steps"),
    cost=passes,
)
def black_corners(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    smallest: float = 0.6,
) -> Shifted:
    """Return images that are black outside a circle around the centre, with a soft edge.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        smallest: radius of the circle at severity 1, in units of half the shorter side, > 0; at
            severity 0 it holds the corners.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Di Salvo, Doerrich, Ledig, "MedMNIST-C", 2024, arXiv:2406.17536 (black corner of
    dermoscopy). The circle and its edge, a tenth of half the side, are ours. Of volumes, slice by
    slice.
    """
    family = Family(1, partial(_corners, smallest=smallest), signed=False)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Colour cast",
    summary="A factor of each channel, as of white balance or gain.",
    source="the diagonal model of von Kries",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def colour_cast(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.4,
) -> Shifted:
    """Return images of which each channel is multiplied by a factor of its own.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: largest logarithm of a factor at severity 1, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: the diagonal model of von Kries: another light multiplies each channel.
    """
    family = Family(problem.x.shape[1], partial(_cast, strength=strength))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Stain",
    summary="Another amount of each dye of a histological section.",
    source="Tellez et al., Medical Image Analysis 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength", "shift"),
    effort=("draws", "steps"),
    cost=passes,
)
def stain(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.3,
    shift: float = 0.05,
) -> Shifted:
    """Return colour images with another amount of haematoxylin, eosin and the rest.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: largest relative change of an amount at severity 1, > 0.
        shift: largest change added to an amount at severity 1, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Tellez et al., Medical Image Analysis 2019 (HED); the dyes are those of
    Ruifrok, Johnston 2001, as in scikit-image. Each amount is a (1 + strength t) + shift t of the
    amount a.
    """
    if problem.x.shape[1] != 3:
        raise SpecError(f"expected images of 3 channels for a stain, got {problem.x.shape[1]}")
    family = Family(6, partial(_stain, strength=strength, shift=shift))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _radius(x: Images) -> Tensor:
    """Return the distance of each pixel of a slice from the centre, 1 at the shorter side."""
    rows, columns = (torch.arange(n, device=x.device) - (n - 1) / 2 for n in x.shape[-2:])
    distance = (rows[:, None] ** 2 + columns**2).sqrt()
    return (distance / (max(min(x.shape[-2:]) - 1, 1) / 2)).to(x)


def _vignette(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    far = _radius(x) / _radius(x).max().clamp_min(1e-6)
    return x * (1 - strength * theta[0, 0] * far**2)


def _corners(x: Images, theta: Tensor, draws: Draws, *, smallest: float) -> Images:
    distance = _radius(x)
    # the soft edge lies outside of the image at severity 0
    largest = distance.max() + _EDGE
    radius = largest + (smallest - largest) * theta[0, 0]
    return x * ((radius - distance) / _EDGE).clamp(0, 1)


_EDGE = 0.1


def _cast(x: Images, theta: Tensor, draws: Draws, *, strength: float) -> Images:
    return x * (strength * theta).exp().reshape(1, -1, *[1] * (x.ndim - 2))


# optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok, Johnston,
# Analytical and Quantitative Cytology and Histology 2001, table 1)
_DYES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_DARK = 1e-6  # a darker value has this density


def _stain(x: Images, theta: Tensor, draws: Draws, *, strength: float, shift: float) -> Images:
    dyes = torch.tensor(_DYES, dtype=x.dtype, device=x.device)
    light = x.movedim(1, -1).clamp_min(_DARK)
    to_amounts: Tensor = torch.linalg.inv(dyes)
    amounts = (light.log() / math.log(_DARK)) @ to_amounts
    changed = amounts * (1 + strength * theta[0, :3]) + shift * theta[0, 3:]
    # without a change the image itself, also where it is darker than the darkest density
    factor: Tensor = (((changed - amounts) @ dyes) * math.log(_DARK)).exp()
    return x * factor.movedim(-1, 1)
