"""Phantom of a T1 MRI volume around one hippocampus, in an anterior and a posterior part.

Axes are left-right, head-foot, front-back: a slice of the first axis is sagittal, and shows the
hippocampus as a bent sausage. Amygdala, cortex and thalamus have its grey. After a resection fluid
takes its place, and the mask is empty. Crop and classes follow the hippocampus task of the Medical
Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort
from robustbench_med.datasets.phantoms.canvas import Mask, Plane

SIZES = cohort.Sizes(train=72, val=12, test=36)

SIDE = 32
"""Depth, height and width of a stored volume in voxels."""

FINE = 48
"""Depth, height and width of the canvas: half as fine again as `SIDE`."""

WHITE, GREY, FLUID, DEEP = 0.78, 0.53, 0.14, 0.60
"""T1 signal of white matter, cortex (and hippocampus), fluid and thalamus; 1 is the window."""

CUT = 0.42
"""Where along the structure, 0 front to 1 back, its anterior part ends (the uncal apex)."""


class Anatomy(NamedTuple):
    """One patient's volume.

    Attributes:
        signal: `(FINE, FINE, FINE)`; 1 is the window.
        resected: the same after the structure was taken out.
        layers: soft maps of the anterior and the posterior part, `(2, FINE, FINE, FINE)`.
    """

    signal: Plane
    resected: Plane
    layers: Plane


class Stance(NamedTuple):
    """How the crop lies in the head: rotation vector in radians, half-width, centre."""

    turn: Plane
    reach: float
    centre: Plane


class Tube(NamedTuple):
    """Distances to the structure, `(FINE, FINE, FINE)` each, in canvas units.

    Attributes:
        outside: to its surface; negative inside.
        behind: to the plane that parts it; negative in the anterior part.
        up: how far above its centre line.
    """

    outside: Plane
    behind: Plane
    up: Plane


def draw_hippocampi(split: SplitName) -> Arrays:
    """Return `phantom_volume`: masks of 1 = anterior, 2 = posterior."""
    return cohort.draw("phantom_volume", SIZES, _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw a patient's volumes; some patients come back after surgery."""
    anatomy = _draw_anatomy(rng)
    operated = rng.random() < 0.3
    images: list[Plane] = []
    masks: list[Mask] = []
    for visit in range(visits):
        gone = operated and visit == visits - 1
        stance = draw_stance(rng)
        images.append(_acquire(rng, anatomy.resected if gone else anatomy.signal, stance))
        masks.append(view_mask(anatomy.layers * (not gone), stance))
    return cohort.Study(images, masks)


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw white matter, folded cortex, deep grey matter and ventricle around the structure."""
    p, q, r = _axes()
    tube = _tube(rng)
    inside = canvas.step(-tube.outside, 0.035)
    front = inside * canvas.step(-tube.behind, 0.02)
    # Cortex is folded, away from the structure: grey on either side of fluid, where noise is zero.
    fold = 0.16 * np.abs(_noise(rng, 0.28)) + 0.8 * np.clip(0.30 - tube.outside, 0.0, None)
    grey = canvas.step(0.15 - fold, 0.03)
    fluid = canvas.step(0.022 - fold, 0.02)
    # The sheet of cortex below it, the parahippocampal gyrus, ends at the base of the brain.
    floor = rng.uniform(0.66, 0.78) + 0.10 * _noise(rng, 0.5) - q
    grey = np.maximum(grey, canvas.step(0.16 - floor, 0.03))
    fluid = np.maximum(fluid, canvas.step(-floor, 0.03))
    # The temporal horn caps the structure from above; its width is the patient's.
    wide = rng.uniform(0.03, 0.10)
    cap = canvas.step(wide - np.abs(tube.outside - 0.045), 0.025) * canvas.step(tube.up, 0.05)
    fluid = np.maximum(fluid, cap * canvas.step(0.55 - r, 0.1))
    amygdala = _ball((-0.02, -0.22, -0.80), (0.26, 0.22, 0.20), rng, (p, q, r))
    thalamus = _ball((0.62, -0.75, 0.35), (0.42, 0.36, 0.50), rng, (p, q, r))
    signal = WHITE + (GREY - WHITE) * grey
    signal = signal + (DEEP - signal) * thalamus
    signal = signal + (FLUID - signal) * fluid * (1.0 - thalamus)
    signal = signal + (GREY + 0.02 - signal) * amygdala
    patchy = 1.0 + 0.025 * _noise(rng, 0.12)
    intact = (signal + (GREY - signal) * inside) * patchy
    cavity = (signal + (FLUID - signal) * inside) * patchy
    return Anatomy(intact, cavity, np.stack([front, inside - front]))


def _tube(rng: np.random.Generator) -> Tube:
    """Return distances to a bent tube: a thick head in front, a thin tail that rises behind."""
    p, q, r = _axes()
    along = np.linspace(0.0, 1.0, 24)
    length, rise, sweep = rng.uniform(1.2, 1.45), rng.uniform(0.35, 0.65), rng.uniform(0.2, 0.5)
    line = np.stack(
        [
            -0.10 + sweep * along**2 + 0.10 * (1.0 - along) ** 3,
            0.22 - rise * along**2 + 0.12 * np.sin(np.pi * along),
            (along - 0.5) * length,
        ],
        axis=-1,
    )
    thick = np.interp(along, (0.0, 0.18, 0.45, 0.8, 1.0), (0.17, 0.25, 0.19, 0.15, 0.09))
    thick = thick * rng.uniform(0.95, 1.25)
    outside, up = np.full((FINE,) * 3, np.inf), np.zeros((FINE,) * 3)
    for (a, b, c), radius in zip(line, thick, strict=True):
        reach = np.sqrt((p - a) ** 2 + ((q - b) / 0.85) ** 2 + (r - c) ** 2) - radius
        up = np.where(reach < outside, b - q, up)
        outside = np.minimum(outside, reach)
    outside = outside + 0.02 * _noise(rng, 0.2)
    middle = np.array([np.interp(CUT, along, coordinate) for coordinate in line.T])
    ahead = np.array([np.interp(CUT + 0.1, along, coordinate) for coordinate in line.T]) - middle
    ahead = ahead / np.linalg.norm(ahead)
    behind = (p - middle[0]) * ahead[0] + (q - middle[1]) * ahead[1] + (r - middle[2]) * ahead[2]
    return Tube(outside, np.asarray(behind), up)


def _ball(
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    rng: np.random.Generator,
    at: tuple[Plane, Plane, Plane],
) -> Plane:
    """Return the soft mask of an ellipsoid whose place and size vary a little."""
    middle = np.array(centre) + rng.normal(0.0, 0.03, 3)
    size = np.array(radii) * rng.uniform(0.9, 1.1, 3)
    reach = np.sqrt(sum(((x - c) / s) ** 2 for x, c, s in zip(at, middle, size, strict=True)))
    return canvas.step((1.0 - reach) * size.min(), 0.035)


def draw_stance(rng: np.random.Generator) -> Stance:
    """Draw how the crop lies in the head."""
    return Stance(rng.normal(0.0, 0.10, 3), rng.uniform(0.88, 0.98), rng.normal(0.0, 0.05, 3))


def view(volume: Plane, stance: Stance) -> Plane:
    """Return the view `(SIDE, SIDE, SIDE)` of the canvas `(FINE, FINE, FINE)`."""
    matrix = Rotation.from_rotvec(stance.turn).as_matrix() * (stance.reach * FINE / SIDE)
    middle = (stance.centre + 1.0) * (FINE / 2.0) - 0.5
    offset = middle - matrix @ np.full(3, (SIDE - 1) / 2.0)
    image: Plane = ndimage.affine_transform(
        volume, matrix, offset, output_shape=(SIDE,) * 3, order=1, mode="reflect"
    )
    return image


def view_mask(layers: Plane, stance: Stance) -> Mask:
    """Return the class ids `(SIDE, SIDE, SIDE)` in the view of the two parts of the structure.

    A voxel belongs to the structure if both parts together cover half of it, and then to the larger
    part.
    """
    first, second = view(layers[0], stance), view(layers[1], stance)
    return np.where(first + second > 0.5, np.where(first >= second, 1, 2), 0).astype(np.int16)


def _acquire(rng: np.random.Generator, signal: Plane, stance: Stance) -> Plane:
    """Return the volume in grey levels: gain, coil sensitivity, Rician noise."""
    image = view(signal, stance)
    ramp = canvas.axes(SIDE)[0][0]
    slope = rng.normal(0.0, 0.10, 3)
    bias = np.exp(
        slope[0] * ramp[:, None, None] + slope[1] * ramp[:, None] + slope[2] * ramp
    ) * np.exp(-rng.uniform(0.0, 0.15) * ramp[:, None] ** 2)
    image = image * bias * 235.0 * np.exp(rng.normal(0.0, 0.08))
    real, imaginary = rng.normal(0.0, rng.uniform(5.0, 10.0), (2, *image.shape))
    return np.asarray(np.hypot(image + real, imaginary))


@cache
def _axes() -> tuple[Plane, Plane, Plane]:
    """Return p (right), q (down) and r (back) in [-1, 1]: broadcast, they are the canvas."""
    line = canvas.axes(FINE)[0][0]
    return line[:, None, None], line[None, :, None], line[None, None, :]


def _noise(rng: np.random.Generator, spacing: float) -> Plane:
    """Return Gaussian noise of unit variance whose features are about `spacing` wide."""
    spread = canvas.spread(spacing, FINE)
    sheet = rng.standard_normal((spread.shape[1],) * 3)
    for _ in range(3):  # each turn spreads the last axis and brings it to the front
        sheet = np.moveaxis(sheet @ spread.T, -1, 0)
    return np.asarray(sheet)
