"""Read pictures (PNG, JPEG, TIFF, BMP, WebP) with Pillow, sizes checked before pixels are read."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from robustbench_med.datasets.sources.refs import ImageRef, UnreadableError, check_volume

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm"))
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")  # none that runs another program
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3}
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_LOUD = ("nibabel.global", "pydicom", "highdicom", "PIL")
_OPAQUE = 255
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError, IndexError)


def is_picture(name: str) -> bool:
    """Whether a file has the name of a picture."""
    return Path(name).suffix.lower() in SUFFIXES


def head(root: Path, name: str) -> ImageRef:
    """Return the reference to a picture, from its header alone.

    Raises:
        UnreadableError: it is damaged, too large, or of a kind that is not read.
    """
    with _opened(root / name) as picture:
        width, height = picture.size
        dtype = "uint16" if picture.mode in _DEEP else "uint8"
        if picture.mode == "F":
            dtype = "float32"
        facts = (("type", f"{dtype}, {picture.mode}"),)
        channels = _CHANNELS.get(picture.mode, 1)
        return ImageRef((name,), (height, width), channels, dtype, facts=facts)


def decode(root: Path, ref: ImageRef) -> NDArray[Any]:
    """Return the pixels of a picture: `(h, w)` or `(h, w, 3)`, in the type that `ref` states.

    A palette becomes colours. An alpha channel must be opaque, and is left out. The orientation of
    EXIF is not applied: labels and masks were made for the pixels as they are stored.

    Raises:
        UnreadableError: the file is damaged, changed since its header was read, or is transparent.
    """
    with _opened(root / ref.files[0]) as picture:
        picture.load()
        picture = _plain(picture)
        values = np.asarray(picture)
    if picture.mode in _DEEP and ((values < 0).any() or (values > np.iinfo(np.uint16).max).any()):
        raise UnreadableError("its grey levels are outside 0..65535")
    return np.ascontiguousarray(values, dtype=ref.dtype)


def decode_bytes(content: BinaryIO) -> NDArray[np.uint8]:
    """Return the pixels of a picture of 8 bits that is in memory: `(h, w)` or `(h, w, 3)`.

    Raises:
        UnreadableError: as `decode`, or it has more bits.
    """
    with _opened(content) as picture:
        picture.load()
        values = np.asarray(_plain(picture))
    if values.dtype != np.uint8:
        raise UnreadableError("its values are not of 8 bits")
    return np.ascontiguousarray(values)


def _plain(picture: Image.Image) -> Image.Image:
    """Return a picture without alpha channel and palette.

    Raises:
        UnreadableError: it is transparent in places.
    """
    if picture.mode in ("LA", "RGBA"):
        if picture.getchannel("A").getextrema()[0] != _OPAQUE:
            raise UnreadableError("it is transparent in places; save it without alpha channel")
        picture = picture.convert(picture.mode.removesuffix("A"))
    if picture.mode in ("P", "1"):
        picture = picture.convert("RGB" if picture.mode == "P" else "L")
    return picture


def decode_mask(root: Path, ref: ImageRef) -> NDArray[Any]:
    """Return the stored ids of a mask `(h, w)`; a palette's indices, or grey in three channels.

    Raises:
        UnreadableError: the file is damaged, or has colours.
    """
    with _opened(root / ref.files[0]) as picture:
        picture.load()
        if picture.mode == "P":
            return np.asarray(picture)
    values = decode(root, ref)
    if values.ndim == 2:
        return values
    if (values != values[..., :1]).any():
        raise UnreadableError("this mask has colours: save one class id per pixel")
    return np.ascontiguousarray(values[..., 0])


@contextmanager
def _opened(path: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture whose size and kind have been checked; errors become UnreadableError."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            check_volume((picture.size[1], picture.size[0], 4 if picture.mode == "RGBA" else 3))
            if picture.mode not in (*_CHANNELS, *_DEEP, "F"):
                raise UnreadableError(f"its colours are {picture.mode}; save it as grey or RGB")
            if getattr(picture, "n_frames", 1) > 1:
                raise UnreadableError(
                    f"it holds {picture.n_frames} pictures; save each as a file"  # type: ignore[attr-defined]
                )
            yield picture
    except UnreadableError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableError("its header states a picture that is too large") from None
    except UnidentifiedImageError:
        raise UnreadableError("it is no picture, or its header is damaged") from None
    except FileNotFoundError:
        raise UnreadableError("there is no such file") from None
    except _DAMAGED as error:
        cut = "truncated" in str(error) or "broken" in str(error) or isinstance(error, EOFError)
        raise UnreadableError("it is cut" if cut else "it is damaged") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence libraries: what they print may repeat a file's text, and our own checks follow."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
