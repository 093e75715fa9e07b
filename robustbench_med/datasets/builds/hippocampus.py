"""The hippocampus volumes of the Medical Segmentation Decathlon, padded to one size.

The recipe was recovered from the file: it gives the same voxels for every volume that was at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.errors import DataError, NotInstalledError

ORIGIN = "Task04_Hippocampus of the Medical Segmentation Decathlon"
_RECIPE = Path(__file__).with_name("hippocampus_3d.json")
_PERCENTILE = 99.5  # of a volume, which becomes 255


def build(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file, made of `imagesTr` and `labelsTr` in a folder.

    Raises:
        DataError: a volume is missing or damaged.
        NotInstalledError: nibabel is not installed.
    """
    recipe = json.loads(_RECIPE.read_text(encoding="utf-8"))
    size, arrays = tuple(recipe["size"]), dict[str, NDArray[Any]]()
    for split, names in recipe["ids"].items():
        paths = [(_find(folder, "images", name), _find(folder, "labels", name)) for name in names]
        volumes = [(_read(image), _read(label)) for image, label in paths]
        arrays[f"{split}_images"] = np.stack([padded(grey(x), size) for x, _ in volumes])
        arrays[f"{split}_masks"] = np.stack([padded(y.astype(np.uint8), size) for _, y in volumes])
        arrays[f"{split}_ids"] = np.array(names)
    return arrays | {"info": np.array(recipe["info"])}


def grey(x: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a volume as grey levels, where the 99.5th percentile is 255.

    >>> grey(np.array([0.0, 50.0, 100.0, 100.0])).tolist()
    [0, 128, 255, 255]
    """
    x = x.astype(np.float64)
    top = np.percentile(x, _PERCENTILE)
    return np.round(np.clip(x / (top or 1.0), 0, 1) * 255).astype(np.uint8)


def padded(x: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return a volume in the middle of a larger one of zeros; an odd voxel goes to the end.

    Raises:
        DataError: the volume is larger.
    """
    if x.ndim != len(size) or any(n > side for n, side in zip(x.shape, size, strict=True)):
        raise DataError(f"expected a volume within {size}, got {x.shape}")
    before = [(side - n) // 2 for n, side in zip(x.shape, size, strict=True)]
    after = [side - n - b for n, side, b in zip(x.shape, size, before, strict=True)]
    return np.pad(x, list(zip(before, after, strict=True)))


def _find(folder: Path, kind: str, name: str) -> Path:
    """Return the path of a volume in the folder of images or labels."""
    for home in (folder / f"{kind}Tr", folder / kind):
        if (home / name).is_file():
            return home / name
    raise DataError(f"expected {kind}Tr/{name} in {folder}, got no such file: is it {ORIGIN}?")


def _read(path: Path) -> NDArray[Any]:
    try:
        import nibabel
    except ImportError:
        raise NotInstalledError("nibabel", "NIfTI files", "clinical") from None
    try:
        return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: expected a NIfTI volume, got: {first}") from None
