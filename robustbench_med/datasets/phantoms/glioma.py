"""Phantom of multi-sequence brain MRI with a glioma: edema, core and its enhancing rim.

Classes and nesting are those of BraTS (Menze et al., IEEE TMI 34:1993, 2015; Bakas et al.,
arXiv:1811.02629): whole tumour, tumour core within it, enhancing tumour within that. Not every
glioma enhances, and not every slice of a patient meets the tumour.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort
from robustbench_med.datasets.phantoms.brain import SEQUENCES, Slice, draw_head, draw_slice
from robustbench_med.datasets.phantoms.canvas import Mask, Plane

SIZES = cohort.Sizes(train=360, val=60, test=120)

# Signal of each tissue in T1, T1ce, T2, FLAIR, where 1 is the window: from the usual reading,
# fat and white matter bright on T1, water bright on T2, free water nulled on FLAIR.
WHITE = (0.74, 0.72, 0.36, 0.44)
GREY = (0.52, 0.52, 0.53, 0.56)
FLUID = (0.16, 0.17, 0.96, 0.12)
VESSEL = (0.42, 0.97, 0.28, 0.34)
SPOT = (0.60, 0.59, 0.68, 0.86)
EDEMA = (0.47, 0.46, 0.76, 0.86)
CORE = (0.29, 0.30, 0.86, 0.55)
ENHANCING = (0.46, 0.95, 0.62, 0.74)

CUT = 0.93
"""Share of the tumour's half-height above which a slice passes it by: no crumbs of a pixel."""


class Tumour(NamedTuple):
    """One patient's tumour; lengths in canvas units, sheets of noise `(h, w)`.

    Attributes:
        centre: u and v.
        radius: of the core in its middle slice.
        stretch: long over round radius.
        tilt: of the long axis, radians.
        rim: thickness of the enhancing rim; 0 = the tumour doesn't enhance.
        swelling: how far edema reaches beyond the core.
        lumps: outline of the core.
        fingers: outline of the edema, which follows the white matter tracts.
        patches: where the rim is thick, thin or broken.
    """

    centre: tuple[float, float]
    radius: float
    stretch: float
    tilt: float
    rim: float
    swelling: float
    lumps: Plane
    fingers: Plane
    patches: Plane


class Layers(NamedTuple):
    """Soft maps of the tumour in one slice, each within the one before."""

    whole: Plane
    core: Plane
    enhancing: Plane


class Scan(NamedTuple):
    """Properties of all slices of one examination: tissue signals, gains and coil sensitivity."""

    signals: Plane
    gain: Plane
    bias: Plane
    texture: Plane
    noise: float


def draw_tumours(split: SplitName) -> Arrays:
    """Return `phantom_brain`: masks of 1 = edema, 2 = core, 3 = enhancing."""
    return cohort.draw("phantom_brain", SIZES, _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw slices of one examination, from the lowest to the highest."""
    head, scan = draw_head(rng), _draw_scan(rng)
    tumour = draw_tumour(rng)
    healthy = rng.random() < 0.03
    # Slices lie a part of the tumour's height apart; the first and last may miss it.
    offsets = (np.arange(visits) + rng.random(visits)) / visits * 2.24 - 1.12
    middle, height = rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.45)
    pose = draw_pose(rng)
    images: list[Plane] = []
    masks: list[Mask] = []
    for offset in offsets:
        scale = 0.0 if healthy or abs(offset) > CUT else float(np.sqrt(1.0 - offset**2))
        at = _pushed(tumour, scale)
        tissue = draw_slice(head, middle + height * float(offset), at)
        layers = tumour_layers(tumour, scale, tissue)
        images.append(_acquire(rng, scan, _paint(scan, tissue, layers), tissue.brain, pose))
        masks.append(canvas.view_mask(np.stack(layers), pose))
    return cohort.Study(images, masks)


def draw_pose(rng: np.random.Generator) -> canvas.Pose:
    """Draw how a head lies in the coil."""
    return canvas.Pose(
        tilt=rng.normal(0.0, 0.06),
        reach=rng.uniform(0.90, 0.98),
        u=rng.normal(0.0, 0.03),
        v=rng.normal(0.0, 0.03),
    )


def draw_tumour(rng: np.random.Generator) -> Tumour:
    """Draw a tumour in the white matter of one half; one in four does not enhance."""
    side = rng.choice((-1.0, 1.0))
    enhances = rng.random() < 0.75
    return Tumour(
        centre=(side * rng.uniform(0.24, 0.42), rng.uniform(-0.45, 0.45)),
        radius=rng.uniform(0.16, 0.28),
        stretch=rng.uniform(1.0, 1.4),
        tilt=rng.uniform(0.0, np.pi),
        rim=rng.uniform(0.065, 0.11) if enhances else 0.0,
        swelling=rng.uniform(0.09, 0.26) if enhances else rng.uniform(0.07, 0.14),
        lumps=canvas.noise(rng, 0.16),
        fingers=canvas.noise(rng, 0.20),
        patches=canvas.noise(rng, 0.13),
    )


def _pushed(tumour: Tumour, scale: float) -> tuple[Plane, Plane]:
    """Return where every pixel's tissue was before the tumour grew (mass effect).

    Tissue moves away from the centre by up to a third of the radius, less the further away.
    """
    u, v = canvas.axes()
    du, dv = u - tumour.centre[0], v - tumour.centre[1]
    reach = np.hypot(du, dv)
    width = 1.6 * tumour.radius
    pull = 0.32 * scale * tumour.radius / width * np.exp(0.5 - 0.5 * (reach / width) ** 2)
    return u - pull * du, v - pull * dv


def tumour_layers(tumour: Tumour, scale: float, tissue: Slice) -> Layers:
    """Return the tumour in a slice whose cross-section is `scale` times the largest one's."""
    if scale == 0.0:
        return Layers(*np.zeros((3, *tissue.brain.shape)))
    u, v = canvas.axes()
    du, dv = u - tumour.centre[0], v - tumour.centre[1]
    cos, sin = np.cos(tumour.tilt), np.sin(tumour.tilt)
    long = np.sqrt(tumour.stretch)
    reach = np.hypot((du * cos + dv * sin) / long, (dv * cos - du * sin) * long)
    edge = scale * tumour.radius * (1.0 + 0.22 * tumour.lumps)
    core = canvas.step(edge - reach, 0.015) * tissue.brain
    spread = np.clip(tumour.swelling * scale * (1.0 + 0.55 * tumour.fingers), 0.0, None)
    # Edema spreads through white matter, less through cortex and never into free fluid.
    wet = canvas.step(edge + spread - reach, 0.02) * (1.0 - 0.35 * tissue.grey - tissue.fluid)
    whole = np.maximum(core, np.clip(wet, 0.0, 1.0) * tissue.brain)
    if tumour.rim == 0.0:
        return Layers(whole, core, np.zeros_like(core))
    rim = tumour.rim * np.clip(1.0 + 0.45 * tumour.patches, 0.0, None)
    dead = canvas.step(edge - rim - reach, 0.015)
    return Layers(whole, core, core * (1.0 - dead))


def _draw_scan(rng: np.random.Generator) -> Scan:
    """Draw the signals of every tissue in this patient, on this scanner."""
    table = np.array([WHITE, GREY, FLUID, VESSEL, SPOT, EDEMA, CORE, ENHANCING])
    vary = np.array([0.03, 0.03, 0.05, 0.05, 0.05, 0.08, 0.12, 0.05])[:, None]
    signals = table * np.exp(vary * rng.standard_normal(table.shape))
    # What a core holds, from protein to clear fluid, shows on FLAIR more than anywhere else.
    signals[6, 3] *= rng.uniform(0.6, 1.3)
    bias = np.stack([canvas.noise(rng, 0.9) for _ in SEQUENCES])
    texture = canvas.noise(rng, 0.06)
    gain = np.exp(rng.normal(0.0, 0.12, len(SEQUENCES)))
    return Scan(signals, gain, np.exp(0.07 * bias), texture, rng.uniform(3.0, 7.0))


def _paint(scan: Scan, tissue: Slice, layers: Layers) -> Plane:
    """Return the signal `(4, h, w)` of the slice; 1 is the window."""
    white, grey, fluid, vessel, spot, edema, core, enhancing = scan.signals[:, :, None, None]
    # Swelling closes the sulci around a tumour.
    free = tissue.fluid * (1.0 - 0.9 * layers.whole)
    signal = white + (grey - white) * tissue.grey
    signal = signal + (spot - signal) * 0.9 * tissue.spots
    signal = signal + (edema - signal) * layers.whole
    signal = signal + (fluid - signal) * free
    signal = signal + (core - signal) * layers.core
    signal = signal + (enhancing - signal) * layers.enhancing
    signal = signal + (vessel - signal) * tissue.vessel * (1.0 - layers.core)
    rough = 0.02 + 0.07 * layers.whole  # tumours are uneven, in every sequence at the same places
    return np.asarray(signal * (1.0 + rough * scan.texture))


def _acquire(
    rng: np.random.Generator, scan: Scan, signal: Plane, brain: Plane, pose: canvas.Pose
) -> Plane:
    """Return the slice `(SIZE, SIZE, 4)`: gain, coil sensitivity, Rician noise, skull stripped."""
    signal_in_view = canvas.view(signal * scan.bias, pose) * scan.gain * 212.0
    real, imaginary = rng.normal(0.0, scan.noise, (2, *signal_in_view.shape))
    magnitude = np.hypot(signal_in_view + real, imaginary)
    inside = canvas.view(brain, pose) > 0.5
    return np.asarray(magnitude * inside[..., None])
