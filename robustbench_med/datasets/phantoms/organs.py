"""Phantom of a frontal chest radiograph with the outlines of lungs and heart.

The films are those of `chest.py`; a part of them shows an opacity or an enlarged heart, which a
reader has to look through: consolidated lung is lung.
"""

from __future__ import annotations

import numpy as np

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, chest, cohort
from robustbench_med.datasets.phantoms.canvas import Mask, Plane
from robustbench_med.datasets.phantoms.thorax import Thorax, Traits, draw_thorax, draw_traits

SIZES = cohort.Sizes(train=360, val=60, test=120)


def draw_organs(split: SplitName) -> Arrays:
    """Return `phantom_chest_organs`: masks of 1 = right lung, 2 = left lung, 3 = heart."""
    return cohort.draw("phantom_chest_organs", SIZES, _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw a patient's films with the masks seen in the same pose."""
    traits = draw_traits(rng, enlarged=rng.random() < 0.35)
    thorax = draw_thorax(rng, traits)
    outlines = _outlines(thorax, traits)
    cloud = chest.opacity(rng, thorax) * (rng.random() < 0.4)
    images: list[Plane] = []
    masks: list[Mask] = []
    for _ in range(visits):
        pose = chest.draw_pose(rng)
        sheet = thorax.attenuation + rng.uniform(0.6, 1.1) * cloud
        images.append(chest.expose(rng, sheet, pose))
        masks.append(canvas.view_mask(outlines, pose))
    return cohort.Study(images, masks)


def _outlines(thorax: Thorax, traits: Traits) -> Plane:
    """Return right lung, left lung and heart as soft layers `(3, h, w)`.

    As readers draw them: the lungs stop at the heart and the diaphragm, and the heart at the root
    of the great vessels, though its shadow goes on above.
    """
    u, v = canvas.axes()
    # Aerated lung is 0.15 of a lung where the heart lies over it: less than half of a pixel.
    right_lung, left_lung = thorax.lung * (u < 0), thorax.lung * (u >= 0)
    heart = thorax.heart * canvas.step(v - traits.heart_v + 0.34, 0.03)
    return np.stack([right_lung, left_lung, heart])
