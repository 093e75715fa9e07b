"""Exported images lie where their sources lie in the patient, whatever way these are turned."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from robustbench_med.cards import NativeRange
from robustbench_med.datasets.geometry import Geometry
from robustbench_med.datasets.sources.placed import geometry_of
from robustbench_med.datasets.sources.readers import READERS, scan
from robustbench_med.export import dicom_files, nifti_files
from robustbench_med.export.form import Form, Mark
from robustbench_med.export.read_back import read_back
from tests.datasets.sources.dicoms import uid
from tests.datasets.sources.dicoms import write as write_dicom

HU = NativeRange(unit="HU", low=-1024, high=3071)
SIZE = (3, 4, 5)
ORIGIN = (-31.5, 12.25, 80.0)
SPACING = np.array([2.5, 0.8, 0.7])
WRITERS = {"dicom": dicom_files, "nifti": nifti_files}
TURNS = {
    "along the axes": np.eye(3)[[2, 1, 0]],
    "as NIfTI": np.eye(3),
    "sagittal": np.array([[1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
    "mirrored": np.array([[0, 0, -1.0], [0, 1, 0], [-1, 0, 0]]),
    "oblique": Rotation.from_euler("xyz", [20, -15, 70], degrees=True).as_matrix(),
}


def placed(turn: NDArray[np.float64]) -> Geometry:
    found = Geometry.of(np.array(ORIGIN), turn * SPACING[:, None])
    assert found is not None
    return found


def world(place: Geometry, index: tuple[int, ...]) -> NDArray[np.float64]:
    """Return where the centre of a pixel (slice, row, column) is, in mm."""
    where: NDArray[np.float64] = np.array(place.origin) + np.array(index) @ np.array(place.steps)
    return where


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("axes", [2, 3])
def test_what_is_written_lies_where_it_was(tmp_path: Path, kind: str, turn: str, axes: int) -> None:
    place, size = placed(TURNS[turn]), SIZE[-axes:]
    form = Form(HU, size, 1, None, place)
    steps = np.random.default_rng(0).integers(0, HU.levels + 1, (1, *size))
    paths = WRITERS[kind].write(steps, form, Mark(1, "0" * 16, "pgd"), tmp_path)
    files = tuple(path.relative_to(tmp_path).as_posix() for path in paths)
    (back,) = read_back(tmp_path, kind, [files], [form])
    assert np.array_equal(np.rint(back.numpy() * HU.levels), steps)
    last = (0,) * (3 - axes) + tuple(side - 1 for side in size)
    if kind == "nifti":
        affine = nibabel.load(paths[0]).affine  # type: ignore[attr-defined]
        index = last if axes == 3 else (*last[1:], 0)
        found = (affine @ [*index, 1])[:3]
    else:
        image = pydicom.dcmread(paths[-1])
        turned = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        row, column = last[1] * float(image.PixelSpacing[0]), last[2] * float(image.PixelSpacing[1])
        found = np.array(image.ImagePositionPatient, float) + column * turned[0] + row * turned[1]
        found = found * [-1, -1, 1]
    np.testing.assert_allclose(found, world(place, last), atol=1e-4)


@pytest.mark.parametrize("turn", TURNS)
def test_a_source_states_where_its_pixels_lie(tmp_path: Path, turn: str) -> None:
    """A DICOM series and the NIfTI volume of the same voxels lie at the same place."""
    place = placed(TURNS[turn])
    values = np.random.default_rng(1).integers(0, 1000, SIZE).astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(values, place.affine(3)), tmp_path / "a.nii")
    steps = np.array(place.steps) * [-1, -1, 1]
    for k in range(SIZE[0]):
        write_dicom(
            tmp_path / f"{9 - k}.dcm",
            values[k],
            SeriesInstanceUID=uid("s"),
            PixelSpacing=SPACING[1:].tolist(),
            ImagePositionPatient=(np.array(ORIGIN) * [-1, -1, 1] + k * steps[0]).round(9).tolist(),
            ImageOrientationPatient=[
                *(steps[2] / SPACING[2]).round(9).tolist(),
                *(steps[1] / SPACING[1]).round(9).tolist(),
            ],
        )
    for name, files in (("nifti", ["a.nii"]), ("dicom", [f"{9 - k}.dcm" for k in range(3)])):
        (ref,) = scan(tmp_path, files, name, volumes=True).refs
        found = geometry_of(tmp_path, ref, name)
        decoded = READERS[name].decode(tmp_path, ref)
        assert found is not None
        for index in ((0, 0, 0), (2, 0, 1), (1, 3, 4), (2, 3, 0)):
            at = np.linalg.solve(np.array(found.steps).T, world(place, index) - found.origin)
            np.testing.assert_allclose(at, at.round(), atol=1e-3)
            assert decoded[tuple(at.round().astype(int))] == values[index]


def test_a_resized_image_covers_the_same_box() -> None:
    place = placed(TURNS["oblique"])
    small = place.resized((4, 6, 8), (2, 6, 16))
    for old, new in (((-0.5, -0.5, -0.5), (-0.5, -0.5, -0.5)), ((3.5, 5.5, 7.5), (1.5, 5.5, 15.5))):
        edges = [
            np.array(each.origin) + np.array(index) @ np.array(each.steps)
            for each, index in ((place, old), (small, new))
        ]
        np.testing.assert_allclose(edges[0], edges[1], atol=1e-9)
    flat = place.resized((4, 4), (2, 2))
    assert flat.spacing == pytest.approx((2.5, 1.6, 1.4))


def test_a_place_without_numbers_is_none() -> None:
    assert Geometry.of(np.array([np.nan, 0, 0]), np.eye(3)) is None
    assert Geometry.of(np.zeros(3), np.zeros((3, 3))) is None
    sheared = Geometry.of(np.zeros(3), np.array([[1.0, 0, 0.5], [0, 1, 0], [0, 0, 1]]))
    assert sheared is not None
    assert not sheared.is_square
