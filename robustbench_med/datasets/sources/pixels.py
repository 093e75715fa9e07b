"""Bring decoded images to the size, channels, unit and type that a card states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import NativeRange
from robustbench_med.datasets.sources.file_images import FileImages
from robustbench_med.datasets.sources.native import on_steps, scaled, stored_type
from robustbench_med.datasets.sources.readers import READERS
from robustbench_med.datasets.sources.refs import ImageRef, UnreadableError, check_values
from robustbench_med.datasets.sources.resize import resize
from robustbench_med.datasets.sources.spec import CardFile

_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601
_SLACK = 1e-6  # of a range, by which floats may leave it


@dataclass(frozen=True)
class Conversion:
    """Reads an image and converts it; equal ones give equal pixels.

    Attributes:
        format: a key of `READERS`.
        size: size of an image; it is resized to it.
        channels: number of channels.
        native: the range of the values; None = uint8 grey levels or colours, or `scale`.
        clip: whether values outside are clipped.
        scale: "each" = from an image's own lowest to its highest value.
    """

    format: str
    size: tuple[int, ...]
    channels: int
    native: NativeRange | None
    clip: bool
    scale: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the pixels."""
        return np.dtype(np.float32) if self.scale else stored_type(self.native)

    def __call__(self, root: Path, ref: ImageRef) -> NDArray[Any]:
        """Return the pixels of an image.

        Raises:
            UnreadableError: it cannot be read, or does not fit the card.
        """
        values = READERS[self.format].decode(root, ref)
        check_values(values)
        if self.scale:
            values = scaled(values)
        elif self.native is None:
            if values.dtype != np.uint8:
                raise UnreadableError("its values are not of 8 bits: state [native] or scale")
        elif self.clip:
            values = np.clip(values, self.native.low, self.native.high)
        values = self._channels(resize(values, self.size))
        if self.native is not None:
            self._check_range(values, self.native)
            if self.dtype.kind != "f" and (self.native.step != 1 or values.dtype.kind == "f"):
                values = on_steps(values, self.native)
        return values.astype(self.dtype)

    def _channels(self, values: NDArray[Any]) -> NDArray[Any]:
        count = values.shape[-1] if values.ndim > len(self.size) else 1
        if count == self.channels:
            return values
        if count == 1:
            return np.repeat(values[..., None], self.channels, -1)
        if self.channels == 1 and count == len(_LUMA):
            if (values == values[..., :1]).all():
                return values[..., 0]
            grey: NDArray[Any] = values.astype(np.float64) @ _LUMA
            return grey if values.dtype.kind == "f" else np.rint(grey)
        raise UnreadableError(f"it has {count} channels; the card states {self.channels}")

    def _check_range(self, values: NDArray[Any], native: NativeRange) -> None:
        low, high = float(values.min()), float(values.max())
        slack = _SLACK * (native.high - native.low) if self.dtype.kind == "f" else 0
        if low < native.low - slack or high > native.high + slack:
            raise UnreadableError(
                f"its values {low:g}..{high:g} are outside {native.text}: state a wider range in "
                "[native], or clip = true in [source]"
            )


def pixels_of(card_file: CardFile, refs: tuple[ImageRef, ...], size: tuple[int, ...]) -> FileImages:
    """Return images as one array of a size, and of the channels and unit that the card states."""
    card, source = card_file.card, card_file.source
    shape = size if card.channels == 1 else (*size, card.channels)
    convert = Conversion(source.format, size, card.channels, card.native, source.clip, source.scale)
    return FileImages(card_file.root, refs, (len(refs), *shape), convert.dtype, convert)
