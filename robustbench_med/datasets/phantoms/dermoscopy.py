"""Phantom of a dermoscopic image: one pigmented lesion, benign or malignant.

The signs follow the ABCD rule of dermoscopy: asymmetry, border, colours, differential structures.
Every sign is a number drawn from one of two overlapping ranges: no single one decides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort
from robustbench_med.datasets.phantoms.canvas import Plane

# Absorption of melanin and of blood in red, green, blue: what makes pigment brown and vessels pink.
MELANIN = np.array([0.62, 1.05, 1.45])
BLOOD = np.array([0.15, 0.75, 0.60])
VEIL = np.array([98.0, 102.0, 122.0])
SCAR = np.array([218.0, 184.0, 172.0])
SKINS = np.array(
    [[238.0, 200.0, 184.0], [228.0, 178.0, 152.0], [204.0, 150.0, 118.0], [168.0, 116.0, 86.0]]
)


class Signs(NamedTuple):
    """Signs of a lesion, each from 0 (harmless) to about 1 (alarming)."""

    asymmetry: float
    border: float
    colours: float
    chaos: float
    veil: float


def draw_lesion(split: SplitName) -> Arrays:
    """Return `phantom_dermoscopy`: 0 = benign, 1 = malignant."""
    return cohort.draw("phantom_dermoscopy", cohort.Sizes(), _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw one lesion on one skin, photographed at every visit."""
    malignant = bool(rng.random() < 0.45)
    sheet = _lesion(rng, _skin(rng), _signs(rng, malignant=malignant))
    return cohort.Study([_photograph(rng, sheet) for _ in range(visits)], [int(malignant)] * visits)


def _signs(rng: np.random.Generator, *, malignant: bool) -> Signs:
    """Draw the signs of a class: their ranges overlap, and one factor moves them together."""
    grade = rng.uniform(0.60, 1.0) if malignant else rng.uniform(0.0, 0.29)
    drawn = np.clip(grade + rng.normal(0.0, 0.10, 5), 0.0, 1.0)
    return Signs(*(float(value) for value in drawn))


def _skin(rng: np.random.Generator) -> Plane:
    """Return bare skin `(3, h, w)`: tone, mottling, faint vessels, skin lines."""
    tone_index = rng.uniform(0.0, 2.6)
    low = int(tone_index)
    tone = SKINS[low] + (SKINS[low + 1] - SKINS[low]) * (tone_index - low)
    mottle = 0.05 * canvas.noise(rng, 0.4) + 0.03 * canvas.noise(rng, 0.06)
    flush = np.clip(0.06 * canvas.noise(rng, 0.15) + rng.uniform(-0.04, 0.10), -0.1, 0.5)
    absorbed = MELANIN[:, None, None] * mottle + BLOOD[:, None, None] * flush
    return np.asarray(tone[:, None, None] * np.exp(-absorbed))


def _outline(rng: np.random.Generator, signs: Signs) -> Plane:
    """Return the signed distance to the border: positive inside, in canvas units."""
    radius, angle = canvas.polar()
    turns = np.linspace(-np.pi, np.pi, 721)
    size = rng.uniform(0.28, 0.48) - 0.02 * signs.asymmetry
    k = np.arange(2, 10)
    swing = np.where(k < 4, 0.04 + 0.16 * signs.asymmetry, 0.008 + 0.09 * signs.border)
    swing = swing * rng.uniform(0.4, 1.0, k.shape) / np.sqrt(np.where(k < 4, 1.0, k - 3.0))
    phase = rng.uniform(0.0, 2 * np.pi, k.shape)
    wave = (swing * np.cos(turns[:, None] * k + phase)).sum(axis=1)
    index = ((angle + np.pi) * (720 / (2 * np.pi))).astype(np.int64)
    return np.asarray(size * np.exp(wave)[index] - radius)


def _network(rng: np.random.Generator, signs: Signs) -> Plane:
    """Return the pigment network (0 to 1): a honeycomb that chaos warps and breaks."""
    u, v = canvas.axes()
    pitch = 2 * np.pi / rng.uniform(0.105, 0.14)
    warp = 0.9 + 2.4 * signs.chaos
    du, dv = warp * canvas.noise(rng, 0.2), warp * canvas.noise(rng, 0.2)
    turn = rng.uniform(0.0, np.pi)
    waves = sum(
        np.cos(
            pitch * (u * np.cos(turn + a) + v * np.sin(turn + a)) + du * np.cos(a) + dv * np.sin(a)
        )
        for a in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)
    )
    patchy = np.clip(1.0 + (0.3 + 1.1 * signs.chaos) * canvas.noise(rng, 0.3), 0.0, 2.0)
    return np.asarray(np.clip(0.55 - 0.37 * waves, 0.0, 1.0) * patchy)


def _lesion(rng: np.random.Generator, skin: Plane, signs: Signs) -> Plane:
    """Return the skin with the lesion on it, `(3, h, w)`."""
    inside = _outline(rng, signs)
    # A naevus fades into the skin; the edge of a melanoma is abrupt, at least in parts.
    fade = rng.uniform(0.05, 0.09) - 0.035 * signs.border
    mask = canvas.step(inside, fade)
    patches = canvas.noise(rng, 0.28) * (0.08 + 0.42 * signs.colours)
    lean = rng.uniform(0.0, 2 * np.pi)
    u, v = canvas.axes()
    slope = 0.9 * signs.asymmetry * (u * np.cos(lean) + v * np.sin(lean))
    core = 0.25 * rng.random() * canvas.step(inside - 0.15, 0.1)
    depth = np.clip(rng.uniform(0.35, 0.95) + core + patches + slope, 0.08, 2.2)
    # Some lesions show hardly any network: homogeneous ones.
    depth = depth + rng.uniform(0.0, 0.38) * (_network(rng, signs) - 0.5)
    # Benign lesions may be pink too, but evenly so.
    pink = rng.uniform(0.0, 0.35) + 0.4 * signs.colours * canvas.noise(rng, 0.25).clip(-0.8, 1.5)
    absorbed = MELANIN[:, None, None] * (mask * depth) + BLOOD[:, None, None] * (mask * pink)
    sheet = skin * np.exp(-absorbed)
    sheet = _blend(sheet, VEIL, mask * depth.clip(0.5, 1.1) * _patch(rng, signs.veil))
    sheet = _blend(sheet, SCAR, mask * _patch(rng, signs.veil) * 0.6)
    return _dots(rng, sheet, mask)


def _patch(rng: np.random.Generator, amount: float) -> Plane:
    """Return one cloud (0 to about 0.8) that grows with `amount` above a half."""
    return 0.8 * np.asarray(canvas.step(canvas.noise(rng, 0.25) - 2.6 + 2.2 * amount, 0.7))


def _blend(sheet: Plane, colour: Plane, opacity: Plane) -> Plane:
    """Return `sheet` with a colour blended over it."""
    return np.asarray(sheet + (colour[:, None, None] - sheet) * opacity)


def _dots(rng: np.random.Generator, sheet: Plane, mask: Plane) -> Plane:
    """Return the lesion with dark globules, which both classes have."""
    n = int(rng.integers(0, 14))
    places = rng.normal(0.0, 0.2, (n, 2))
    dots = canvas.blobs(places, rng.uniform(0.015, 0.03, n), 0.6)
    return np.asarray(sheet * np.exp(-MELANIN[:, None, None] * (dots * mask)))


def _photograph(rng: np.random.Generator, sheet: Plane) -> Plane:
    """Return one image: pose, hairs, light, vignette, noise."""
    pose = canvas.Pose(
        tilt=rng.uniform(-np.pi, np.pi),
        reach=rng.uniform(0.66, 0.84),
        u=rng.normal(0.0, 0.08),
        v=rng.normal(0.0, 0.08),
    )
    photo = canvas.view(sheet, pose)
    if rng.random() < 0.38:
        photo = photo * (1.0 - _hairs(rng)[..., None] * np.array([0.72, 0.76, 0.78]))
    u, v = canvas.axes(canvas.SIZE)
    radius = canvas.polar(canvas.SIZE)[0]
    tilt = rng.normal(0.0, 0.05, 2)
    light = 1.0 + tilt[0] * u + tilt[1] * v - rng.uniform(0.02, 0.12) * radius**2
    if rng.random() < 0.3:  # the tube of a contact dermoscope darkens the corners
        light = light * canvas.step(rng.uniform(1.08, 1.22) - radius, 0.06)
    balance = np.exp(rng.normal(0.0, 0.03, 3) + rng.normal(0.0, 0.05))
    photo = photo * light[..., None] * balance
    return np.asarray(photo + rng.normal(0.0, rng.uniform(1.5, 3.5), photo.shape))


def _hairs(rng: np.random.Generator) -> Plane:
    """Return dark hairs (0 to 1) that grow in about one direction."""
    n = int(rng.integers(2, 9))
    grain = rng.uniform(0.0, 2 * np.pi)
    headings = grain + rng.normal(0.0, 0.5, n)
    starts = rng.uniform(-1.1, 1.1, (n, 2))
    paths = canvas.walk(
        rng, starts, headings, length=1.3, bend=rng.normal(0.0, 0.7, n), wobble=0.15, steps=70
    )
    lines = canvas.trace(paths, 0.5, rng.uniform(0.5, 1.0, (n, 1)), side=canvas.SIZE)
    return np.asarray(ndimage.gaussian_filter(np.minimum(lines, 1.0), 0.2))
