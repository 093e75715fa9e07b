"""The step of [native] is that of the files, so that rounded images are ones that files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustbench_med.cards import NativeRange
from robustbench_med.datasets.sources.grid import Grid, grid_of
from robustbench_med.datasets.sources.native import CT, Ends, native_of
from robustbench_med.datasets.sources.refs import ImageRef
from robustbench_med.errors import DataError
from robustbench_med.stored_images import to_image_units, to_stored
from tests.datasets.sources.conftest import Inspect, edit, loaded, write_table
from tests.datasets.sources.dicoms import write

SHAPE = (10, 12)


def ref(*grids: tuple[float, float], dtype: str = "int32") -> ImageRef:
    return ImageRef(("a",), SHAPE, 1, dtype, grids=grids)


GRIDS: list[tuple[list[ImageRef], Grid | None]] = [
    ([ref(), ref((1, -1024))], Grid(1, 0)),
    ([ref((2, -1024)), ref((2, 0))], Grid(2, 0)),
    ([ref((-2, 5)), ref((2, -1))], Grid(2, 1)),
    ([ref((0.25, 0.5)), ref((0.25, 3))], Grid(0.25, 0)),
    ([ref((2, 0)), ref((2, 1))], Grid(1, 0, shared=False)),
    ([ref((2, 0)), ref((4, 2))], Grid(2, 0, shared=False)),
    ([ref((4, 1)), ref((6, 1))], Grid(2, 1, shared=False)),
    ([ref((2, 0), (3, 0))], Grid(1, 0, shared=False)),
    ([ref((0.3, 0)), ref((0.2, 0))], None),
    ([ref((2, 0)), ref(dtype="float32")], None),
]


@pytest.mark.parametrize(("refs", "grid"), GRIDS)
def test_the_grid_of_files(refs: list[ImageRef], grid: Grid | None) -> None:
    assert grid_of(refs) == grid
    assert grid_of(refs[::-1]) == grid


RANGES: list[tuple[tuple[float, float], str, Grid, tuple[float, float, int]]] = [
    ((-1024, 2000), "CT", Grid(1, 0), (CT.low, CT.high, CT.levels)),
    ((-1024, 2000), "CT", Grid(2, 0), (-1024, 3070, 2047)),
    ((-1023, 2001), "CT", Grid(2, 1), (-1023, 3071, 2047)),
    ((0, 2400), "MR", Grid(2, 0), (0, 4094, 2047)),
    ((-5, 2401), "MR", Grid(2, 1), (-7, 4095, 2051)),
    ((0.5, 63.5), "PET", Grid(0.5, 0), (0, 63.5, 127)),
]


@pytest.mark.parametrize(("ends", "modality", "grid", "expected"), RANGES)
def test_the_range_is_on_the_grid(
    ends: tuple[float, float],
    modality: str,
    grid: Grid,
    expected: tuple[float, float, int],
) -> None:
    native = native_of([Ends(*ends)], modality=modality, integers=True, grid=grid)
    assert (native.low, native.high, native.levels, native.step) == (*expected, grid.step)
    assert grid.holds(native.low, native.step)


def slices(folder: Path, slopes: tuple[str, ...], *, n: int = 6) -> dict[str, np.ndarray]:
    """Write slices of a CT with these slopes in turn; return their HU."""
    rows: list[tuple[object, ...]] = [("file", "label")]
    values = {}
    for k in range(n):
        stored = np.random.default_rng(k).integers(0, 1500, SHAPE).astype(np.uint16)
        stored[0, 0] = 0
        tags: dict[str, Any] = {
            "BitsStored": 12,
            "RescaleSlope": slopes[k % len(slopes)],
            "PatientID": f"p{k}",
        }
        write(folder / f"{k}.dcm", stored, RescaleIntercept="-1024", **tags)
        values[f"image-{k:06d}"] = stored * float(slopes[k % len(slopes)]) - 1024
        rows.append((f"{k}.dcm", k % 2))
    write_table(folder / "t.csv", rows)
    return values


@pytest.mark.parametrize("slope", ["2", "3", "0.5"])
def test_rounded_images_are_ones_that_the_files_hold(
    inspect: Inspect, tmp_path: Path, slope: str
) -> None:
    values = slices(tmp_path / "ct", (slope,))
    inspect(tmp_path / "ct")
    arrays, native = loaded(tmp_path).arrays("train"), loaded(tmp_path).card.native
    assert native is not None
    assert (native.unit, native.step) == ("HU", float(slope))
    stored = np.asarray(arrays.images[:])
    np.testing.assert_array_equal(
        stored, [values[name].clip(native.low, native.high) for name in arrays.ids.tolist()]
    )
    x = to_image_units(torch.from_numpy(stored), native)
    assert torch.equal(to_stored(x, native), torch.from_numpy(stored).double())
    attacked = (x + torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) / 50).clamp(
        0, 1
    )
    steps = (to_stored(attacked, native).numpy() + 1024) / float(slope)
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_resized_images_are_on_the_grid(inspect: Inspect, tmp_path: Path) -> None:
    slices(tmp_path / "ct", ("2",))
    inspect(tmp_path / "ct", "--size", "7")
    images = np.asarray(loaded(tmp_path).arrays("train").images[:])
    assert images.dtype == np.int16
    assert len(np.unique(images)) > 20
    assert not (images % 2).any()


def test_a_finer_step_in_a_card_is_refused(inspect: Inspect, tmp_path: Path) -> None:
    slices(tmp_path / "ct", ("2",))
    inspect(tmp_path / "ct")
    edit(tmp_path / "mine.toml", "step = 2.0", "step = 1.0")
    with pytest.raises(DataError, match=r"a step of 2 in \[native\].*got low = -1024, step = 1:"):
        loaded(tmp_path)
    edit(tmp_path / "mine.toml", "step = 1.0", "step = 46.0")  # coarser: 4094 = 89 steps
    assert loaded(tmp_path).card.native == NativeRange(unit="HU", low=-1024, high=3070, step=46)
    images = np.asarray(loaded(tmp_path).arrays("train").images[:])
    assert not ((images + 1024) % 46).any()


def test_slopes_that_differ_are_noted(inspect: Inspect, tmp_path: Path) -> None:
    slices(tmp_path / "ct", ("1", "2"))
    printed = inspect(tmp_path / "ct")
    assert "rescale slopes (1 to 2) or intercepts differ" in printed
    card = loaded(tmp_path).card
    assert card.native == CT
    assert sum("rounded to steps of 1" in note for note in card.notes) == 1


def test_fractions_of_files_without_a_grid_are_kept(inspect: Inspect, tmp_path: Path) -> None:
    values = slices(tmp_path / "ct", ("0.5", "0.7"))
    inspect(tmp_path / "ct")
    card, arrays = loaded(tmp_path).card, loaded(tmp_path).arrays("train")
    assert card.native == NativeRange(unit="HU", low=-1024, high=3071, step=1 / 16)
    stored: NDArray[Any] = arrays.images[:]
    assert stored.dtype == np.float32
    expected = np.array([values[name] for name in arrays.ids.tolist()])
    np.testing.assert_allclose(stored, expected, rtol=0, atol=1e-4)
    assert (np.abs(expected - np.rint(expected)) > 0.1).mean() > 0.3
    assert sum("rescale slopes (0.5 to 0.7)" in note for note in card.notes) == 1
    assert not any("rounded to the nearest step" in note for note in card.notes)


@pytest.mark.parametrize("kind", ["float", "coarse"])
def test_fractions_that_the_card_leaves_no_room_for_are_rounded_and_noted(
    inspect: Inspect, tmp_path: Path, kind: str
) -> None:
    values = {}
    rows: list[tuple[object, ...]] = [("file", "label")]
    (tmp_path / "ct").mkdir()
    for k in range(6):
        drawn = np.random.default_rng(k).uniform(-1000, 1000, (5, 6, 7)).astype(np.float32)
        drawn = drawn if kind == "float" else np.rint(drawn).astype(np.int16)
        drawn.flat[:2] = -1000, 1000
        nibabel.save(nibabel.Nifti1Image(drawn, np.eye(4)), tmp_path / "ct" / f"{k}.nii")
        values[f"image-{k:06d}"] = drawn
        rows.append((f"{k}.nii", k % 2))
    write_table(tmp_path / "ct" / "t.csv", rows)
    inspect(tmp_path / "ct")
    written = loaded(tmp_path)
    kept = np.asarray(written.arrays("train").images[:])
    names = written.arrays("train").ids.tolist()
    np.testing.assert_array_equal(kept, [values[name] for name in names])
    assert not any("nearest step" in note for note in written.card.notes)
    text = (tmp_path / "mine.toml").read_text()
    start, end = text.index("[native]"), text.index("[source]")
    high, step = (3071, 1) if kind == "float" else (3072, 4)
    table = f'[native]\nunit = "HU"\nlow = -1024\nhigh = {high}\nstep = {step}\n'
    (tmp_path / "mine.toml").write_text(text[:start] + table + text[end:])
    rounded = loaded(tmp_path)
    images: NDArray[Any] = rounded.arrays("train").images[:]
    assert images.dtype == np.int16
    errors = images - np.array([values[name] for name in names], np.float64)
    assert abs(errors.mean()) < 0.1 * step  # truncation: +0.5 below 0, -0.5 above
    assert abs(errors[images < 0].mean()) < 0.1 * step
    assert np.abs(errors).max() <= 0.5 * step
    (note,) = (note for note in rounded.card.notes if "nearest step" in note)
    assert note.startswith("6 of 6 images are in files that can hold values between the steps of")
    assert f"the steps of {step} of HU -1024..{high}" in note


def test_a_scaled_volume_has_the_step_of_its_scale(inspect: Inspect, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("file", "label")]
    (tmp_path / "mr").mkdir()
    for k in range(6):
        stored = np.random.default_rng(k).integers(0, 900, (5, 6, 7)).astype(np.int16)
        volume = nibabel.Nifti1Image(stored, np.eye(4))
        volume.header.set_slope_inter(2, 1)
        nibabel.save(volume, tmp_path / "mr" / f"{k}.nii")
        rows.append((f"{k}.nii", k % 2))
    write_table(tmp_path / "mr" / "t.csv", rows)
    inspect(tmp_path / "mr")
    native = loaded(tmp_path).card.native
    assert native == NativeRange(unit="stored value", low=1, high=2047, step=2)
    images = np.asarray(loaded(tmp_path).arrays("train").images[:])
    assert images.dtype == np.int16
    assert (images % 2 == 1).all()
