"""Read exported files as the bench reads a folder of such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.datasets.geometry import Geometry
from robustbench_med.datasets.sources.readers import READERS, scan
from robustbench_med.export.form import Form
from robustbench_med.stored_images import to_image_units


def read_back(
    root: Path, kind: str, files: Sequence[tuple[str, ...]], forms: Sequence[Form]
) -> list[Tensor]:
    """Return the images of files, each `(c, *s)` in [0,1].

    Args:
        root: their folder.
        kind: "dicom", "nifti" or "png", whose pixels are steps.
        files: the files of each image, relative to the folder.
        forms: the form of each image.

    Raises:
        DataError: a file cannot be read.
    """
    name = "pictures" if kind == "png" else kind
    every = [file for group in files for file in group]
    listing = scan(root, every, name, volumes=any(len(form.size) == 3 for form in forms))
    ref_of = {file: ref for ref in listing.refs for file in ref.files}
    images = []
    for group, form in zip(files, forms, strict=True):
        ref = ref_of[group[0]]
        values = READERS[name].decode(root, ref).astype(np.float64)
        if len(group) > 1:  # a series is read along the normal of its slices
            values = values[[ref.files.index(file) for file in group]]
        if kind == "nifti" and form.geometry is not None:
            values = _as_written(values, form, form.geometry)
        if kind == "png":
            values = values * form.native.step + form.native.low
        values = values[None] if form.channels == 1 else np.moveaxis(values, -1, 0)
        images.append(to_image_units(torch.from_numpy(np.ascontiguousarray(values)), form.native))
    return images


def _as_written(values: NDArray[np.float64], form: Form, geometry: Geometry) -> NDArray[np.float64]:
    """Return a NIfTI volume in the order in which it was written; it is read right, front, head.

    Args:
        values: `(*s[, c])` as the reader returns it.
        form: the form of the image.
        geometry: where its pixels lie.
    """
    from nibabel import orientations

    flat = values.ndim - (form.channels > 1) < 3
    volume = np.expand_dims(values, 2) if flat else values
    written = orientations.io_orientation(geometry.affine(len(form.size)))
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    back = orientations.ornt_transform(canonical, written)
    turned: NDArray[np.float64] = orientations.apply_orientation(volume, back)
    return turned.squeeze(2) if len(form.size) == 2 else turned
