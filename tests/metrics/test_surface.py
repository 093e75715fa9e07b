"""HD95 and NSD equal MONAI's and the table of all distances; closed forms; the empty rule."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from robustbench_med.metrics import surface
from tests.metrics.masks import GRIDS, Bools, blobs, brute_force, surface_points

ONE = (1.0, 1.0)


def square(size: tuple[int, ...], start: tuple[int, ...], side: int) -> Bools:
    mask = np.zeros(size, dtype=bool)
    mask[tuple(slice(s, s + side) for s in start)] = True
    return mask


def agreement(
    one: Bools, other: Bools, spacing: tuple[float, ...], tolerance: float = 2.0
) -> tuple[float, float]:
    hd95, nsd = surface.agreement(one[None], other[None], spacing=spacing, tolerance=tolerance)
    return float(hd95[0]), float(nsd[0])


@pytest.mark.parametrize("size", [size for size, _ in GRIDS])
def test_a_surface_is_the_mask_without_its_eroded_self(size: tuple[int, ...]) -> None:
    masks = np.concatenate([blobs(3, size, seed=0, share=0.4), np.ones((1, *size), dtype=bool)])
    found = surface.surface(masks)
    for mask, edge in zip(masks, found, strict=True):
        np.testing.assert_array_equal(edge, mask & ~ndimage.binary_erosion(mask))
        assert [tuple(p) for p in np.argwhere(edge)] == surface_points(mask)


@pytest.mark.parametrize(("size", "spacing"), GRIDS)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("grain", [0.3, 2.0])  # ragged masks take the distance transform
def test_hd95_and_nsd_are_those_of_the_table_of_all_distances(
    size: tuple[int, ...], spacing: tuple[float, ...] | None, share: float, grain: float
) -> None:
    called = blobs(2, size, seed=1, share=share, grain=grain)
    truth = blobs(2, size, seed=2, share=0.15, grain=grain)
    hd95, nsd = surface.agreement(
        called, truth, spacing=spacing or (1.0,) * len(size), tolerance=1.5
    )
    expected = [brute_force(c, t, spacing, 1.5) for c, t in zip(called, truth, strict=True)]
    np.testing.assert_allclose(hd95, [e[0] for e in expected], rtol=1e-9)
    np.testing.assert_allclose(nsd, [e[1] for e in expected], rtol=1e-12)


@pytest.mark.parametrize("dense", [0.0, np.inf], ids=["transform", "tree"])
def test_tree_and_distance_transform_agree(dense: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "_DENSE", dense)
    for size, spacing in GRIDS:
        called, truth = blobs(1, size, seed=3, share=0.2)[0], blobs(1, size, seed=4, share=0.2)[0]
        found = agreement(called, truth, spacing or (1.0,) * len(size))
        assert found == pytest.approx(brute_force(called, truth, spacing, 2.0), rel=1e-9)


# MONAI passes itself an argument that it deprecates
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize(("size", "spacing"), GRIDS)
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_hd95_and_nsd_are_those_of_monai(
    size: tuple[int, ...], spacing: tuple[float, ...] | None, share: float
) -> None:
    monai: Any = import_module("monai.metrics")  # seconds to import, and untyped
    called, truth = blobs(3, size, seed=5, share=share), blobs(3, size, seed=6, share=0.2)
    hd95, nsd = surface.agreement(
        called, truth, spacing=spacing or (1.0,) * len(size), tolerance=1.5
    )
    pair = [torch.from_numpy(m)[:, None] for m in (called, truth)]
    distance = monai.HausdorffDistanceMetric(
        include_background=True, percentile=95, reduction="none"
    )
    share_near = monai.SurfaceDiceMetric([1.5], include_background=True, reduction="none")
    distance(*pair, spacing=spacing)
    share_near(*pair, spacing=spacing)
    np.testing.assert_allclose(hd95, distance.aggregate()[:, 0], rtol=1e-5)
    np.testing.assert_allclose(nsd, share_near.aggregate()[:, 0], rtol=1e-6)


@pytest.mark.parametrize("start", [(8, 8), (0, 0)], ids=["inside", "at the border"])
@pytest.mark.parametrize(("axis", "spacing"), [(0, (0.5, 2.0)), (1, (0.5, 2.0)), (0, ONE)])
def test_a_shifted_square(start: tuple[int, int], axis: int, spacing: tuple[float, ...]) -> None:
    """One side leaves by the shift: more than 5 % of the surface, so HD95 is the shift in mm."""
    moved = tuple(s + 4 * (a == axis) for a, s in enumerate(start))
    truth, called = square((40, 40), start, 12), square((40, 40), moved, 12)
    shift = 4 * spacing[axis]
    assert agreement(called, truth, spacing)[0] == pytest.approx(shift)
    assert agreement(called, truth, spacing, shift)[1] == 1.0
    assert agreement(called, truth, spacing, shift * 0.99)[1] < 1.0


@pytest.mark.parametrize(("off", "expected"), [(5, 0.0), (6, 10.0)])
def test_hd95_leaves_out_five_of_a_hundred(off: int, expected: float) -> None:
    """Of 101 surface pixels `off` are 10 away, the others at 0; rank 95 counts from 0."""
    truth = np.zeros((12, 101 - off), dtype=bool)
    truth[0] = True
    called = truth.copy()
    called[10, :off] = True
    for pair in [(called, truth), (truth, called)]:  # the larger direction, whichever it is
        assert agreement(*pair, ONE) == pytest.approx((expected, 1 - off / (202 - off)))


def test_nsd_counts_the_surface_within_the_tolerance() -> None:
    """Two single pixels 3 apart and one in common: 2 of 3 surface pixels are far off."""
    called, truth = np.zeros((5, 9), dtype=bool), np.zeros((5, 9), dtype=bool)
    truth[2, 0] = called[2, 0] = called[2, 3] = True
    assert agreement(called, truth, ONE, 2.9)[1] == pytest.approx(2 / 3)
    assert agreement(called, truth, ONE, 3.0)[1] == 1.0
    # 3 * 0.1 is a hair above 0.3 in floating point
    assert agreement(called, truth, (0.1, 0.1), 0.3)[1] == 1.0
    assert agreement(called, truth, ONE, 0.0)[1] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("size", "spacing", "diagonal"),
    [((240, 240, 155), (1.0, 1.0, 1.0), 373.1287), ((3, 4), (1.0, 1.0), 5.0)]
    + [((3, 4), (2.0, 0.5), np.hypot(6, 2))],
)
def test_the_rule_for_empty_masks(
    size: tuple[int, ...], spacing: tuple[float, ...], diagonal: float
) -> None:
    nothing, something = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    something[1, 1] = True
    assert agreement(nothing, nothing, spacing) == (0.0, 1.0)
    assert agreement(something, something, spacing) == (0.0, 1.0)
    for pair in [(nothing, something), (something, nothing)]:
        assert agreement(*pair, spacing) == pytest.approx((diagonal, 0.0), abs=1e-3)


def test_spacing_changes_which_pixel_is_nearest() -> None:
    """One goal 3 rows away, one 2 columns: with wide columns the rows are nearer."""
    start, goals = np.zeros((6, 6), dtype=bool), np.zeros((6, 6), dtype=bool)
    start[0, 0] = goals[3, 0] = goals[0, 2] = True
    back = [(2.0, 3.0), (3.0, 8.0)]  # the percentile of two distances: 0.95 of the way up
    for spacing, (low, high) in zip([(1.0, 1.0), (1.0, 4.0)], back, strict=True):
        assert agreement(start, goals, spacing)[0] == pytest.approx(low + 0.95 * (high - low))


def test_each_image_has_its_own_distance_whatever_the_batch() -> None:
    called, truth = blobs(5, (20, 22), seed=7, share=0.2), blobs(5, (20, 22), seed=8, share=0.2)
    called[1], truth[2], called[3] = False, False, truth[3]
    together = np.stack(surface.agreement(called, truth, spacing=ONE, tolerance=1.0))
    alone = [agreement(c, t, ONE, 1.0) for c, t in zip(called, truth, strict=True)]
    np.testing.assert_array_equal(together.T, alone)
    nobody = surface.agreement(called[:0], truth[:0], spacing=ONE, tolerance=1.0)
    assert [len(v) for v in nobody] == [0, 0]
