"""Phantoms: deterministic, split by patient, within their contract, and not linearly solvable."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.dataset import Arrays, SplitName, check
from robustbench_med.datasets.phantoms import canvas, cohort

NAMES = ("phantom_chest", "phantom_chest_findings", "phantom_fundus", "phantom_dermoscopy")
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
QUICK: tuple[SplitName, ...] = ("val", "test")
# The training splits are three quarters of the drawing: `make test` leaves them out.
EXTENTS = [QUICK, pytest.param(SPLITS, marks=pytest.mark.slow)]


def draw_again(name: str, split: SplitName) -> Arrays:
    """Draw a split through the function its card names."""
    module, function = card_of(name).function.split(":")
    draw = getattr(importlib.import_module(f"robustbench_med.{module}"), function)
    return cast(Callable[[SplitName], Arrays], draw)(split)


@cache
def drawn(name: str, split: SplitName) -> Arrays:
    """Draw a split once for all tests."""
    return draw_again(name, split)


def card_of(name: str) -> DatasetCard:
    return registry.load("datasets")[name]


def linear_scores(train: Arrays, test: Arrays) -> list[float]:
    """Return the balanced accuracy of a linear model on pixels, for each finding or the class."""
    x, z = (a.images.reshape(len(a), -1).astype(np.float32) / 255 - 0.5 for a in (train, test))
    y, truth = (a.labels.reshape(len(a), -1).T for a in (train, test))
    scores = []
    for known, hidden in zip(y, truth, strict=True):
        with warnings.catch_warnings():
            # It need not converge: more steps overfit the pixels and score lower.
            warnings.simplefilter("ignore")
            model = LogisticRegression(C=0.01, max_iter=25).fit(x, known)
        scores.append(float(balanced_accuracy_score(hidden, model.predict(z))))
    return scores


@pytest.mark.parametrize("name", NAMES)
def test_a_split_is_the_same_twice_and_keeps_the_contract(name: str) -> None:
    arrays = drawn(name, "val")
    assert draw_again(name, "val").fingerprint() == arrays.fingerprint()
    assert check(arrays, card_of(name), "val") is arrays
    assert arrays.images.dtype == np.uint8
    assert arrays.labels.dtype == np.int64
    assert arrays.labels.min() == 0  # a phantom leaves nothing unlabelled


@pytest.mark.parametrize("splits", EXTENTS)
@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_patient_and_every_patient_comes_back(
    name: str, splits: tuple[SplitName, ...]
) -> None:
    people: list[set[str]] = []
    for split in splits:
        arrays = drawn(name, split)
        assert len(arrays) == getattr(cohort.Sizes(), split)
        assert arrays.patients is not None
        who, visits = np.unique(arrays.patients, return_counts=True)
        assert set(visits) == {2, 3, 4}
        assert all(i.startswith(f"{p}-") for i, p in zip(arrays.ids, arrays.patients, strict=True))
        people.append(set(who))
    assert len(set.union(*people)) == sum(map(len, people))


@pytest.mark.parametrize("splits", EXTENTS)
@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_in_two_splits_or_twice_in_one(
    name: str, splits: tuple[SplitName, ...]
) -> None:
    images = np.concatenate([drawn(name, split).images for split in splits])
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("split", [*QUICK, pytest.param("train", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_every_class_has_its_share(name: str, split: SplitName) -> None:
    labels = drawn(name, split).labels
    if labels.ndim == 2:
        frequencies = labels.mean(axis=0)
        assert 0.1 < (labels.sum(axis=1) == 0).mean() < 0.5  # films without any finding
    else:
        frequencies = np.bincount(labels, minlength=len(card_of(name).classes)) / len(labels)
    assert frequencies.min() > 0.25
    assert frequencies.max() < 0.6


def test_patients_of_the_two_chest_phantoms_differ() -> None:
    opacity, findings = (drawn(name, "val").images for name in NAMES[:2])
    assert not (opacity == findings).all(axis=(1, 2)).any()


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_synthetic_in_every_heading(name: str) -> None:
    card = card_of(name)
    assert card.synthetic
    assert "synthetic" in card.heading


def test_every_synthetic_card_is_tested_here() -> None:
    cards = registry.load("datasets").values()
    mine = {c.name for c in cards if c.synthetic and c.task != "segmentation"}
    assert mine == set(NAMES)  # those with masks: test_mask_phantoms.py


@pytest.mark.parametrize("name", NAMES[:2])
def test_chest_films_hold_exact_black_and_white(name: str) -> None:
    images = drawn(name, "test").images
    assert (images == 255).any(axis=(1, 2)).all()  # the burnt-in marker
    assert 0.1 < (images == 0).any(axis=(1, 2)).mean() < 0.6  # collimated films


def test_fundus_is_black_outside_its_field() -> None:
    images = drawn("phantom_fundus", "test").images
    radius, _ = canvas.polar(canvas.SIZE)
    assert (images[:, radius > 1.0] == 0).all()
    assert images[:, radius < 0.8].mean() > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_linear_model_is_not_enough(name: str) -> None:
    scores = linear_scores(drawn(name, "train"), drawn(name, "test"))
    assert np.mean(scores) < 0.85


def test_an_ellipse_covers_its_area() -> None:
    mask = canvas.ellipse((0.1, -0.2), (0.5, 0.25), soft=0.01, tilt=0.6)
    assert mask.sum() * (2.0 / canvas.FINE) ** 2 == pytest.approx(np.pi * 0.5 * 0.25, rel=0.02)


def test_a_traced_line_has_unit_height_and_its_width() -> None:
    path = np.stack([np.linspace(-2.0, 2.0, 400), np.full(400, 0.1)], axis=-1)[None]
    profile = canvas.trace(path, 2.0)[:, canvas.FINE // 2]
    assert profile.max() == pytest.approx(1.0, abs=0.08)
    assert profile.sum() == pytest.approx(2.0 * np.sqrt(2 * np.pi), rel=0.05)


def test_noise_has_unit_variance_up_to_the_border() -> None:
    rng = np.random.default_rng(0)
    sheets = np.stack([canvas.noise(rng, 0.1) for _ in range(200)])
    assert sheets[:, 0, 0].std() == pytest.approx(1.0, abs=0.2)
    assert sheets.std() == pytest.approx(1.0, abs=0.03)


def test_a_view_from_the_middle_halves_the_canvas() -> None:
    u, v = canvas.axes()
    ramp = u + 2.0 * v
    small_u, small_v = canvas.axes(canvas.SIZE)
    image = canvas.view(ramp, canvas.Pose(tilt=0.0, reach=1.0, u=0.0, v=0.0))
    np.testing.assert_allclose(image, small_u + 2.0 * small_v, atol=1e-9)
