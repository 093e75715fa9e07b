"""Write adversarial images as NIfTI volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.errors import NotInstalledError
from robustbench_med.export.form import WARNING, Form, Mark

_DESCRIPTION = 79  # bytes of the header's field, and a zero


def check(form: Form) -> None:
    """Return: a NIfTI volume holds images of every form."""


def write(steps: NDArray[np.int64], form: Form, mark: Mark, folder: Path) -> list[Path]:
    """Write an image as a volume with its stored values; return its file.

    The axes are those of the image, of which channels come last. A picture is a volume of one
    slice.

    Args:
        steps: `(c, *s)` the steps k of the stored values `low + k * step`.
        form: the form of the images.
        mark: the words that the image carries.
        folder: where it is written.
    """
    nibabel = _nibabel()
    axes = steps.ndim - 1
    values = form.values(steps).reshape(*steps.shape, *[1] * (3 - axes))
    values = values[0] if form.channels == 1 else np.moveaxis(values, 0, -1)
    sides = (form.spacing or (1.0,) * axes) + (1.0,) * (3 - axes)
    affine = np.diag([*sides, 1.0]) if form.geometry is None else form.geometry.affine(axes)
    image = nibabel.Nifti1Image(values, affine)
    image.header["descrip"] = f"{WARNING} {mark.case_id}".encode()[:_DESCRIPTION]
    if form.spacing is not None or form.geometry is not None:
        image.header.set_xyzt_units("mm")
    path = folder / f"{mark.stem}.nii.gz"
    nibabel.save(image, path)
    return [path]


def _nibabel() -> Any:  # noqa: ANN401 - nibabel has no types
    try:
        import nibabel
    except ImportError:
        raise NotInstalledError("nibabel", "NIfTI files", "clinical") from None
    return nibabel
