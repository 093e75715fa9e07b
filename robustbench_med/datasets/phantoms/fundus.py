"""Phantom of a colour fundus photograph, graded for diabetic retinopathy.

Blood and pigment take light away, more of it in green and blue than in red: vessels, haemorrhages
and the macula are drawn as absorption. Disc, exudates and cotton-wool spots reflect: they are
blended in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort
from robustbench_med.datasets.phantoms.canvas import Plane

FIELD = 0.93
"""Radius of the camera's field of view in the stored image, half the image side being 1."""

BLOOD = np.array([0.45, 1.15, 0.95])
PIGMENT = np.array([0.35, 0.60, 0.75])
DISC = np.array([250.0, 214.0, 148.0])
EXUDATE = np.array([250.0, 226.0, 130.0])
COTTON = np.array([238.0, 214.0, 178.0])


class Eye(NamedTuple):
    """Anatomy of one eye: where disc and fovea are, and the layers of a healthy retina."""

    disc: tuple[float, float]
    fovea: tuple[float, float]
    tone: Plane
    vessels: Plane
    pigment: Plane
    disc_light: Plane


class Lesions(NamedTuple):
    """Retinopathy as layers: absorbing blood, and two kinds of reflecting spots (0 to 1)."""

    blood: Plane
    exudate: Plane
    cotton: Plane


class Examination(NamedTuple):
    """One eye of a patient over all visits; the disease keeps its grade.

    Attributes:
        grade: 0 = none, 1 = moderate, 2 = severe.
        lesions: the retinopathy as layers on the canvas.
        poses: how the eye is seen at each visit.
        photographs: one `(h, w, 3)` photograph a visit, in grey levels.
    """

    grade: int
    lesions: Lesions
    poses: list[canvas.Pose]
    photographs: list[Plane]


def draw_retinopathy(split: SplitName) -> Arrays:
    """Return `phantom_fundus`: grade 0 = none, 1 = moderate, 2 = severe."""
    return cohort.draw("phantom_fundus", cohort.Sizes(), _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    examination = examine(rng, visits)
    return cohort.Study(examination.photographs, [examination.grade] * visits)


def examine(rng: np.random.Generator, visits: int) -> Examination:
    """Draw one eye of a patient and photograph it at each visit."""
    eye = draw_eye(rng)
    grade = int(rng.choice(3, p=(0.38, 0.32, 0.30)))
    lesions = draw_lesions(rng, eye, grade)
    sheet = paint(eye, lesions)
    poses: list[canvas.Pose] = []
    photographs: list[Plane] = []
    for _ in range(visits):
        poses.append(draw_pose(rng))
        photographs.append(photograph(rng, sheet, poses[-1]))
    return Examination(grade, lesions, poses, photographs)


def draw_eye(rng: np.random.Generator, *, calibre: float = 1.0, twigs: int = 5) -> Eye:
    """Draw a healthy eye, left or right, with vessels this wide and so many twigs on each."""
    temporal = rng.choice((-1.0, 1.0))
    disc = (-temporal * rng.uniform(0.42, 0.54), rng.normal(0.0, 0.05))
    fovea = (disc[0] + temporal * rng.uniform(0.58, 0.66), disc[1] + rng.uniform(0.02, 0.10))
    dark = rng.uniform(0.0, 1.0)
    tone = np.array([222.0, 118.0, 62.0]) * (1 - dark) + np.array([176.0, 78.0, 40.0]) * dark
    tone = tone * np.exp(rng.normal(0.0, (0.05, 0.08, 0.12)))
    macula = 0.42 * canvas.blobs(np.array([fovea]), 0.17) + 0.35 * canvas.blobs(
        np.array([fovea]), 0.06
    )
    choroid = 0.07 * canvas.noise(rng, 0.10) + 0.08 * canvas.noise(rng, 0.35)
    size = rng.uniform(0.135, 0.165)
    rim = canvas.ellipse(disc, (size * 0.92, size), soft=0.025)
    cup = canvas.ellipse(disc, (size * 0.45, size * 0.5), soft=0.05)
    vessels = _vessels(rng, disc, temporal, calibre=calibre, per_trunk=twigs)
    return Eye(disc, fovea, tone, vessels, macula + choroid, 0.78 * rim + 0.22 * cup)


def _vessels(
    rng: np.random.Generator,
    disc: tuple[float, float],
    temporal: float,
    *,
    calibre: float,
    per_trunk: int,
) -> Plane:
    """Return the blood in the vessel tree: arcades around the macula and nasal branches."""
    # Directions for a disc on the left; they are mirrored for the other eye.
    headings = np.array([-1.45, -1.15, 1.45, 1.15, -2.45, 2.45, -1.95, 1.95])
    bends = np.array([1.35, 0.75, -1.35, -0.75, 0.2, -0.2, 0.3, -0.3])
    headings = headings + rng.normal(0.0, 0.10, 8)
    bends = bends + rng.normal(0.0, 0.15, 8)
    if temporal < 0:
        headings, bends = np.pi - headings, -bends
    starts = np.array([disc]) + rng.normal(0.0, 0.02, (8, 2))
    trunks = canvas.walk(rng, starts, headings, length=1.5, bend=bends, wobble=0.45, steps=96)
    vein = np.array([1.0, 0.6, 0.6, 1.0, 0.7, 0.7, 0.5, 0.5])[:, None]
    taper = np.linspace(1.0, 0.35, 96)
    starts, headings = canvas.sprout(rng, trunks, per_trunk, spread=0.75)
    twigs = canvas.walk(rng, starts, headings, length=0.55, bend=0.0, wobble=0.8, steps=40)
    starts, headings = canvas.sprout(rng, twigs, 1, spread=0.7)
    tips = canvas.walk(rng, starts, headings, length=0.32, bend=0.0, wobble=0.8, steps=24)
    wide = canvas.trace(trunks, 0.95 * calibre, vein * taper)
    fine = canvas.trace(twigs, 0.8 * calibre, 0.5 * np.linspace(1, 0.3, 40))
    fine += canvas.trace(tips, 0.7 * calibre, 0.3 * np.linspace(1, 0.3, 24))
    return 0.58 * np.minimum(wide, 1.1) + 0.48 * np.minimum(fine, 0.8)


def draw_lesions(rng: np.random.Generator, eye: Eye, grade: int) -> Lesions:
    """Draw the lesions of a grade; their numbers overlap a little between grades.

    The 4-2-1 rule makes a retina severe when all quadrants bleed: here, by count and spread.
    A healthy retina may carry a stray dot and pale drusen, so that one spot proves nothing.
    """
    dots = int(rng.integers(*((0, 3), (5, 11), (10, 20))[grade]))
    blots = int(rng.integers(*((0, 1), (1, 5), (6, 13))[grade]))
    hard = int(rng.integers(*((0, 1), (0, 3), (0, 4))[grade]))
    soft = int(rng.integers(*((0, 1), (0, 2), (1, 5))[grade]))
    drusen = int(rng.poisson(2.5))
    blood = canvas.blobs(_scatter(rng, eye, dots), 0.017, rng.uniform(0.28, 0.62, dots))
    bled, bright = _clusters(rng, eye, blots, 5, 0.6), _clusters(rng, eye, hard, 9, 2.2)
    blood += 0.55 * np.minimum(canvas.blobs(bled.places, bled.radii, 0.8), 1.0)
    exudate = np.minimum(canvas.blobs(bright.places, 0.6 * bright.radii, 1.1), 0.9)
    exudate += 0.22 * canvas.blobs(_scatter(rng, eye, drusen), 0.02)
    places = _clusters(rng, eye, soft, 4, 0.7)
    cotton = canvas.blobs(places.places, 1.3 * places.radii, 0.28)
    return Lesions(blood, np.minimum(exudate, 1.0), np.minimum(cotton, 0.85))


class Cluster(NamedTuple):
    """Round spots that together make lesions of irregular shape: `(n, 2)` places, `(n,)` radii."""

    places: Plane
    radii: Plane


def _clusters(rng: np.random.Generator, eye: Eye, n: int, spots: int, looseness: float) -> Cluster:
    """Return `n` lesions of some `spots` each, spread over `looseness` times their radius."""
    size = np.repeat(rng.uniform(0.016, 0.036, n), spots)
    centres = np.repeat(_scatter(rng, eye, n), spots, axis=0)
    apart = rng.standard_normal((n * spots, 2)) * (looseness * size)[:, None]
    return Cluster(centres + apart, size * rng.uniform(0.5, 1.0, n * spots))


def _scatter(rng: np.random.Generator, eye: Eye, n: int) -> Plane:
    """Return `(n, 2)` places in the field of view that keep off the disc."""
    radius, angle = 0.8 * np.sqrt(rng.random(n)), rng.uniform(0.0, 2 * np.pi, n)
    places = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    away = places - np.array(eye.disc)
    reach = np.hypot(away[:, 0], away[:, 1])[:, None] + 1e-9
    return np.asarray(np.array(eye.disc) + away / reach * np.maximum(reach, 0.22))


def paint(eye: Eye, lesions: Lesions) -> Plane:
    """Return the retina as `(3, h, w)` grey levels."""
    channels = []
    for c in range(3):
        light = eye.tone[c] * np.exp(-PIGMENT[c] * eye.pigment)
        light += (DISC[c] - light) * eye.disc_light
        light *= np.exp(-BLOOD[c] * (eye.vessels + lesions.blood))
        light += (EXUDATE[c] - light) * lesions.exudate * 0.85
        light += (COTTON[c] - light) * lesions.cotton * 0.75
        channels.append(light)
    return np.stack(channels)


def draw_pose(rng: np.random.Generator) -> canvas.Pose:
    """Draw how an eye is seen: the patient never looks quite straight ahead."""
    return canvas.Pose(
        tilt=rng.normal(0.0, 0.08),
        reach=rng.uniform(0.94, 1.02),
        u=rng.normal(0.0, 0.03),
        v=rng.normal(0.0, 0.03),
    )


def photograph(rng: np.random.Generator, sheet: Plane, pose: canvas.Pose) -> Plane:
    """Return one photograph: focus, illumination, colour balance, noise, field of view."""
    photo = canvas.view(sheet, pose)
    blur = max(0.0, rng.uniform(-0.35, 0.55))
    if blur > 0.15:
        photo = ndimage.gaussian_filter(photo, (blur, blur, 0.0), truncate=3.0)
    u, v = canvas.axes(canvas.SIZE)
    radius = canvas.polar(canvas.SIZE)[0]
    tilt = rng.normal(0.0, 0.10, 2)
    fall = 1.0 + tilt[0] * u + tilt[1] * v - rng.uniform(0.10, 0.34) * radius**2
    balance = np.exp(rng.normal(0.0, 0.035, 3) + rng.normal(0.02, 0.07))
    photo = photo * fall[..., None] * balance
    photo = photo + rng.normal(0.0, rng.uniform(1.5, 4.0), photo.shape)
    field = np.clip((FIELD - radius) * canvas.SIZE / 2.0 + 0.5, 0.0, 1.0)
    return np.asarray(np.clip(photo, 0.0, 255.0) * field[..., None])
