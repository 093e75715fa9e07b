"""The cohort of a phantom: the patients of each split, and the loop that draws them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms.canvas import Mask, Plane

COHORT_SEED = 20_240
"""Seed of every phantom patient; changing it, or any drawing code, makes a different dataset."""

VISITS = (2, 3, 4, 3)
"""Numbers of images of successive patients: at least two each, and 12 for 4 patients."""


class Sizes(NamedTuple):
    """Images per split; each is a multiple of `sum(VISITS)`, so that no patient is split."""

    train: int = 900
    val: int = 240
    test: int = 300


class Study(NamedTuple):
    """The images and labels of one patient.

    Attributes:
        images: one `(h, w)`, `(h, w, c)` or `(d, h, w)` image a visit, in grey levels, not yet
            rounded.
        labels: one class id, one 0/1 row of findings, or one mask of class ids, a visit.
    """

    images: list[Plane]
    labels: list[int] | list[tuple[int, ...]] | list[Mask]


DrawPatient = Callable[[np.random.Generator, int], Study]


def draw(card_name: str, sizes: Sizes, draw_patient: DrawPatient, split: SplitName) -> Arrays:
    """Return one split of a phantom; other splits are not drawn.

    Args:
        card_name: registry name; by it, phantoms of the same anatomy get different patients.
        sizes: images in each split.
        draw_patient: draws the given number of visits of one patient from a generator.
        split: the split to draw.

    Returns:
        uint8 images, int64 labels (masks: int16), ids such as `p0123-2` and patients such as
        `p0123`.
    """
    key = zlib.crc32(card_name.encode())
    images: list[Plane] = []
    labels: list[int | tuple[int, ...] | Mask] = []
    ids: list[str] = []
    for patient in _patients(sizes, split):
        rng = np.random.default_rng([COHORT_SEED, key, patient])
        visits = VISITS[patient % len(VISITS)]
        study = draw_patient(rng, visits)
        images += study.images
        labels += study.labels
        ids += [f"p{patient:04d}-{visit}" for visit in range(visits)]
    pixels = np.rint(np.clip(np.stack(images), 0.0, 255.0)).astype(np.uint8)
    patients = np.array([name.partition("-")[0] for name in ids])
    if isinstance(labels[0], np.ndarray):
        return Arrays(pixels, np.array(labels, dtype=np.int16), np.array(ids), patients)
    return Arrays(pixels, np.array(labels, dtype=np.int64), np.array(ids), patients)


def _patients(sizes: Sizes, split: SplitName) -> range:
    """Return the numbers of a split's patients: train first, then val, then test."""
    counts = [n * len(VISITS) // sum(VISITS) for n in sizes]
    index = Sizes._fields.index(split)
    start = sum(counts[:index])
    return range(start, start + counts[index])
