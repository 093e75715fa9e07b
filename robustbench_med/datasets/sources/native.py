"""Choose the native range of images that are stored in their own unit, from what they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med.cards import NativeRange
from robustbench_med.datasets.sources.grid import Grid

CT = NativeRange(unit="HU", low=-1024, high=3071)  # the 12 bits that CT scanners store
_SIXTEENTHS = NativeRange(unit="HU", low=CT.low, high=CT.high, step=1 / 16)  # fractions, as floats
_LEAST_HU = -3100  # padding of -2000 before an intercept of -1024
_AIR = -500  # a CT that holds air is below it
_FLOAT_STEPS = 2**16 - 1
_MOST_STEPS = 2**22  # of a grid; NativeRange holds four times as many
_UNLIKE = 16  # ranges that differ by more have no common scale


class Ends(NamedTuple):
    """Lowest and highest value of an image."""

    low: float
    high: float


def native_of(
    ends: Sequence[Ends], *, modality: str, integers: bool, grid: Grid | None = None
) -> NativeRange:
    """Return the range whose ends become 0 and 1.

    Of CT these are -1024..3071 HU, in steps of 1, or of 1/16 where values are fractions; of other
    integers 0, or the next negative power of two, to the next power of two less one; of floats
    their lowest and highest value, in 65535 steps. Where the files have a grid, the step is its
    step, and powers of two count steps.

    Args:
        ends: lowest and highest value of each image.
        modality: as the files state it.
        integers: whether all values are whole.
        grid: the grid on which the values of all files lie, if there is one.

    >>> native_of([Ends(0, 1203)], modality="MR", integers=True).text
    'grey level 0..2047'
    """
    low, high = min(e.low for e in ends), max(e.high for e in ends)
    if grid is None and integers:
        grid = Grid(1, 0)
    is_ct = modality == "CT" and low < _AIR
    if is_ct and grid == Grid(1, 0):
        return CT
    if grid is not None and max(abs(low), abs(high)) / grid.step < _MOST_STEPS:
        return _on_grid(*((CT.low, CT.high) if is_ct else (low, high)), grid, is_ct=is_ct)
    if is_ct:
        return _SIXTEENTHS
    if low == high:
        high = low + 1
    step = (high - low) / _FLOAT_STEPS
    return NativeRange(unit="stored value", low=low, high=low + step * _FLOAT_STEPS, step=step)


def _on_grid(low: float, high: float, grid: Grid, *, is_ct: bool) -> NativeRange:
    """Return the range on a grid: of CT the widest inside, else a power of two of steps."""
    step, offset = grid.step, grid.offset
    if is_ct:
        bottom, top = math.ceil((low - offset) / step), math.floor((high - offset) / step)
        if bottom < top:
            low, high = offset + bottom * step, offset + top * step
            return NativeRange(unit="HU", low=low, high=high, step=step)
    bottom, top = round((low - offset) / step), round((high - offset) / step)
    bottom = 0 if bottom >= 0 else -(2 ** math.ceil(math.log2(-bottom)))
    top = 2 ** max(1, math.ceil(math.log2(max(top, 0) + 1))) - 1
    unit = "grey level" if step == 1 else "stored value"
    return NativeRange(unit=unit, low=offset + bottom * step, high=offset + top * step, step=step)


def on_steps(values: NDArray[Any], native: NativeRange) -> NDArray[Any]:
    """Return the nearest of the values `low + k * step`."""
    steps = np.rint((values.astype(np.float64) - native.low) / native.step)
    return np.asarray(steps * native.step + native.low)


def is_like_hu(low: float, high: float) -> bool:
    """Whether whole values of unknown unit have the range of CT: air at -1000, and bone."""
    return _LEAST_HU <= low < _AIR - 400 and 200 < high <= CT.high + 1024


def is_unlike(ends: Sequence[Ends]) -> bool:
    """Whether images have ranges that no common scale fits, so that some would be black."""
    widths = [e.high - e.low for e in ends if e.high > e.low]
    return bool(widths) and max(widths) > _UNLIKE * min(widths)


def stored_type(native: NativeRange | None) -> np.dtype[Any]:
    """Return the smallest type that holds every value of a range.

    >>> stored_type(CT), stored_type(None)
    (dtype('int16'), dtype('uint8'))
    """
    if native is None:
        return np.dtype(np.uint8)
    if not all(float(v).is_integer() for v in (native.low, native.high, native.step)):
        return np.dtype(np.float32)
    for name in ("uint8", "int16", "uint16", "int32"):
        limits = np.iinfo(name)
        if limits.min <= native.low and native.high <= limits.max:
            return np.dtype(name)
    return np.dtype(np.float32)


def scaled(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return an image scaled from its own lowest and highest value to [0,1]."""
    low, high = float(values.min()), float(values.max())
    width = high - low if high > low else 1.0
    return ((values.astype(np.float64) - low) / width).astype(np.float32)
