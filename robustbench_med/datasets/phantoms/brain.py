"""Anatomy of the brain phantom: one axial slice of a healthy head, and how sequences show it.

The patient's right side is on the left of the image and the forehead is up. Skull and scalp are
stripped, as in BraTS. A slice is drawn in coordinates that a tumour may have pushed aside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustbench_med.datasets.phantoms import canvas
from robustbench_med.datasets.phantoms.canvas import Plane

SEQUENCES = ("T1", "T1ce", "T2", "FLAIR")


class Head(NamedTuple):
    """Properties of all slices of one patient; lengths are in canvas units.

    Attributes:
        width: half-width of the brain.
        length: half-length of the brain.
        wide: factor on the ventricles.
        sulci: half-width of the sulci: wide ones are an old brain's.
        folds: two sheets of noise, between which the folds change from slice to slice.
        cortex: places `(n, 2)` of vessels on the surface, bright after contrast agent.
        spots: places `(n, 2)` of old white matter lesions: as bright as edema, and no tumour.
    """

    width: float
    length: float
    wide: float
    sulci: float
    folds: tuple[Plane, Plane]
    cortex: Plane
    spots: Plane


class Slice(NamedTuple):
    """One axial slice as soft maps `(h, w)`, 0 to 1; the remaining tissue is white matter."""

    brain: Plane
    fluid: Plane
    grey: Plane
    vessel: Plane
    spots: Plane


def draw_head(rng: np.random.Generator) -> Head:
    """Draw one patient's brain."""
    angle = rng.uniform(0.0, 2 * np.pi, 16)
    reach = rng.uniform(0.78, 0.98, 16)
    width, length = rng.uniform(0.66, 0.72), rng.uniform(0.82, 0.88)
    cortex = np.stack([reach * width * np.cos(angle), reach * length * np.sin(angle)], axis=-1)
    spots = rng.uniform((-0.34, -0.42), (0.34, 0.48), (int(rng.poisson(4.0)), 2))
    return Head(
        width=width,
        length=length,
        wide=rng.uniform(0.8, 1.45),
        sulci=rng.uniform(0.006, 0.022),
        folds=(canvas.noise(rng, 0.11), canvas.noise(rng, 0.11)),
        cortex=cortex,
        spots=spots,
    )


def draw_slice(head: Head, level: float, at: tuple[Plane, Plane]) -> Slice:
    """Return the slice at a level: 0 is through the basal ganglia, 1 near the crown.

    `at` gives the u and v that each pixel would have had without a tumour.
    """
    u, v = at
    size = np.sqrt(1.0 - (0.6 * level) ** 2)
    narrow = 1.0 - 0.10 * np.clip(-v, 0.0, 1.0) ** 2  # the forehead is narrower than the occiput
    reach = np.hypot(u / (head.width * size * narrow), v / (head.length * size))
    depth = (1.0 - reach) * head.width * size
    rim = _rim(head, level, at, depth)
    ventricles, plexus = _ventricles(head, level, at)
    fluid = np.maximum(canvas.step(head.sulci - rim, 0.012), ventricles)
    nuclei = _nuclei(level, at) * np.clip((0.55 - level) / 0.2, 0.0, 1.0)
    grey = np.maximum(canvas.step(0.066 + head.sulci - rim, 0.015), 0.8 * nuclei) * (1.0 - fluid)
    veins = canvas.blobs(head.cortex, 0.022) * canvas.step(0.09 - rim, 0.02)
    spots = np.minimum(canvas.blobs(head.spots, 0.034), 1.0) * (1.0 - fluid) * (1.0 - grey)
    vessel = np.clip(veins + plexus, 0.0, 1.0)
    return Slice(canvas.step(depth, 0.012), fluid, grey, vessel, spots)


def _rim(head: Head, level: float, at: tuple[Plane, Plane], depth: Plane) -> Plane:
    """Return the distance to the nearest fluid on the surface: outside, in a sulcus or fissure."""
    u, v = at
    turn = level * 2.5
    folds = np.abs(np.cos(turn) * head.folds[0] + np.sin(turn) * head.folds[1])
    # Noise is steepest where it crosses zero: 0.085 turns it into a length.
    sulci = 0.085 * folds + 0.8 * np.clip(depth - 0.17, 0.0, None)
    # The corpus callosum joins the halves in the middle of all but the highest slices.
    joined = np.clip(0.42 - 0.9 * max(level - 0.45, 0.0) - np.abs(v + 0.02), 0.0, None)
    fissure = np.abs(u) + 0.004 + 1.2 * joined
    # The Sylvian fissures open towards the temples of the low slices.
    sylvian = np.abs(v + 0.06 + 0.35 * (np.abs(u) - 0.5)) + np.clip(0.42 - np.abs(u), 0.0, None)
    edges = [depth, sulci, fissure, sylvian + 0.25 * max(level, 0.0)]
    return np.asarray(np.minimum.reduce(edges))


def _ventricles(head: Head, level: float, at: tuple[Plane, Plane]) -> tuple[Plane, Plane]:
    """Return the fluid of the ventricles and the choroid plexus inside their hind horns."""
    low, high = np.clip((0.42 - level) / 0.3, 0.0, 1.0), np.clip((0.72 - level) / 0.3, 0.0, 1.0)
    high = high * np.clip((level - 0.1) / 0.25, 0.0, 1.0)
    wide = head.wide
    fluid = low * canvas.ellipse((0.0, 0.06), (0.018 * wide, 0.10), soft=0.015, at=at)
    plexus = np.zeros_like(fluid)
    for side in (-1.0, 1.0):
        front = ((side * 0.085, -0.24), (0.042 * wide, 0.15), -side * 0.30)
        hind = ((side * 0.20, 0.34), (0.045 * wide, 0.17), -side * 0.28)
        body = ((side * 0.095, 0.02), (0.046 * wide, 0.34), -side * 0.06)
        for (centre, radii, tilt), weight in ((front, low), (hind, low), (body, high)):
            if weight > 0.0:
                # An ellipse's tilt turns its first axis downwards: here its long axis is v.
                horn = canvas.ellipse(centre, radii, soft=0.015, tilt=tilt, at=at)
                fluid = np.maximum(fluid, weight * horn)
        if low > 0.0:
            tuft = canvas.ellipse((side * 0.185, 0.28), (0.026, 0.07), soft=0.015, at=at)
            plexus = plexus + low * tuft
    return fluid, plexus


def _nuclei(level: float, at: tuple[Plane, Plane]) -> Plane:
    """Return the deep grey matter: caudate, lentiform nucleus and thalamus of both sides."""
    drawn = []
    for side in (-1.0, 1.0):
        drawn += [
            canvas.ellipse(
                (side * 0.155, -0.22), (0.045, 0.12), soft=0.02, tilt=-side * 0.3, at=at
            ),
            canvas.ellipse((side * 0.30, -0.06), (0.07, 0.17), soft=0.02, tilt=side * 0.3, at=at),
            canvas.ellipse(
                (side * 0.115, 0.09), (0.085, 0.13), soft=0.025, tilt=-side * 0.4, at=at
            ),
        ]
    return np.asarray(np.maximum.reduce(drawn))
