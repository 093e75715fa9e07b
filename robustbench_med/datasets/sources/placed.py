"""Where the pixels of an image file lie in the patient, from its header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.geometry import Geometry
from robustbench_med.datasets.sources import dicom, nifti
from robustbench_med.datasets.sources.refs import ImageRef, UnreadableError

_LPS = np.array([-1.0, -1.0, 1.0])  # from the axes of DICOM to those of NIfTI


def geometry_of(root: Path, ref: ImageRef, format_name: str) -> Geometry | None:
    """Return the geometry of an image as it is decoded, before it is resized; None if unknown."""
    try:
        if format_name == "dicom":
            return _of_dicom(root, ref)
        return _of_nifti(root, ref) if format_name == "nifti" else None
    except UnreadableError:
        return None


def _of_nifti(root: Path, ref: ImageRef) -> Geometry | None:
    """Return the geometry of a volume `(x, y, z)`, or of a flat one `(x, y)`."""
    affine = nifti.canonical_affine(root, ref)
    steps = affine[:3, :3].T
    if len(ref.size) == 2:
        steps = steps[[2, 0, 1]]
    return Geometry.of(affine[:3, 3], steps)


def _of_dicom(root: Path, ref: ImageRef) -> Geometry | None:
    names = ref.files if len(ref.size) == 3 and not ref.frames else ref.files[:1]
    frames = ref.frames or (0,)
    first = dicom.plane(dicom.read_header(root, names[0]), frames[0])
    if first is None or ref.spacing is None:
        return None
    origin, row_step, column_step = _scaled(first, ref.spacing[-2:])
    normal = np.cross(column_step, row_step)
    normal /= np.linalg.norm(normal)
    if len(ref.size) == 2:
        return Geometry.of(origin, np.stack([normal, row_step, column_step]))
    last = dicom.plane(dicom.read_header(root, names[-1]), frames[-1])
    if last is None or ref.size[0] < 2:
        return None
    # a stack whose slices are sheared against one another keeps its shear
    slice_step = (last[0] * _LPS - origin) / (ref.size[0] - 1)
    return Geometry.of(origin, np.stack([slice_step, row_step, column_step]))


def _scaled(
    plane: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    spacing: tuple[float, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return origin, step from row to row and step from column to column, on the axes of NIfTI."""
    place, along_row, along_column = plane
    return place * _LPS, along_column * _LPS * spacing[0], along_row * _LPS * spacing[1]
