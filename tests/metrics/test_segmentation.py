"""Scores of masks: against MONAI, scikit-learn and scikit-image, closed forms and corner rows."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skimage import measure
from sklearn import metrics as sk

from robustbench_med.metrics.segmentation import Regions, mask_metrics, overlap, units
from tests.metrics.masks import GRIDS, blobs, brute_force

TUMOUR: Regions = {"whole tumour": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}
label: Any = measure.label  # untyped
REGIONAL = ("dice", "iou", "hd95", "nsd", "volume_error", "lesion_miss", "false_alarm")

Floats = NDArray[np.float64]


def ids(n: int, size: tuple[int, ...], *, seed: int) -> NDArray[np.int64]:
    """Return `n` maps of the classes 0..3, each map with every class."""
    found = np.zeros((n, *size), dtype=np.int64)
    for k in (1, 2, 3):
        found[blobs(n, size, seed=10 * seed + k, share=0.12)] = k
    return found


def measured(
    called: NDArray[np.integer[Any]],
    truth: NDArray[np.integer[Any]],
    *,
    parts: Regions | None = None,
    spacing: tuple[float, ...] | None = None,
    tolerance: float = 1.5,
) -> dict[str, Floats]:
    return mask_metrics(
        called.astype(np.uint8),
        truth,
        regions={"lesion": (1,)} if parts is None else parts,
        spacing=spacing,
        tolerance=tolerance,
    )


def only(found: dict[str, Floats]) -> dict[str, float]:
    """Return the metrics of one image and region."""
    return {name: float(values.item()) for name, values in found.items()}


@pytest.mark.parametrize(("size", "spacing"), GRIDS)
def test_metrics_of_nested_regions_are_those_of_independent_references(
    size: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    called, truth = ids(3, size, seed=1), ids(3, size, seed=2)
    truth[0, :4] = -1
    found = measured(called, truth, parts=TUMOUR, spacing=spacing)
    pixel = 1.0 if spacing is None else float(np.prod(spacing)) / (1000 if len(size) == 3 else 1)
    for i in range(3):
        known = truth[i] >= 0
        for j, members in enumerate(TUMOUR.values()):
            one, other = (np.isin(m[i], members) & known for m in (called, truth))
            got = {name: found[name][i, j] for name in REGIONAL}
            assert got["dice"] == pytest.approx(sk.f1_score(other.ravel(), one.ravel()))
            assert got["iou"] == pytest.approx(sk.jaccard_score(other.ravel(), one.ravel()))
            distances = brute_force(one, other, spacing, 1.5)
            assert (got["hd95"], got["nsd"]) == pytest.approx(distances, rel=1e-9)
            assert got["volume_error"] == pytest.approx(
                abs(int(one.sum()) - int(other.sum())) * pixel
            )
            lesions = label(other, connectivity=len(size))
            missed = [not one[lesions == k].any() for k in range(1, lesions.max() + 1)]
            assert got["lesion_miss"] == pytest.approx(np.mean(missed))
            assert np.isnan(got["false_alarm"])
        assert found["pixel_accuracy"][i, 0] == pytest.approx(
            sk.accuracy_score(truth[i][known], called[i][known])
        )
    np.testing.assert_array_equal(
        overlap(called.astype(np.uint8), truth, regions=TUMOUR), found["dice"]
    )


@pytest.mark.parametrize(("size", "spacing"), GRIDS)
# MONAI passes itself an argument that it deprecates
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_metrics_are_those_of_monai(
    size: tuple[int, ...], spacing: tuple[float, ...] | None
) -> None:
    monai: Any = import_module("monai.metrics")  # seconds to import, and untyped
    called, truth = ids(4, size, seed=3), ids(4, size, seed=4)
    found = measured(called, truth, parts=TUMOUR, spacing=spacing)
    pair = [
        torch.from_numpy(np.stack([np.isin(m, k) for k in TUMOUR.values()], axis=1))
        for m in (called, truth)
    ]
    meters: dict[str, Any] = {
        "dice": monai.DiceMetric(reduction="none", ignore_empty=False),
        "iou": monai.MeanIoU(reduction="none", ignore_empty=False),
        "hd95": monai.HausdorffDistanceMetric(True, percentile=95, reduction="none"),
        "nsd": monai.SurfaceDiceMetric([1.5] * 3, include_background=True, reduction="none"),
    }
    for name, meter in meters.items():
        meter(*pair, **({"spacing": spacing} if name in ("hd95", "nsd") else {}))
        np.testing.assert_allclose(found[name], meter.aggregate().numpy(), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("spacing", "volume", "distance"),
    [(None, 100.0, 2.0), ((1.0, 1.0, 1.0), 0.1, 2.0), ((0.5, 1.0, 3.0), 0.15, 1.0)],
)
def test_two_cubes(spacing: tuple[float, ...] | None, volume: float, distance: float) -> None:
    """A cube of side 10 pixels, once moved by 2 along the first axis, once one slice thinner."""
    truth = np.zeros((2, 20, 20, 20), dtype=np.int64)
    truth[:, 5:15, 5:15, 5:15] = 1
    called = np.zeros_like(truth)
    called[0, 7:17, 5:15, 5:15] = 1
    called[1, 5:15, 5:15, 5:14] = 1
    found = measured(called, truth, spacing=spacing)
    np.testing.assert_allclose(found["dice"][:, 0], [0.8, 1800 / 1900])
    np.testing.assert_allclose(found["iou"][:, 0], [800 / 1200, 0.9])
    np.testing.assert_allclose(found["volume_error"][:, 0], [0, volume])
    assert found["hd95"][0, 0] == pytest.approx(distance)
    np.testing.assert_allclose(found["pixel_accuracy"][:, 0], [1 - 400 / 8000, 1 - 100 / 8000])


def test_area_is_in_square_millimetres() -> None:
    truth, called = np.ones((1, 4, 6), dtype=np.int64), np.ones((1, 4, 6), dtype=np.int64)
    called[0, 0] = 0
    assert measured(called, truth)["volume_error"].item() == 6
    assert measured(called, truth, spacing=(2.0, 0.25))["volume_error"].item() == 3


@pytest.mark.parametrize(
    ("spacing", "ndim", "expected"),
    [(None, 2, ("px", "px")), (None, 3, ("px", "voxels"))]
    + [((1.0, 1.0), 2, ("mm", "mm²")), ((1.0, 1.0, 2.0), 3, ("mm", "ml"))],
)
def test_units(spacing: tuple[float, ...] | None, ndim: int, expected: tuple[str, str]) -> None:
    assert units(spacing, ndim) == dict(zip(("hd95", "volume_error"), expected, strict=True))


@pytest.mark.parametrize("size", [(6, 8), (6, 8, 24)])
@pytest.mark.parametrize("b", [1, 3])
def test_the_rule_for_empty_regions(size: tuple[int, ...], b: int) -> None:
    nothing = np.zeros((b, *size), dtype=np.int64)
    something = nothing.copy()
    something[:, 2, 3] = 1
    diagonal = np.sqrt(np.square(size).sum())
    cases = {
        (0, 0): (1, 1, 0, 1, np.nan, 0),
        (0, 1): (0, 0, diagonal, 0, 1, np.nan),  # missed
        (1, 0): (0, 0, diagonal, 0, np.nan, 1),  # invented
        (1, 1): (1, 1, 0, 1, 0, np.nan),
    }
    names = ("dice", "iou", "hd95", "nsd", "lesion_miss", "false_alarm")
    for (one, other), expected in cases.items():
        found = measured((nothing, something)[one], (nothing, something)[other])
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_allclose(found[name], np.full((b, 1), value), err_msg=name)


def test_an_absent_class_keeps_its_column() -> None:
    called, truth = ids(2, (16, 16), seed=5), ids(2, (16, 16), seed=6)
    parts: Regions = {"a": (1,), "b": (2,), "c": (3,)}
    full = measured(called, truth, parts=parts)
    without = [np.where(m == 2, 0, m) for m in (called, truth)]
    found = measured(*without, parts=parts)
    assert found["dice"].shape == (2, 3)
    np.testing.assert_array_equal(found["dice"][:, 1], 1)
    for name in REGIONAL:
        np.testing.assert_array_equal(found[name][:, ::2], full[name][:, ::2])


def test_what_is_called_where_the_truth_is_ignored_changes_nothing() -> None:
    called, truth = ids(3, (20, 18), seed=7), ids(3, (20, 18), seed=8)
    truth[:, 3:11, 2:9] = -1
    before = measured(called, truth, parts=TUMOUR)
    for value in (0, 1, 3, 255):
        other = np.where(truth < 0, value, called)
        after = measured(other, truth, parts=TUMOUR)
        for name, values in before.items():
            np.testing.assert_array_equal(after[name], values, err_msg=name)
    counted = np.where(truth < 0, 0, truth)  # the same call counts where nothing is ignored
    assert not np.array_equal(measured(called, counted, parts=TUMOUR)["dice"], before["dice"])


def test_an_image_without_counted_pixels_has_no_pixel_accuracy() -> None:
    found = only(measured(np.ones((1, 4, 4), dtype=np.int64), np.full((1, 4, 4), -1)))
    assert np.isnan(found["pixel_accuracy"])
    assert (found["dice"], found["false_alarm"]) == (1.0, 0.0)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_truth_in_any_integer_type(dtype: type[np.signedinteger[Any]]) -> None:
    called, truth = ids(2, (12, 12), seed=9), ids(2, (12, 12), seed=10)
    truth[:, 0] = -1
    expected, found = measured(called, truth), measured(called, truth.astype(dtype))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_lesions_are_joined_by_corners_and_found_by_one_pixel() -> None:
    truth = np.zeros((3, 9, 9), dtype=np.int64)
    truth[:2, 0, 0] = truth[:2, 1, 1] = 1  # one lesion, by the corner
    truth[:2, 4:7, 4:7] = truth[:2, 8, 0] = 1  # two more
    called = np.zeros_like(truth)
    called[0, 6, 6] = called[0, 6, 7] = called[0, 2, 3] = 1  # finds the big one
    called[1, 1, 1] = called[1, 8, 0] = called[1, 4, 4] = 1
    called[2, 8, 8] = 1
    found = measured(called, truth)["lesion_miss"][:, 0]
    np.testing.assert_allclose(found, [2 / 3, 0, np.nan])


def test_lesions_of_neighbouring_images_are_two() -> None:
    truth = np.ones((4, 3, 3, 3), dtype=np.int64)
    called = np.zeros_like(truth)
    called[1, 0, 0, 0] = 1
    np.testing.assert_array_equal(measured(called, truth)["lesion_miss"][:, 0], [1, 0, 1, 1])


def test_spacing_stretches_one_axis_alone() -> None:
    truth, called = np.zeros((1, 30, 30), dtype=np.int64), np.zeros((1, 30, 30), dtype=np.int64)
    truth[0, 5:15, 5:15] = called[0, 8:18, 5:15] = 1
    for spacing, expected in [(None, 3.0), ((2.0, 1.0), 6.0), ((1.0, 2.0), 3.0)]:
        assert measured(called, truth, spacing=spacing)["hd95"].item() == expected
    assert measured(called, truth, spacing=(0.5, 1.0))["nsd"].item() == 1.0
    assert measured(called, truth, spacing=(2.0, 1.0))["nsd"].item() < 1.0


maps = hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 6)),
                  elements=st.integers(0, 3))  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(one=maps, data=st.data())
def test_ranges_and_symmetry(one: NDArray[np.int64], data: st.DataObject) -> None:
    other = data.draw(hnp.arrays(np.int64, one.shape, elements=st.integers(0, 3)))
    spacing = (0.5, 1.25)
    found, back = (
        measured(*pair, parts=TUMOUR, spacing=spacing) for pair in ((one, other), (other, one))
    )
    diagonal = np.hypot(one.shape[1] * 0.5, one.shape[2] * 1.25)
    for name in ("dice", "iou", "hd95", "nsd", "volume_error", "pixel_accuracy"):
        np.testing.assert_array_equal(found[name], back[name], err_msg=name)
        assert (found[name] >= 0).all()
        assert (found[name] <= {"hd95": diagonal, "volume_error": np.inf}.get(name, 1)).all()
    np.testing.assert_allclose(found["iou"], found["dice"] / (2 - found["dice"]))
    there = np.stack([np.isin(other, k).any(axis=(1, 2)) for k in TUMOUR.values()], axis=1)
    np.testing.assert_array_equal(np.isfinite(found["lesion_miss"]), there)
    np.testing.assert_array_equal(np.isfinite(found["false_alarm"]), ~there)
    same = measured(one, one, parts=TUMOUR, spacing=spacing)
    assert (same["dice"] == 1).all()
    assert (same["hd95"] == 0).all()
    assert (same["nsd"] == 1).all()


@pytest.mark.data
def test_real_hippocampi_are_those_of_the_table_of_all_distances(real_data: Path) -> None:
    """A segmenter that calls each volume by its neighbour's mask: plausible, never right."""
    with np.load(real_data / "hippocampus_3d.npz") as arrays:
        truth = arrays["test_masks"][:3].astype(np.int64)
    parts: Regions = {"anterior": (1,), "posterior": (2,)}
    spacing = (1.0, 1.0, 1.0)
    found = measured(np.roll(truth, 1, axis=0), truth, parts=parts, spacing=spacing)
    assert ((found["dice"] > 0.2) & (found["dice"] < 0.98)).all()
    for i, j in np.ndindex(3, 2):
        pair = (np.roll(truth, 1, axis=0)[i] == j + 1, truth[i] == j + 1)
        expected = brute_force(*pair, spacing, 1.5)
        assert (found["hd95"][i, j], found["nsd"][i, j]) == pytest.approx(expected)
