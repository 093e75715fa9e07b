"""Anatomy of the chest phantom: the layers of a healthy thorax and the traits of its owner."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustbench_med.datasets.phantoms import canvas
from robustbench_med.datasets.phantoms.canvas import Plane


class Traits(NamedTuple):
    """Properties of all films of one patient; lengths are in canvas units."""

    width: float
    apex: float
    base: float
    heart: float
    heart_v: float
    ribs: float
    rib_phase: float
    bone: float
    fat: float
    breast: float


class Thorax(NamedTuple):
    """A drawn chest.

    Attributes:
        attenuation: summed along each ray; about 0 is air, 1 is dense bone on soft tissue.
        lung: where aerated lung is, 0 to 1.
        heart: the heart's shadow with the vessels above it, 0 to 1.
        base: height (v) of the costophrenic angles, the lowest points of the lungs.
    """

    attenuation: Plane
    lung: Plane
    heart: Plane
    base: float


def draw_traits(rng: np.random.Generator, *, enlarged: bool) -> Traits:
    """Draw one patient's build; `enlarged` draws the heart of cardiomegaly.

    The size of the heart is a cardiothoracic ratio: up to 0.5 is normal on a frontal film taken
    from behind. The two ranges nearly touch, as they do in patients.
    """
    base = rng.uniform(0.46, 0.68)
    return Traits(
        width=rng.uniform(0.66, 0.84),
        apex=rng.uniform(-0.86, -0.78),
        base=base,
        heart=rng.uniform(0.53, 0.63) if enlarged else rng.uniform(0.39, 0.49),
        heart_v=base - rng.uniform(0.32, 0.41),
        ribs=rng.uniform(0.175, 0.21),
        rib_phase=rng.random(),
        bone=rng.uniform(0.7, 1.2),
        fat=rng.uniform(0.9, 1.12),
        breast=rng.uniform(0.0, 1.0),
    )


def draw_thorax(rng: np.random.Generator, traits: Traits) -> Thorax:
    """Return a healthy chest with these traits."""
    lung = _lung(traits)
    heart = _heart(traits)
    aerated = lung * (1.0 - 0.85 * heart)
    vessels = _vessels(rng)
    texture = 0.012 * canvas.noise(rng, 0.05) + 0.02 * canvas.noise(rng, 0.3)
    soft = _soft_tissue(rng, traits)
    attenuation = soft * traits.fat - 0.47 * aerated + 0.10 * heart
    attenuation += aerated * (vessels + texture) + _mediastinum(traits) + _bones(rng, traits)
    return Thorax(attenuation, aerated, heart, traits.base)


def _lung(traits: Traits) -> Plane:
    """Return the lung fields: between chest wall, mediastinum, apex and diaphragm."""
    u, v = canvas.axes()
    down = np.clip((v - traits.apex) / 1.25, 0.0, 1.0)
    wall = traits.width * np.sqrt(1.0 - (1.0 - down) ** 2.4)
    inner = 0.10 + 0.05 * np.clip(-v - 0.35, 0.0, 1.0)
    # Each dome peaks in mid-lung; the liver holds the right one up.
    high = np.where(u < 0, 0.06, 0.0)
    dome = traits.base - high - 0.26 * np.clip(1.0 - ((np.abs(u) - 0.36) / 0.44) ** 2, -0.4, 1.0)
    edge = canvas.step(wall - np.abs(u), 0.025) * canvas.step(np.abs(u) - inner, 0.035)
    return edge * canvas.step(dome - v, 0.03) * canvas.step(v - traits.apex - 0.02, 0.03)


def _heart(traits: Traits) -> Plane:
    """Return the heart shadow: two thirds of it left of the midline, its apex low."""
    half = traits.heart * traits.width
    centre = (0.34 * half, traits.heart_v + 0.02)
    ventricle = canvas.ellipse(centre, (half * 1.04, 0.25), soft=0.03, tilt=0.42)
    u, v = canvas.axes()
    waist = canvas.ellipse((0.05, traits.heart_v - 0.25), (0.17, 0.36), soft=0.04)
    return np.maximum(ventricle, waist) * canvas.step(v + 0.45, 0.1)


def _soft_tissue(rng: np.random.Generator, traits: Traits) -> Plane:
    """Return body wall, neck and abdomen; air around the body attenuates nothing."""
    u, v = canvas.axes()
    across = np.abs(u)
    shoulder = -0.98 + 0.42 * np.clip(across - 0.22, 0.0, None) ** 1.2
    flank = traits.width + 0.17 + 0.12 * np.clip(-v - 0.15, 0.0, 0.5) * 4
    body = canvas.step(v - shoulder, 0.03) * canvas.step(flank - across, 0.03)
    body = np.maximum(body, canvas.step(0.24 - across, 0.03) * np.ones_like(v))
    abdomen = 0.10 * canvas.step(v - traits.base + 0.12, 0.12)
    bubble = canvas.blobs(np.array([[0.36, traits.base + 0.02]]), 0.09, rng.uniform(0.0, 0.25))
    breast = sum(
        canvas.ellipse((side * 0.45, 0.30), (0.27, 0.26), soft=0.07) for side in (-1.0, 1.0)
    )
    wall = 0.62 - 0.10 * across**2  # the body is a cylinder: thinner at its flanks
    return body * (wall + abdomen + 0.07 * traits.breast * breast) - bubble


def _mediastinum(traits: Traits) -> Plane:
    """Return great vessels, aortic knob and the dark column of the trachea."""
    u, v = canvas.axes()
    band = 0.12 * canvas.step(0.13 + 0.02 * v - np.abs(u), 0.04)
    knob = 0.16 * canvas.ellipse((0.14, -0.30), (0.10, 0.11), soft=0.03)
    trachea = 0.14 * np.exp(-0.5 * (u / 0.045) ** 2) * canvas.step(-0.25 - v, 0.06)
    return band + knob - trachea


def _vessels(rng: np.random.Generator) -> Plane:
    """Return the hila and the vessels that fan out from them."""
    hila = np.array([[-0.21, -0.08], [0.23, -0.12]])
    hila_seen = hila + rng.normal(0.0, 0.02, (2, 2))
    shadow = canvas.blobs(hila_seen, np.array([0.085, 0.075]), 0.16)
    starts = np.repeat(hila, 7, axis=0)
    fan = np.linspace(-1.15, 1.25, 7)
    headings = np.concatenate([np.pi - fan, fan]) + rng.normal(0.0, 0.12, 14)
    trunks = canvas.walk(rng, starts, headings, length=0.52, bend=0.0, wobble=0.5)
    taper = np.linspace(1.0, 0.25, trunks.shape[1])
    starts, headings = canvas.sprout(rng, trunks, 3, spread=0.6)
    twigs = canvas.walk(rng, starts, headings, length=0.26, bend=0.0, wobble=0.5, steps=28)
    fine = 0.55 * np.linspace(1.0, 0.3, twigs.shape[1])
    return shadow + 0.10 * canvas.trace(trunks, 1.5, taper) + 0.10 * canvas.trace(twigs, 1.0, fine)


def _bones(rng: np.random.Generator, traits: Traits) -> Plane:
    """Return ribs, clavicles, shoulder blades and spine."""
    u, v = canvas.axes()
    across = np.abs(u)
    cage = canvas.step(traits.width + 0.03 - across, 0.04) * canvas.step(v - traits.apex, 0.05)
    cage = cage * canvas.step(0.75 - v, 0.1)
    back = (v + 0.10 * across - 0.75 * across**2) / traits.ribs + traits.rib_phase
    front = (v - 0.50 * across - 0.25 * across**2) / (traits.ribs * 1.12) + traits.rib_phase * 1.7
    ribs = 0.075 * _bars(back, 0.19) * canvas.step(across - 0.09, 0.02)
    ribs += 0.045 * _bars(front, 0.20) * canvas.step(across - 0.34, 0.06)
    spine = canvas.step(0.075 - across, 0.02) * (0.09 + 0.035 * np.cos(v / 0.105 * 2 * np.pi))
    blade = 0.06 * sum(
        canvas.ellipse((side * 0.80, -0.35), (0.13, 0.30), soft=0.03, tilt=side * 0.25)
        for side in (-1.0, 1.0)
    )
    reach = np.linspace(0.0, 1.0, 60)
    rise = rng.uniform(0.10, 0.20)
    line = -0.60 - rise * reach + 0.05 * np.sin(reach * 2 * np.pi)
    collar = np.stack([np.stack([s * (0.09 + 0.66 * reach), line], axis=-1) for s in (-1.0, 1.0)])
    return traits.bone * (ribs * cage + spine + blade + 0.15 * canvas.trace(collar, 2.4))


def _bars(phase: Plane, half: float) -> Plane:
    """Return a bar at every whole number of `phase`, with the denser rim that a cortex gives."""
    off = np.abs(phase - np.rint(phase))
    return canvas.step(half - off, 0.06) * (0.7 + 0.6 * np.exp(-(((off - half) / 0.09) ** 2)))
