"""The control that is not medical: digits that scikit-learn ships, in three splits."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from robustbench_med.datasets.load import load_dataset


def test_every_digit_is_in_one_split_and_every_class_in_each() -> None:
    data, ids = load_dataset("digits_28"), list[str]()
    for split in ("train", "val", "test"):
        arrays = data.arrays(split)
        assert arrays.images.shape[1:] == (28, 28)
        assert set(arrays.labels.tolist()) == set(range(10))
        ids += arrays.ids.tolist()
    assert len(ids) == len(set(ids)) == len(load_digits().target)


def test_the_interpolation_keeps_range_and_corners() -> None:
    arrays = load_dataset("digits_28").arrays("test")
    stored = load_digits().images[1400:]
    assert arrays.images.max() == 255
    corners = arrays.images[:, ::27, ::27] / 255
    np.testing.assert_allclose(corners, stored[:, ::7, ::7] / 16, atol=0.5 / 255)


def test_the_card_says_that_these_are_no_medical_images() -> None:
    card = load_dataset("digits_28").card
    assert "no medical images" in card.title
    assert not card.synthetic
