"""The phantom of retinopathy with the outlines of its lesions.

Patients and photographs are those of `phantom_fundus`, pixel by pixel, so that a lesion detector
and a classifier of grades can learn from the same images.
"""

from __future__ import annotations

import numpy as np

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort, fundus

VISIBLE = fundus.Lesions(*map(np.array, (0.15, 0.40, 0.20)))
"""Least strength of a lesion pixel in each layer: drusen (0.22 of the exudates' layer) are none."""


def draw_lesion_masks(split: SplitName) -> Arrays:
    """Return `phantom_fundus_lesions`: 1 = haemorrhage, 2 = exudate, 3 = cotton-wool spot."""
    return cohort.draw("phantom_fundus", cohort.Sizes(), _patient, split)


def _patient(rng: np.random.Generator, visits: int) -> cohort.Study:
    """Draw the photographs of one eye with its lesions seen in the same poses."""
    examination = fundus.examine(rng, visits)
    pairs = zip(examination.lesions, VISIBLE, strict=True)
    # a view of a mask takes what lies above 0.5
    layers = np.stack([layer / (2 * visible) for layer, visible in pairs])
    masks = [canvas.view_mask(layers, pose) for pose in examination.poses]
    return cohort.Study(examination.photographs, masks)
