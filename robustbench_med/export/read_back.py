"""Read exported files as the bench reads a folder of such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustbench_med.datasets.sources.readers import READERS, scan
from robustbench_med.export.form import Form
from robustbench_med.stored_images import to_image_units


def read_back(root: Path, kind: str, files: Sequence[tuple[str, ...]], form: Form) -> list[Tensor]:
    """Return the images of files, each `(c, *s)` in [0,1].

    Args:
        root: their folder.
        kind: "dicom", "nifti" or "png", whose pixels are steps.
        files: the files of each image, relative to the folder.
        form: the form of the images.

    Raises:
        DataError: a file cannot be read.
    """
    name = "pictures" if kind == "png" else kind
    every = [file for group in files for file in group]
    listing = scan(root, every, name, volumes=len(form.size) == 3)
    ref_of = {file: ref for ref in listing.refs for file in ref.files}
    images = []
    for group in files:
        values = READERS[name].decode(root, ref_of[group[0]]).astype(np.float64)
        if kind == "png":
            values = values * form.native.step + form.native.low
        values = values[None] if form.channels == 1 else np.moveaxis(values, -1, 0)
        images.append(to_image_units(torch.from_numpy(np.ascontiguousarray(values)), form.native))
    return images
