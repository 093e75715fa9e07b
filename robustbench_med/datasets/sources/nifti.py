"""Read NIfTI volumes with nibabel: axes to right, front and head, values scaled as the file says.

Text of the header and its extensions is never read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.sources import refs
from robustbench_med.datasets.sources.refs import ImageRef, UnreadableError, check_volume, times
from robustbench_med.errors import NotInstalledError

SUFFIXES = (".nii", ".nii.gz")
MAX_CHANNELS = 16
_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, OverflowError, IndexError, RuntimeError),
    *(ArithmeticError, zlib.error),
)
_AXES = 3
_SAME = 1e-3  # by which the affines of an image and its mask may differ, in mm


def is_nifti(name: str) -> bool:
    """Whether a file has the name of a NIfTI volume."""
    return name.lower().endswith(SUFFIXES)


def head(root: Path, name: str) -> ImageRef:
    """Return the reference to a volume, from its header alone.

    Raises:
        UnreadableError: it is damaged, too large, or of a kind that is not read.
        NotInstalledError: nibabel is not installed.
    """

    def read() -> ImageRef:
        image = _open(root / name)
        shape = image.shape
        size, channels = _size(shape)
        affine = np.asarray(image.affine, np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise UnreadableError("its affine is no orientation")
        codes, turned = _nibabel().aff2axcodes(affine), _turned(affine, size)
        spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
        sides = tuple(size[axis] for axis in turned)
        facts = (("orientation", "".join(codes)), ("type", _type_name(image)))
        flat = sides[-1] == 1
        in_order = tuple(round(float(spacing[axis]), 6) for axis in turned)
        return ImageRef(
            (name,),
            sides[:-1] if flat else sides,
            channels,
            _dtype(image),
            spacing=in_order[:-1] if flat else in_order,
            facts=facts,
            grids=_grids(image),
        )

    reference: ImageRef = _guarded(read)
    return reference


def decode(root: Path, ref: ImageRef) -> NDArray[Any]:
    """Return a volume `(x, y, z[, c])`: x to the right, y to the front, z to the head.

    Raises:
        UnreadableError: the file is damaged, or has another size than its header said.
    """

    def read() -> NDArray[Any]:
        nibabel = _nibabel()
        image = _open(root / ref.files[0])
        _size(image.shape)
        values = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
        values = values.reshape([n for axis, n in enumerate(values.shape) if axis < 3 or n > 1])
        if len(ref.size) < _AXES and values.shape[_AXES - 1] == 1:
            values = values.squeeze(_AXES - 1)
        if values.shape != ref.shape:
            raise UnreadableError(f"its size is {times(values.shape)}")
        converted: NDArray[Any] = values.astype(ref.dtype)
        if ref.dtype == "int32" and (converted != values).any():
            raise UnreadableError("its values do not fit into 32 bits")
        return converted

    values: NDArray[Any] = _guarded(read)
    return values


def same_grid(root: Path, image: ImageRef, mask: ImageRef) -> bool:
    """Whether an image and its mask have one affine."""

    def affine(ref: ImageRef) -> NDArray[np.float64]:
        return np.asarray(_open(root / ref.files[0]).affine, np.float64)

    return bool(_guarded(lambda: np.allclose(affine(image), affine(mask), atol=_SAME)))


def canonical_affine(root: Path, image: ImageRef) -> NDArray[np.float64]:
    """Return the affine of a volume as `decode` returns it: axes to right, front and head.

    Raises:
        UnreadableError: the file is damaged.
    """

    def read() -> NDArray[np.float64]:
        opened = _open(root / image.files[0])
        return np.asarray(_nibabel().as_closest_canonical(opened).affine, np.float64)

    affine: NDArray[np.float64] = _guarded(read)
    return affine


def _open(path: Path) -> Any:  # noqa: ANN401 - nibabel has no types
    nibabel = _nibabel()
    image = nibabel.load(path)
    if not isinstance(image, nibabel.Nifti1Image):
        raise UnreadableError("it is no NIfTI volume")
    if image.get_data_dtype().kind not in "iuf":
        raise UnreadableError("its values are no integers or real numbers")
    check_volume(image.shape)
    return image


def _size(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the three sides and the number of channels.

    Raises:
        UnreadableError: there are more axes, or too many channels.
    """
    trimmed = tuple(shape)
    while len(trimmed) > _AXES and trimmed[-1] == 1:
        trimmed = trimmed[:-1]
    if len(trimmed) == _AXES + 1 and trimmed[-1] <= MAX_CHANNELS:
        return trimmed[:_AXES], trimmed[-1]
    if len(trimmed) not in (2, _AXES):
        raise UnreadableError(
            f"it has {times(shape)} values: a series of {trimmed[-1]} volumes; at most "
            f"{MAX_CHANNELS} are read as channels: save each volume, or their mean, as a file"
        )
    return (*trimmed, 1)[:_AXES], 1


def _turned(affine: NDArray[np.float64], _size: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each of right, front and head the stored axis that is nearest to it."""
    axes = _nibabel().io_orientation(affine)[:, 0]
    return tuple(int(np.flatnonzero(axes == target)[0]) for target in range(_AXES))


def _dtype(image: Any) -> str:  # noqa: ANN401
    """Return the type of the decoded values: as stored, or float32 where a scale is applied."""
    dtype = image.get_data_dtype()
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if dtype.kind == "f" or (slope, intercept) != (1, 0):
        return "float32"
    return "int32" if dtype.itemsize > 2 else str(dtype.newbyteorder("="))


def _grids(image: Any) -> tuple[tuple[float, float], ...]:  # noqa: ANN401
    scale = float(image.dataobj.slope), float(image.dataobj.inter)
    return () if image.get_data_dtype().kind == "f" or scale == (1, 0) else (scale,)


def _type_name(image: Any) -> str:  # noqa: ANN401
    dtype = image.get_data_dtype()
    order = ", big endian" if dtype.byteorder == ">" else ""
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    scaled = "" if (slope, intercept) == (1, 0) else f", scaled by {slope:g}, {intercept:+g}"
    return f"{dtype.newbyteorder('=')}{order}{scaled}"


def _guarded(read: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return what a function reads from a NIfTI file; its errors become UnreadableError."""
    nibabel = _nibabel()
    no_volume = nibabel.filebasedimages.ImageFileError

    def words(error: Exception) -> str:
        return "it is no NIfTI volume" if isinstance(error, no_volume) else "it is cut or damaged"

    errors = (*_DAMAGED, no_volume, nibabel.spatialimages.HeaderDataError)
    return refs.guarded(read, words, errors)


def _nibabel() -> Any:  # noqa: ANN401
    try:
        import nibabel
    except ImportError:
        raise NotInstalledError("nibabel", "NIfTI files", "clinical") from None
    return nibabel
