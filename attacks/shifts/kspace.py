"""Faults in k-space, where an MR scanner measures: motion, ghosts, ringing and spikes."""

from __future__ import annotations

import math

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
    title="Motion",
    summary="A patient who moves between the parts of an MR scan.",
    source="Shaw et al., MIDL 2019",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "parts", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def motion(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    parts: int = 8,
    strength: float = 0.05,
) -> Shifted:
    """Return images of which each part of k-space was measured at another place.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        parts: parts of k-space in the order of measurement, >= 2; each has a place of its own.
        strength: largest translation along each axis at severity 1, in units of its side, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Shaw et al., MIDL 2019: k-space is put together from that of moved images.
    Here movements are translations, which are exact phases in k-space; the lines are measured in
    order, and the part with the centre stays, because a movement of that is one of the whole
    image.
    """
    family = _motion_family(tuple(problem.x.shape[2:]), parts, strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Ghosting",
    summary="Faint copies along the phase axis, as of breathing or a pulse.",
    source="Pérez-García et al., CMPB 2021",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "ghosts", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def ghosting(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    ghosts: int = 4,
    strength: float = 1.0,
) -> Shifted:
    """Return images in which every few lines of k-space are weaker: faint copies along one axis.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        ghosts: number of copies, >= 2: every so many lines of k-space are weaker.
        strength: part of these lines that is lost at severity 1, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Pérez-García et al., "TorchIO", CMPB 2021, RandomGhosting; the line through the centre
    stays.
    """
    family = _ghosting_family(tuple(problem.x.shape[2:]), ghosts, strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Gibbs ringing",
    summary="High frequencies that were not measured: ringing beside edges.",
    source="MONAI 2022, GibbsNoise",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def gibbs_ringing(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.8,
) -> Shifted:
    """Return images of which only the low frequencies were measured.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: part of the largest frequency that is lost at severity 1, in (0, 1).

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Cardoso et al., MONAI 2022, GibbsNoise: frequencies beyond a radius are 0. Here
    the radius is that from frequency 0 and in units of the largest; MONAI's centre is half a
    frequency beside it where a side is even.
    """
    family = _gibbs_family(tuple(problem.x.shape[2:]), strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


@attack(
    title="Spikes in k-space",
    summary="A single faulty value in k-space: stripes over the whole image.",
    source="Pérez-García et al., CMPB 2021",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength"),
    effort=("draws", "steps"),
    cost=passes,
)
def spikes(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.3,
) -> Shifted:
    """Return images with stripes of one frequency, direction and phase, which the seed draws.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: amplitude of the stripes at severity 1, in units of [0,1], > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Pérez-García et al., "TorchIO", CMPB 2021, RandomSpike; a spike and its mirror are a
    cosine.
    """
    family = _spike_family(tuple(problem.x.shape[2:]), strength)
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(2, 2 + len(shape)))


def _magnitude(k_space: Tensor, axes: tuple[int, ...]) -> Tensor:
    image = torch.fft.ifftn(k_space, dim=axes)
    # the root has no derivative at 0
    magnitude: Tensor = (image.real**2 + image.imag**2).clamp_min(1e-14).sqrt()
    return magnitude


def _motion_family(shape: tuple[int, ...], parts: int, strength: float) -> Family:
    if parts < 2:
        raise SpecError(f"expected parts >= 2, got {parts}")
    axes, rows = _axes(shape), shape[-2]
    # lines in the order of measurement, from the most negative frequency to the most positive
    order = torch.fft.fftfreq(rows, 1 / rows).long() + rows // 2
    part = order * parts // rows
    centre = int(part[0])  # the part with frequency 0

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        moved = strength * theta.reshape(parts, len(shape))
        stays = torch.arange(parts, device=x.device)[:, None] == centre
        moved = torch.where(stays, torch.zeros_like(moved), moved)[part.to(x.device)]
        phase = torch.zeros(shape, dtype=x.dtype, device=x.device)
        for i, n in enumerate(shape):
            frequency = torch.fft.fftfreq(n, 1 / n, dtype=x.dtype, device=x.device)
            frequency = frequency.view(*[-1 if j == i else 1 for j in range(len(shape))])
            by_row = moved[:, i].view(
                *[-1 if j == len(shape) - 2 else 1 for j in range(len(shape))]
            )
            phase = phase + frequency * by_row
        ramp = torch.polar(torch.ones_like(phase), -2 * math.pi * phase)
        return _magnitude(torch.fft.fftn(x, dim=axes) * ramp, axes)

    return Family(parts * len(shape), apply)


def _ghosting_family(shape: tuple[int, ...], ghosts: int, strength: float) -> Family:
    if ghosts < 2:
        raise SpecError(f"expected ghosts >= 2, got {ghosts}")
    line = torch.fft.fftfreq(shape[-2], 1 / shape[-2]).round().long()
    weak = ((line % ghosts == 0) & (line != 0))[:, None]

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        k_space = torch.fft.fft(x, dim=-2)
        left = 1 - strength * theta[0, 0] * weak.to(x)
        image: Tensor = torch.fft.ifft(k_space * left, dim=-2).real
        return image

    return Family(1, apply, signed=False)


def _gibbs_family(shape: tuple[int, ...], strength: float) -> Family:
    if not 0 < strength < 1:
        raise SpecError(f"expected strength in (0, 1), got {strength}")
    axes = _axes(shape)
    squares = [torch.fft.fftfreq(n, 1 / n) ** 2 for n in shape]
    distance = sum(
        square.view(*[-1 if j == i else 1 for j in range(len(shape))])
        for i, square in enumerate(squares)
    )
    distance = torch.as_tensor(distance).sqrt()
    largest = float(distance.max())

    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        kept = distance.to(x.device) <= (1 - strength * float(theta[0, 0])) * largest + 1e-4
        image: Tensor = torch.fft.ifftn(torch.fft.fftn(x, dim=axes) * kept, dim=axes).real
        return image

    return Family(1, apply, signed=False, differentiable=False)


def _spike_family(shape: tuple[int, ...], strength: float) -> Family:
    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        drawn = draws.fork("spike").uniform(len(shape) + 1)[0].to(x)
        angle = 2 * math.pi * drawn[-1]
        for i, n in enumerate(shape):
            # a whole number of periods, at most a quarter of the pixels of an axis, to both sides
            periods = 1 + torch.floor(drawn[i] * max(n // 4, 1))
            place = torch.arange(n, device=x.device, dtype=x.dtype) / n
            sign = -1.0 if i and bool(drawn[-1] < 0.5) else 1.0
            turn = 2 * math.pi * sign * periods * place
            angle = angle + turn.view(*[-1 if j == i else 1 for j in range(len(shape))])
        return x + strength * theta[0, 0] * torch.cos(angle)

    return Family(1, apply, signed=False, stochastic=True)
