"""Write adversarial pictures as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from robustbench_med.errors import DataError
from robustbench_med.export.form import Form, Mark

MAX_LEVELS = 2**16 - 1


def check(form: Form) -> None:
    """Raise DataError if PNG files cannot hold such images."""
    if len(form.size) != 2:
        raise DataError(f"expected pictures for PNG, got volumes {form.size}: use --as nifti")
    if form.channels not in (1, 3) or (form.channels == 3 and form.native.levels > 255):
        raise DataError(
            f"expected grey pictures or 8-bit colours for PNG, got {form.channels} channels of "
            f"{form.native.bits} bits: use --as nifti"
        )
    if form.native.levels > MAX_LEVELS:
        raise DataError(f"expected at most 16 bits for PNG, got {form.native.bits}: use --as nifti")


def write(steps: NDArray[np.int64], form: Form, mark: Mark, folder: Path) -> list[Path]:
    """Write a picture; return its file. A pixel is the step k of its stored value `low + k * step`.

    Args:
        steps: `(c, h, w)` the steps.
        form: the form of the images.
        mark: the words that the image carries.
        folder: where it is written.
    """
    pixels = steps[0] if form.channels == 1 else np.moveaxis(steps, 0, -1)
    stored = np.ascontiguousarray(pixels, np.uint8 if form.native.levels <= 255 else np.uint16)
    words = PngInfo()
    words.add_text("Comment", mark.text)
    path = folder / f"{mark.stem}.png"
    Image.fromarray(stored).save(path, pnginfo=words)
    return [path]
