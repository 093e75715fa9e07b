"""The form of exported images: stored steps, unit, spacing, and the words that mark them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.datasets.geometry import Geometry
from robustbench_med.native_units import stated_range

WARNING = "ADVERSARIAL EXAMPLE - NOT FOR CLINICAL USE"
MAKER = "robustbench_med"


class Form(NamedTuple):
    """What the images of a dataset have in common.

    Attributes:
        native: the stored values behind 0 and 1, and their step.
        size: `(h, w)` or `(d, h, w)` in pixels.
        channels: number of channels.
        spacing: mm per pixel along each axis; None = unknown.
        geometry: where the pixels of one image lie in the patient, if that is known.
        is_ct: whether the values are Hounsfield units.
    """

    native: NativeRange
    size: tuple[int, ...]
    channels: int
    spacing: tuple[float, ...] | None
    geometry: Geometry | None = None

    @property
    def is_ct(self) -> bool:
        """Whether the values are Hounsfield units."""
        return self.native.unit == "HU"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds the stored values."""
        native = self.native
        if all(float(v).is_integer() for v in (native.low, native.step)):
            for name in ("uint8", "int16", "uint16"):
                limits = np.iinfo(name)
                if limits.min <= native.low and native.high <= limits.max:
                    return np.dtype(name)
            return np.dtype(np.int32)
        return np.dtype(np.float32)

    def values(self, steps: NDArray[np.int64]) -> NDArray[Any]:
        """Return the stored values `low + k * step`."""
        values: NDArray[Any] = steps * self.native.step + self.native.low
        return (np.rint(values) if self.dtype.kind in "iu" else values).astype(self.dtype)


class Mark(NamedTuple):
    """The words that an exported image carries.

    Attributes:
        number: counts the images of an export, from 1.
        case_id: the case that made it.
        attack: what was done to it, e.g. "pgd, L-inf 10 HU".
    """

    number: int
    case_id: str
    attack: str

    @property
    def stem(self) -> str:
        """The name of the file without its ending."""
        return f"adversarial-{self.number:06d}"

    @property
    def text(self) -> str:
        """One sentence for a comment."""
        return f"{WARNING}. {self.attack}. {MAKER} case {self.case_id}."


def form_of(card: DatasetCard) -> Form:
    """Return the form of the images of a dataset.

    Images whose unit is not stated are stored as steps of their bit depth from 0 to 1.
    """
    native = stated_range(card)
    if native is None:
        native = NativeRange(unit="value", low=0, high=1, step=1 / card.levels)
    return Form(native, card.size, card.channels, card.spacing)
