"""Metal in CT: bright implants, with the streaks that beam hardening leaves between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustbench_med.declarations import attack
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from robustbench_med.types import Images

from .search import passes, search_shift

IMPLANTS = 2  # streaks need two bodies, or one that is not round
OPACITY = 4.0  # half the spread of the optical depths of the widest implant over the spectrum


@attack(
    title="Metal streaks",
    summary="Two metal implants and the dark and bright streaks between them, as in CT.",
    source="Park, Hwang, Seo, IEEE TMI 2016",
    norms=("severity",),
    threat="shift",
    schedule="severity",
    positive=("draws", "steps", "strength", "radius"),
    effort=("draws", "steps"),
    cost=passes,
)
def metal_streaks(
    problem: Problem,
    *,
    rng: Draws,
    search: str = "worst_of",
    draws: int = 10,
    steps: int = 20,
    strength: float = 0.5,
    radius: float = 0.04,
) -> Shifted:
    """Return images with two round implants at drawn places, and their streaks.

    Args:
        problem: the batch; the radius of its ball is the severity.
        rng: one random stream per sample; it draws the places.
        search: random, worst_of, climbed or local, see `search_shift`.
        draws: draws of the searches other than random, >= 1.
        steps: steps of a climb, >= 1.
        strength: the darkest streak at severity 1, in units of [0,1], > 0.
        radius: of an implant, in units of the shorter side of a slice, > 0.

    Raises:
        SpecError: there is no such search, or a parameter is outside its range.

    Source: Park, Hwang, Seo, IEEE TMI 2016: of metal whose attenuation is linear in the energy, in
    a beam of equal intensity at all energies, a scanner measures its projection p less
    log(sinh(a p) / (a p)). The streaks are the filtered back-projection of this term, scaled to
    `strength`; the implants are white. Scatter, noise and the hardening by tissue are left out.
    Of volumes, every slice has the same implants.
    """
    shape = tuple(problem.x.shape[-2:])
    family = _family(shape, strength, radius * min(shape))
    return search_shift(problem, family, rng=rng, search=search, draws=draws, steps=steps)


def _family(shape: tuple[int, ...], strength: float, radius: float) -> Family:
    def apply(x: Images, theta: Tensor, draws: Draws) -> Images:
        places = _places(shape, draws).to(x.device)
        streaks, metal = _streaks(shape, places, radius), _metal(shape, places, radius)
        # the edge of an implant is metal, and its darkest pixels are no streak
        streaks = streaks.masked_fill(metal > 0, 0)
        change = (strength * streaks / (-streaks).amax().clamp_min(1e-6)).to(x)
        corrupted = x + theta[0, 0] * change
        return corrupted + theta[0, 0] * metal.to(x) * (1 - corrupted)

    return Family(1, apply, signed=False, stochastic=True)


def _places(shape: tuple[int, ...], draws: Draws) -> Tensor:
    """Return the places of the implants from the centre in pixels, `(2, 2)` float64.

    They lie opposite each other, at 0.15 to 0.35 of the shorter side from the centre.
    """
    u = draws.fork("implants").uniform(2 * IMPLANTS)[0].double().reshape(2, IMPLANTS)
    distance = min(shape) * (0.15 + 0.2 * u[0])
    opposite = torch.arange(IMPLANTS, dtype=torch.float64) * math.pi
    angle = 2 * math.pi * u[1, 0].cpu() + opposite + (u[1].cpu() - 0.5)
    return torch.stack([distance.cpu() * angle.sin(), distance.cpu() * angle.cos()], 1)


def _grid(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of the pixels from the centre."""
    rows, columns = (
        torch.arange(n, dtype=torch.float64, device=device) - (n - 1) / 2 for n in shape
    )
    return rows[:, None], columns[None]


def _metal(shape: tuple[int, ...], places: Tensor, radius: float) -> Tensor:
    """Return the part of each pixel that is metal, `shape`; the edge is one pixel wide."""
    rows, columns = _grid(shape, places.device)
    parts = [
        (radius + 0.5 - ((rows - row) ** 2 + (columns - column) ** 2).sqrt()).clamp(0, 1)
        for row, column in places
    ]
    metal: Tensor = torch.stack(parts).amax(0)
    return metal


def _streaks(shape: tuple[int, ...], places: Tensor, radius: float) -> Tensor:
    """Return the image of what beam hardening takes from the projections of disks, `shape`."""
    angles, offsets = _rays(shape, places.device)
    depth = OPACITY * disk_projections(angles, offsets, places, radius) / (2 * radius)
    # log(sinh(t) / t), which is t - log(2 t) for large t
    t = depth.clamp_min(1e-3)
    lost = t + torch.log1p(-(-2 * t).exp()) - (2 * t).log()
    return -back_projection(torch.where(depth > 0, lost, 0.0), angles, offsets, shape)


def _rays(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the angles of the projections, and the offsets of their rays in pixels."""
    longest = 2 * math.ceil(math.hypot(*shape) / 2) + 1
    count = max(32, round(math.pi / 2 * max(shape)))
    angles = torch.arange(count, dtype=torch.float64, device=device) * math.pi / count
    return angles, torch.arange(longest, dtype=torch.float64, device=device) - longest // 2


def disk_projections(angles: Tensor, offsets: Tensor, places: Tensor, radius: float) -> Tensor:
    """Return the lengths of rays inside disks, `(angles, offsets)`, in pixels.

    Args:
        angles: of the normals of the rays, in radians.
        offsets: of the rays from the centre, in pixels.
        places: `(n, 2)` row and column of the centre of each disk, from the centre of the image.
        radius: of the disks, in pixels.
    """
    centres = places[:, 0, None] * angles.sin() + places[:, 1, None] * angles.cos()
    from_centre = offsets - centres[..., None]
    chords: Tensor = 2 * (radius**2 - from_centre**2).clamp_min(0).sqrt()
    return chords.sum(0)


def back_projection(
    projections: Tensor, angles: Tensor, offsets: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Return the filtered back-projection of parallel rays, `shape` float64.

    Source: Kak, Slaney, Principles of computerized tomographic imaging, 1988, section 3.3: the ramp
    filter in its discrete form (equation 61), and linear interpolation between rays.

    Args:
        projections: `(angles, offsets)` line integrals in pixels.
        angles: over half a turn.
        offsets: whole pixels around 0.
        shape: of the image.
    """
    n = len(offsets)
    place = torch.arange(-(n - 1), n, device=offsets.device)
    ramp = torch.where(place % 2 == 1, -1 / (math.pi * place.double()) ** 2, 0.0)
    ramp[n - 1] = 0.25
    size = 4 * n
    spectrum = torch.fft.rfft(projections, size) * torch.fft.rfft(ramp, size)
    filtered = torch.fft.irfft(spectrum, size)[:, n - 1 : 2 * n - 1]
    rows, columns = _grid(shape, offsets.device)
    image = torch.zeros(shape, dtype=torch.float64, device=offsets.device)
    for line, angle in zip(filtered, angles, strict=True):
        at = rows * angle.sin() + columns * angle.cos() - offsets[0]
        left = at.floor().long().clamp(0, n - 2)
        part = at - left
        image += (1 - part) * line[left] + part * line[left + 1]
    return image * math.pi / len(angles)
