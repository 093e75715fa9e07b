"""Phantoms with masks are deterministic and split by patient; masks agree with their images."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets.dataset import Arrays, SplitName, check
from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.phantoms import (
    brain,
    canvas,
    chest,
    cohort,
    fundus,
    glioma,
    hippocampus,
    organs,
    vessels,
)
from robustbench_med.datasets.phantoms.canvas import Plane

SIZES = {
    "phantom_brain": glioma.SIZES,
    "phantom_chest_organs": organs.SIZES,
    "phantom_vessels": vessels.SIZES,
    "phantom_fundus_lesions": cohort.Sizes(),
    "phantom_volume": hippocampus.SIZES,
}
NAMES = tuple(SIZES)
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
QUICK: tuple[SplitName, ...] = ("val", "test")
EXTENTS = [QUICK, pytest.param(SPLITS, marks=pytest.mark.slow)]
EACH = [*QUICK, pytest.param("train", marks=pytest.mark.slow)]
T1, T1CE, T2, FLAIR = range(4)
Where = NDArray[np.bool_]
DrawPatient = Callable[[np.random.Generator, int], cohort.Study]


def card_of(name: str) -> DatasetCard:
    return registry.load("datasets")[name]


def draw_again(name: str, split: SplitName) -> Arrays:
    """Draw a split through the function its card names."""
    module, function = card_of(name).function.split(":")
    draw = getattr(importlib.import_module(f"robustbench_med.{module}"), function)
    return cast(Callable[[SplitName], Arrays], draw)(split)


@cache
def drawn(name: str, split: SplitName) -> Arrays:
    """Draw a split once for all tests."""
    return draw_again(name, split)


def within(name: str, split: SplitName = "test") -> tuple[NDArray[Any], NDArray[Any]]:
    """Return images as float64 and masks of a split."""
    arrays = drawn(name, split)
    return arrays.images.astype(np.float64), arrays.labels


def contrast(values: NDArray[Any], inside: Where, outside: Where) -> Plane:
    """Return, for each image that has 8 pixels of both, the mean inside minus the mean outside."""
    pairs = zip(values, inside, outside, strict=True)
    return np.array([v[a].mean() - v[b].mean() for v, a, b in pairs if min(a.sum(), b.sum()) >= 8])


def shell(mask: Where, width: int = 2) -> Where:
    """Return what lies within `width` pixels around each mask `(n, *s)`."""
    grown = [ndimage.binary_dilation(m, iterations=width) & ~m for m in mask]
    return np.stack(grown)


def best_threshold(values: NDArray[Any], mask: Where) -> float:
    """Return the best Dice, over all thresholds and both directions, on the pooled pixels."""
    hit = np.bincount(values[mask], minlength=256)
    miss = np.bincount(values[~mask], minlength=256)
    scores = []
    for h, m in ((hit, miss), (hit[::-1], miss[::-1])):
        true_positives = np.cumsum(h)
        scores.append((2 * true_positives / (true_positives + np.cumsum(m) + hit.sum())).max())
    return float(max(scores))


# ---- contract ----


@pytest.mark.parametrize("name", NAMES)
def test_a_split_is_the_same_twice_and_keeps_the_contract(name: str) -> None:
    arrays = drawn(name, "val")
    card = card_of(name)
    assert draw_again(name, "val").fingerprint() == arrays.fingerprint()
    assert check(arrays, card, "val") is arrays
    assert str(arrays.images.dtype) == "uint8"
    assert str(arrays.labels.dtype) == "int16"
    assert arrays.labels.shape == (len(arrays), *card.size)
    assert set(np.unique(arrays.labels)) - {-1} == set(range(len(card.classes)))
    assert card.synthetic
    assert card.task == "segmentation"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_has_masks_of_class_ids(name: str) -> None:
    card = card_of(name)
    batch = load_dataset(name).batch("val", n=5)
    assert batch.x.shape == (5, card.channels, *card.size)
    assert batch.y.shape == (5, *card.size)
    assert bool((batch.y == -1).any()) == (name == "phantom_vessels")


def test_another_process_draws_the_same_bytes() -> None:
    code = (
        "import sys\nfrom robustbench_med.datasets.load import load_dataset\n"
        "for name in sys.argv[1:]:\n"
        "    print(load_dataset(name).arrays('val').fingerprint())"
    )
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code, *NAMES], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [drawn(name, "val").fingerprint() for name in NAMES]


@pytest.mark.parametrize("splits", EXTENTS)
@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_patient_and_no_image(name: str, splits: tuple[SplitName, ...]) -> None:
    people: list[set[str]] = []
    for split in splits:
        arrays = drawn(name, split)
        assert len(arrays) == getattr(SIZES[name], split)
        assert arrays.patients is not None
        who, visits = np.unique(arrays.patients, return_counts=True)
        assert set(visits) == {2, 3, 4}
        people.append(set(who))
    assert len(set.union(*people)) == sum(map(len, people))
    images = np.concatenate([drawn(name, split).images for split in splits])
    assert len({image.tobytes() for image in images}) == len(images)


def test_every_synthetic_card_with_masks_is_tested_here() -> None:
    cards = registry.load("datasets").values()
    assert {c.name for c in cards if c.synthetic and c.task == "segmentation"} == set(NAMES)


def test_cards_name_channels_and_spacing() -> None:
    assert card_of("phantom_brain").channel_names == brain.SEQUENCES
    assert card_of("phantom_vessels").spacing is None
    assert card_of("phantom_fundus_lesions").spacing is None
    for name in set(NAMES) - {"phantom_vessels", "phantom_fundus_lesions"}:
        card = card_of(name)
        assert card.spacing is not None
        assert len(card.spacing) == len(card.size)


# ---- masks ----


@pytest.mark.parametrize("split", EACH)
def test_about_a_sixth_of_the_slices_hold_no_tumour(split: SplitName) -> None:
    masks = drawn("phantom_brain", split).labels.reshape(-1, 64 * 64)
    tumour = (masks > 0).any(axis=1)
    assert 0.08 < 1.0 - tumour.mean() < 0.25
    enhances = (masks == 3).any(axis=1)
    assert 0.05 < 1.0 - enhances[tumour].mean() < 0.45
    assert (masks[tumour] > 0).sum(axis=1).min() >= 20  # no crumbs


@pytest.mark.parametrize("split", EACH)
def test_a_few_volumes_are_empty(split: SplitName) -> None:
    masks = drawn("phantom_volume", split).labels.reshape(-1, 32**3)
    whole = (masks > 0).sum(axis=1)
    assert 0.03 < (whole == 0).mean() < 0.20
    assert whole[whole > 0].min() > 300
    parts = np.stack([(masks == k).any(axis=1) for k in (1, 2)])
    assert (parts[0] == parts[1]).all()  # both parts or none


@pytest.mark.parametrize("name", ["phantom_chest_organs", "phantom_vessels"])
def test_every_film_and_photograph_shows_every_class(name: str) -> None:
    masks = drawn(name, "test").labels.reshape(len(drawn(name, "test")), -1)
    for k in range(len(card_of(name).classes)):
        assert ((masks == k).sum(axis=1) > 50).all()


def test_only_what_lies_outside_the_field_of_view_is_ignored() -> None:
    for name in NAMES:
        ignored = drawn(name, "test").labels == -1
        if name == "phantom_vessels":
            outside = canvas.polar(canvas.SIZE)[0] > fundus.FIELD
            assert (ignored == outside).all()
        else:
            assert not ignored.any()


def test_regions_of_the_brain_are_nested() -> None:
    regions = [set(ids) for ids in card_of("phantom_brain").regions.values()]
    assert regions[0] > regions[1] > regions[2]


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_layers_of_a_tumour_are_nested_and_keep_their_shape_in_the_view(scale: float) -> None:
    at = canvas.axes()
    pose = canvas.Pose(tilt=0.2, reach=0.9, u=0.05, v=-0.05)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tissue = brain.draw_slice(brain.draw_head(rng), 0.3, at)
        layers = glioma.tumour_layers(glioma.draw_tumour(rng), scale, tissue)
        assert (layers.whole >= layers.core).all()
        assert (layers.core >= layers.enhancing).all()
        mask = canvas.view_mask(np.stack(layers), pose)
        for k, layer in enumerate(layers, start=1):
            np.testing.assert_array_equal(mask >= k, canvas.view(layer, pose) > 0.5)


def test_a_slice_beside_the_tumour_has_none() -> None:
    rng = np.random.default_rng(0)
    tissue = brain.draw_slice(brain.draw_head(rng), 0.3, canvas.axes())
    assert not np.stack(glioma.tumour_layers(glioma.draw_tumour(rng), 0.0, tissue)).any()


def test_the_hippocampus_is_one_piece_with_its_head_in_front() -> None:
    for mask in drawn("phantom_volume", "test").labels:
        if not mask.any():
            continue
        _, n = ndimage.label(mask > 0)
        assert n == 1
        front, back = (np.nonzero(mask == k)[2].mean() for k in (1, 2))
        assert front + 5 < back


def test_the_right_lung_is_on_the_left_of_the_film() -> None:
    for mask in drawn("phantom_chest_organs", "test").labels:
        right, left = (np.nonzero(mask == k)[1] for k in (1, 2))
        assert right.max() < left.min() + 4  # a tilted patient's lungs may overlap by a column
        assert right.mean() < np.nonzero(mask == 3)[1].mean() < left.mean()


# ---- masks against images ----


def test_each_sequence_shows_its_part_of_the_tumour() -> None:
    images, masks = within("phantom_brain")
    edema, core, enhancing = (masks == k for k in (1, 2, 3))
    healthy = (masks == 0) & (images.min(axis=-1) > 0)
    for channel, bright, dark in (
        (T1CE, enhancing, core),
        (T1CE, enhancing, edema),
        (T1, edema, core),
        (T1, healthy, edema),
        (FLAIR, edema, healthy),
        (T2, edema, healthy),
        (T2, core, healthy),
    ):
        gap = contrast(images[..., channel], bright, dark)
        assert len(gap) > 20
        assert (gap > 0).mean() > 0.9
        assert gap.mean() > 10


def test_contrast_agent_changes_nothing_but_the_enhancing_part() -> None:
    images, masks = within("phantom_brain")
    gain = images[..., T1CE] - images[..., T1]
    assert contrast(gain, masks == 3, masks == 1).min() > 30
    assert abs(contrast(gain, masks == 2, masks == 1)).mean() < 12


def test_a_stripped_brain_is_exact_black_outside_and_holds_its_tumour() -> None:
    images, masks = within("phantom_brain")
    assert (images[:, :2] == 0).all(axis=(1, 2, 3)).mean() > 0.5
    assert ((images == 0).all(axis=-1)).mean() > 0.2
    assert (images[masks > 0].sum(axis=-1) > 0).all()


def test_lungs_are_darker_than_the_heart() -> None:
    images, masks = within("phantom_chest_organs")
    for lung in (1, 2):
        assert contrast(images, masks == 3, masks == lung).min() > 25


def test_vessels_are_darker_than_the_retina_beside_them() -> None:
    images, masks = within("phantom_vessels")
    inside = canvas.polar(canvas.SIZE)[0] < 0.85
    mask = (masks == 1) & inside
    beside = shell(masks == 1) & (masks == 0) & inside
    green = contrast(images[..., 1], beside, mask)
    assert green.min() > 3
    assert np.median(green) > 12
    assert green.mean() > contrast(images[..., 0], beside, mask).mean() / 2


def test_the_hippocampus_is_darker_than_white_matter() -> None:
    images, masks = within("phantom_volume")
    mask = masks > 0
    bright = np.array(
        [np.quantile(v, 0.9) - v[m].mean() for v, m in zip(images, mask, strict=True) if m.any()]
    )
    assert bright.min() > 20


def test_a_resection_leaves_fluid_where_the_structure_was_and_nothing_else() -> None:
    anatomy = hippocampus._draw_anatomy(np.random.default_rng(3))
    inside = anatomy.layers.sum(axis=0)
    assert (anatomy.resected - anatomy.signal)[inside > 0.9].max() < -0.2
    assert abs(anatomy.resected - anatomy.signal)[inside < 0.01].max() < 0.02


@pytest.mark.parametrize(
    ("name", "ids", "limit"),
    [
        ("phantom_brain", (1, 2, 3), 0.75),
        ("phantom_brain", (2, 3), 0.6),
        ("phantom_brain", (3,), 0.75),
        ("phantom_chest_organs", (3,), 0.6),
        ("phantom_vessels", (1,), 0.6),
        ("phantom_volume", (1, 2), 0.3),
    ],
)
def test_a_threshold_is_not_enough(name: str, ids: tuple[int, ...], limit: float) -> None:
    arrays = drawn(name, "test")
    counted = arrays.labels != -1
    mask = np.isin(arrays.labels, ids)[counted]
    channels = np.moveaxis(arrays.images, -1, 0) if card_of(name).channels > 1 else [arrays.images]
    scores = [best_threshold(channel[counted], mask) for channel in channels]
    assert max(scores) < limit


# ---- poses ----


def in_pose(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, draw: DrawPatient, pose: canvas.Pose
) -> tuple[Plane, NDArray[Any]]:
    """Return the first image and mask of one patient that keeps the given pose."""
    poses = iter([pose] * 2)  # one a visit at most: a mask in a pose of its own would want more
    monkeypatch.setattr(module, "draw_pose", lambda rng: next(poses))
    study = draw(np.random.default_rng(5), 2)
    return study.images[0], np.asarray(study.labels[0])


@pytest.mark.parametrize(
    ("module", "draw"),
    [(chest, organs._patient), (fundus, vessels._patient), (glioma, glioma._patient)],
)
def test_a_pose_moves_image_and_mask_together(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, draw: DrawPatient
) -> None:
    pixel = 2.0 / canvas.SIZE
    still, mask = in_pose(monkeypatch, module, draw, canvas.Pose(0.0, 1.0, 0.0, 0.0))
    moved, shifted = in_pose(
        monkeypatch, module, draw, canvas.Pose(0.0, 1.0, 5 * pixel, -3 * pixel)
    )
    # The window goes 5 pixels to the right and 3 up: what it sees goes 5 to the left and 3 down.
    before, after = np.s_[16:-19, 21:-16], np.s_[19:-16, 16:-21]
    counted = (mask[before] != -1) & (shifted[after] != -1)
    assert np.isin(mask[before][counted], (1, 2, 3)).sum() > 30
    np.testing.assert_array_equal(mask[before][counted], shifted[after][counted])
    # Illumination and noise stay with the camera; what is between them goes with the patient.
    first, second = (
        ndimage.gaussian_filter(x, 1.0, axes=(0, 1)) - ndimage.gaussian_filter(x, 4.0, axes=(0, 1))
        for x in (still, moved)
    )
    follows = np.corrcoef(first[before].ravel(), second[after].ravel())[0, 1]
    stays = np.corrcoef(first[before].ravel(), second[before].ravel())[0, 1]
    assert follows > 0.4
    assert follows > stays + 0.3


def test_a_stance_moves_volume_and_mask_together(monkeypatch: pytest.MonkeyPatch) -> None:
    views = []
    for centre in (np.zeros(3), np.array([2.0, -3.0, 1.0]) * 2.0 / hippocampus.SIDE):
        stance = hippocampus.Stance(np.zeros(3), 1.0, centre)
        stances = iter([stance] * 2)
        monkeypatch.setattr(hippocampus, "draw_stance", lambda rng, stances=stances: next(stances))
        study = hippocampus._patient(np.random.default_rng(5), 2)
        views.append((study.images[0], np.asarray(study.labels[0])))
    (still, mask), (moved, shifted) = views
    before, after = np.s_[4:-4, 4:-4, 4:-4], np.s_[2:-6, 7:-1, 3:-5]
    np.testing.assert_array_equal(mask[before], shifted[after])
    assert set(np.unique(mask[before])) == {0, 1, 2}
    assert np.corrcoef(still[before].ravel(), moved[after].ravel())[0, 1] > 0.9


# ---- brushes ----


def test_a_mask_in_view_covers_its_area_and_later_layers_lie_on_top() -> None:
    disc = canvas.ellipse((0.1, 0.0), (0.6, 0.4), soft=0.01)
    core = canvas.ellipse((0.1, 0.0), (0.3, 0.2), soft=0.01)
    pose = canvas.Pose(tilt=0.4, reach=0.8, u=0.1, v=0.0)
    mask = canvas.view_mask(np.stack([disc, core]), pose)
    area = (2.0 * 0.8 / canvas.SIZE) ** 2
    assert (mask > 0).sum() * area == pytest.approx(np.pi * 0.24, rel=0.03)
    assert (mask == 2).sum() * area == pytest.approx(np.pi * 0.06, rel=0.05)
    assert (canvas.view_mask(np.stack([core, disc]), pose) == 1).sum() == 0
    assert not canvas.view_mask(np.zeros((2, canvas.FINE, canvas.FINE)), pose).any()


def test_a_bent_ellipse_is_drawn_where_its_coordinates_say() -> None:
    u, v = canvas.axes()
    moved = canvas.ellipse((0.0, 0.0), (0.4, 0.3), soft=0.02, at=(u - 0.2, v + 0.1))
    np.testing.assert_allclose(moved, canvas.ellipse((0.2, -0.1), (0.4, 0.3), soft=0.02))


def test_a_view_of_a_volume_is_centred_and_rotated() -> None:
    fine, line = (canvas.axes(side)[0][0] for side in (hippocampus.FINE, hippocampus.SIDE))
    ramp = fine[:, None, None] + 2.0 * fine[:, None] + 3.0 * fine
    expected = line[:, None, None] + 2.0 * line[:, None] + 3.0 * line
    for quarter in (0, 1):
        stance = hippocampus.Stance(np.array([quarter * np.pi / 2, 0, 0]), 1.0, np.zeros(3))
        views = hippocampus.view(ramp, stance)
        np.testing.assert_allclose(views, np.rot90(expected, -quarter, axes=(1, 2)), atol=1e-9)


def test_a_voxel_belongs_to_the_larger_part_of_the_structure() -> None:
    parts = np.zeros((2, *(hippocampus.FINE,) * 3))
    parts[0, ..., :24], parts[1, ..., 24:] = 0.6, 0.45
    stance = hippocampus.Stance(np.zeros(3), 1.0, np.zeros(3))
    mask = hippocampus.view_mask(parts, stance)
    assert (mask[..., :15] == 1).all()
    assert (mask[..., 17:] == 0).all()  # less than half a voxel of the structure
    assert (hippocampus.view_mask(parts * 1.2, stance)[..., 17:] == 2).all()
