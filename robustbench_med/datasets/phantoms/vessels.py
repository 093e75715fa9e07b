"""Phantom of a colour fundus photograph with its vessel tree, scored inside the field of view.

The eyes are those of `fundus.py` with wider vessels: at 64 pixels the finest ones of a real
photograph would be lost. Haemorrhages, exudates and the dark macula are no vessels.
"""

from __future__ import annotations

import numpy as np

from robustbench_med.datasets.codes import UNLABELLED
from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort, fundus
from robustbench_med.datasets.phantoms.canvas import Mask, Plane

SIZES = cohort.Sizes(train=360, val=60, test=120)

CALIBRE = 1.4
"""Width of the vessels, relative to those of the classification phantom."""

TWIGS = 2
"""Twigs on each large vessel: more of them would touch each other at this width."""

VISIBLE = 0.16
"""Least absorption of a vessel pixel: fainter ones are lost in noise and choroid."""


def draw_vessels(split: SplitName) -> Arrays:
    """Return `phantom_vessels`: masks of 1 = vessel, -1 = outside the field of view."""
    return cohort.draw("phantom_vessels", SIZES, _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw photographs of one eye with the vessels seen in the same pose."""
    eye = fundus.draw_eye(rng, calibre=CALIBRE, twigs=TWIGS)
    grade = int(rng.choice(3, p=(0.5, 0.3, 0.2)))
    sheet = fundus.paint(eye, fundus.draw_lesions(rng, eye, grade))
    images: list[Plane] = []
    masks: list[Mask] = []
    for _ in range(visits):
        pose = fundus.draw_pose(rng)
        images.append(fundus.photograph(rng, sheet, pose))
        masks.append(_mask(eye.vessels, pose))
    return cohort.Study(images, masks)


def _mask(vessels: Plane, pose: canvas.Pose) -> Mask:
    """Return the mask `(SIZE, SIZE)` of the vessels in view; the field of view is the camera's."""
    mask = (canvas.view(vessels, pose) > VISIBLE).astype(np.int16)
    mask[canvas.polar(canvas.SIZE)[0] > fundus.FIELD] = UNLABELLED
    return mask
