"""Phantom of a frontal chest radiograph, once with one opacity to find, once with four findings.

A radiograph shows the attenuation summed along each ray: anatomy is therefore drawn as layers that
add up, and the film curve comes last. The patient's right side is on the left of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort
from robustbench_med.datasets.phantoms.canvas import Plane
from robustbench_med.datasets.phantoms.thorax import Thorax, draw_thorax, draw_traits

FINDINGS = ("opacity", "effusion", "cardiomegaly", "nodule")


class Finding(NamedTuple):
    """Attenuation that a disease adds to the healthy chest, at full strength."""

    layer: Plane
    faintest: float


def draw_opacity(split: SplitName) -> Arrays:
    """Return `phantom_chest`: 0 = clear, 1 = an opacity in one lung."""
    return cohort.draw("phantom_chest", cohort.Sizes(), _opacity_patient, split)


def draw_findings(split: SplitName) -> Arrays:
    """Return `phantom_chest_findings`: a 0/1 column for each of `FINDINGS`."""
    return cohort.draw("phantom_chest_findings", cohort.Sizes(), _findings_patient, split)


def _opacity_patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw a patient whose opacity, if any, may have cleared at a visit."""
    thorax = draw_thorax(rng, draw_traits(rng, enlarged=rng.random() < 0.25))
    sick = rng.random() < 0.52
    layer = opacity(rng, thorax)
    images, labels = [], []
    for _ in range(visits):
        shown = sick and rng.random() > 0.06
        strength = rng.uniform(0.85, 1.15) if shown else 0.0
        images.append(expose(rng, thorax.attenuation + strength * layer, draw_pose(rng)))
        labels.append(int(shown))
    return cohort.Study(images, labels)


def _findings_patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw a patient with none to four findings; an acute one may be gone at a visit."""
    healthy = rng.random() < 0.15
    sick = (rng.random(4) < 0.48) & (not healthy)
    thorax = draw_thorax(rng, draw_traits(rng, enlarged=bool(sick[2])))
    layers = {0: opacity(rng, thorax), 1: _effusion(rng, thorax), 3: _nodule(rng, thorax)}
    images: list[Plane] = []
    labels: list[tuple[int, ...]] = []
    for _ in range(visits):
        shown = sick.copy()
        shown[:2] &= rng.random(2) > 0.06
        attenuation = thorax.attenuation.copy()
        for finding, layer in layers.items():
            if shown[finding]:
                attenuation += rng.uniform(0.85, 1.15) * layer
        images.append(expose(rng, attenuation, draw_pose(rng)))
        labels.append(tuple(int(value) for value in shown))
    return cohort.Study(images, labels)


def opacity(rng: np.random.Generator, thorax: Thorax) -> Plane:
    """Return patchy air-space disease: a cloud of blobs in one lung, cut at its borders."""
    centre = _spot(rng, thorax)
    size = rng.uniform(0.115, 0.18)
    places = centre + rng.standard_normal((9, 2)) * size * 0.75
    cloud = canvas.blobs(places, rng.uniform(0.55, 1.0, size=9) * size, rng.uniform(0.3, 0.7, 9))
    patchy = np.clip(1.0 + 0.25 * canvas.noise(rng, 0.07), 0.0, None)
    dense = rng.uniform(0.30, 0.46)
    return dense * (1.0 - np.exp(-1.6 * cloud)) * patchy * thorax.lung


def _spot(rng: np.random.Generator, thorax: Thorax) -> Plane:
    """Return a place `(2,)` inside a lung, where no heart or diaphragm would hide a lesion."""
    u, v = (np.broadcast_to(axis, thorax.lung.shape).ravel() for axis in canvas.axes())
    # The crowded hila are left out, and so are the apices behind the collar bones.
    open_lung = (thorax.lung.ravel() > 0.95) & (np.abs(u) > 0.30) & (v > -0.6)
    index = rng.choice(np.flatnonzero(open_lung))
    return np.array([u[index], v[index]])


def _effusion(rng: np.random.Generator, thorax: Thorax) -> Plane:
    """Return fluid at a lung base: it fills the angle and climbs the chest wall (meniscus)."""
    u, v = canvas.axes()
    side = rng.choice((-1.0, 1.0))
    level = thorax.base - rng.uniform(0.15, 0.36)
    climb = rng.uniform(0.10, 0.26)
    outward = np.clip((side * u - 0.30) / 0.40, -0.2, 1.3)
    surface = level - climb * outward * np.abs(outward)
    fluid = canvas.step(v - surface, 0.04) * canvas.step(side * u, 0.03)
    return rng.uniform(0.30, 0.40) * fluid * thorax.lung


def _nodule(rng: np.random.Generator, thorax: Thorax) -> Plane:
    """Return one round, sharp lesion well inside a lung field."""
    centre = _spot(rng, thorax)
    radius = rng.uniform(0.082, 0.115)
    disc = canvas.ellipse(
        (centre[0], centre[1]), (radius, radius * rng.uniform(0.85, 1.15)), soft=0.03
    )
    return rng.uniform(0.42, 0.56) * disc * (0.25 + 0.75 * thorax.lung)


def draw_pose(rng: np.random.Generator) -> canvas.Pose:
    """Draw how a patient stands before the detector."""
    return canvas.Pose(
        tilt=rng.normal(0.0, 0.035),
        reach=rng.uniform(0.80, 0.98),
        u=rng.normal(0.0, 0.05),
        v=rng.normal(0.0, 0.05),
    )


def expose(rng: np.random.Generator, attenuation: Plane, pose: canvas.Pose) -> Plane:
    """Return one radiograph of the chest: exposure, noise, film curve, burnt-in marker."""
    density = canvas.view(attenuation, pose)
    # Fewer photons get through dense tissue: more quantum noise, blurred by the scintillator.
    grain = ndimage.gaussian_filter(rng.standard_normal(density.shape), 0.45)
    density = density + grain * rng.uniform(0.010, 0.024) * (0.5 + 1.2 * density)
    centre, contrast = rng.normal(0.47, 0.035), rng.uniform(4.0, 5.2)
    film = 250.0 / (1.0 + np.exp(-contrast * (density - centre))) - 14.0
    return _mark(rng, film)


# The letters that a technician's lead markers leave on the film, 5 x 4 pixels each.
_LETTERS = {
    "L": ("1000", "1000", "1000", "1000", "1111"),
    "R": ("1110", "1001", "1110", "1010", "1001"),
}


def _mark(rng: np.random.Generator, film: Plane) -> Plane:
    """Burn in a side marker (exact white) and, on some films, collimator edges (exact black)."""
    film = np.clip(film, 2.0, 250.0)
    if rng.random() < 0.35:
        margin_left, margin_right = rng.integers(0, 4, size=2)
        film[:, :margin_left] = 0.0
        film[:, canvas.SIZE - margin_right :] = 0.0
    letter = "L" if rng.random() < 0.5 else "R"
    mask = np.array([[pixel == "1" for pixel in row] for row in _LETTERS[letter]])
    row = int(rng.integers(3, 7))
    col = int(rng.integers(54, 57)) if letter == "L" else int(rng.integers(4, 7))
    patch = film[row : row + 5, col : col + 4]
    patch[mask] = 255.0
    return film
