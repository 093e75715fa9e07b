"""The masks of lesions belong to the photographs of the graded phantom, and change none of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.phantoms import canvas, cohort, fundus, lesions

HAEMORRHAGE, EXUDATE, COTTON = 1, 2, 3
EACH = [
    "val",
    pytest.param("test", marks=pytest.mark.slow),
    pytest.param("train", marks=pytest.mark.slow),
]


@cache
def both(split: SplitName) -> tuple[Arrays, Arrays]:
    return fundus.draw_retinopathy(split), lesions.draw_lesion_masks(split)


@pytest.mark.parametrize("split", EACH)
def test_images_patients_and_ids_are_those_of_the_graded_phantom(split: SplitName) -> None:
    graded, masked = both(split)
    np.testing.assert_array_equal(masked.images, graded.images)
    np.testing.assert_array_equal(masked.ids, graded.ids)
    assert masked.patients is not None
    assert graded.patients is not None
    np.testing.assert_array_equal(masked.patients, graded.patients)


def test_the_graded_phantom_is_drawn_as_before_it_had_masks() -> None:
    def patient(rng: np.random.Generator, visits: int) -> cohort.Study:
        eye = fundus.draw_eye(rng)
        grade = int(rng.choice(3, p=(0.38, 0.32, 0.30)))
        sheet = fundus.paint(eye, fundus.draw_lesions(rng, eye, grade))
        images = [fundus.photograph(rng, sheet, fundus.draw_pose(rng)) for _ in range(visits)]
        return cohort.Study(images, [grade] * visits)

    before = cohort.draw("phantom_fundus", cohort.Sizes(), patient, "val")
    assert before.fingerprint() == both("val")[0].fingerprint()


def areas(split: SplitName) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the grades `(n,)` and the pixels of each kind of lesion `(n, 3)`."""
    graded, masked = both(split)
    kinds = [(masked.labels == kind).sum((1, 2)) for kind in (HAEMORRHAGE, EXUDATE, COTTON)]
    return graded.labels.astype(np.int64), np.stack(kinds, 1)


@pytest.mark.parametrize("split", EACH)
def test_the_worse_the_grade_the_more_lesions(split: SplitName) -> None:
    grades, pixels = areas(split)
    means = np.stack([pixels[grades == grade].mean(0) for grade in range(3)])
    assert (np.diff(means[:, 0]) > 5).all()
    # a healthy retina may have a stray haemorrhage, and its drusen are no exudates
    assert means[0, 0] < 5
    assert (means[0, 1:] < 0.1).all()
    assert (means[2, 1:] > 1).all()


def test_lesions_look_like_what_they_are() -> None:
    graded, masked = both("val")
    images, masks = graded.images.astype(np.float64), masked.labels
    red, green, blue = (
        {kind: images[..., channel][masks == kind].mean() for kind in range(4)}
        for channel in range(3)
    )
    inside = images[:, canvas.polar(canvas.SIZE)[0] < 0.8].mean((0, 1))
    assert green[HAEMORRHAGE] < 0.9 * inside[1]
    assert green[EXUDATE] > 1.15 * inside[1]
    assert green[COTTON] > 1.15 * inside[1]
    # exudates are yellow, cotton-wool spots whiter
    assert blue[EXUDATE] / red[EXUDATE] < blue[COTTON] / red[COTTON]


def test_an_eye_without_lesions_has_an_empty_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    none = fundus.Lesions(*[np.zeros((canvas.FINE, canvas.FINE))] * 3)
    monkeypatch.setattr(fundus, "draw_lesions", lambda *_: none)
    arrays = cohort.draw("phantom_fundus", cohort.Sizes(12, 12, 12), lesions._patient, "val")
    assert (arrays.labels == 0).all()
