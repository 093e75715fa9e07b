"""The grid of the values that files hold: intercept + k * slope, for whole k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from robustbench_med.cards import NativeRange
from robustbench_med.datasets.sources.refs import ImageRef
from robustbench_med.errors import DataError

_EQUAL = 1e-6  # of a step, by which places on a grid may differ: headers round their numbers
UNIT = (1.0, 0.0)


class Grid(NamedTuple):
    """The values `offset + k * step` that files hold.

    Attributes:
        step: the difference of neighbouring values.
        offset: the one that is at least 0 and below the step.
        shared: whether every file holds each of them; else some files hold only a part.
    """

    step: float
    offset: float
    shared: bool = True

    def holds(self, value: float, step: float) -> bool:
        """Whether all values `value + k * step` are on the grid."""
        places = ((value - self.offset) / self.step, step / self.step)
        return all(abs(place - round(place)) <= _EQUAL * max(1, abs(place)) for place in places)


def grid_of(refs: Sequence[ImageRef]) -> Grid | None:
    """Return the coarsest grid on which the values of all files lie; None if there is none.

    Files that share slope and intercept have one. Of whole slopes that differ it is that of their
    greatest common divisor, which is finer than some files are.
    """
    pairs = {pair for ref in refs for pair in pairs_of(ref)}
    if not pairs or any(not pairs_of(ref) for ref in refs):
        return None
    slope, intercept = next(iter(sorted(pairs)))
    first = Grid(abs(slope), intercept - math.floor(intercept / abs(slope)) * abs(slope))
    if all(first.holds(b, s) and abs(s) == first.step for s, b in pairs):
        return first
    if not all(float(v).is_integer() for pair in pairs for v in pair):
        return None
    step = math.gcd(*(int(s) for s, _ in pairs), *(int(b - intercept) for _, b in pairs))
    return Grid(step, intercept % step, shared=all(abs(s) == step for s, _ in pairs))


def pairs_of(ref: ImageRef) -> tuple[tuple[float, float], ...]:
    """Return slope and intercept of each slice; those of whole numbers are 1 and 0."""
    return ref.grids or (() if ref.dtype.startswith("float") else (UNIT,))


def rounding_note(native: NativeRange, refs: Sequence[ImageRef]) -> str:
    """Return a note for records if values of files may lie between the steps; "" if none do.

    Args:
        native: the range and the step that a card states, whose values are stored as integers.
        refs: the images.
    """
    steps = Grid(native.step, native.low)
    between = sum(
        not pairs_of(ref) or any(not steps.holds(b, s) for s, b in pairs_of(ref)) for ref in refs
    )
    if not between:
        return ""
    return (
        f"{between} of {len(refs)} images are in files that can hold values between the steps of "
        f"{native.step:g} of {native.text}: such values were rounded to the nearest step, which "
        "the attacked image has; a smaller step in [native] keeps them"
    )


def check_grid(native: NativeRange, refs: Sequence[ImageRef], where: str) -> str:
    """Return a note for records if no grid fits all files; "" if one does.

    Args:
        native: the range and the step that a card states.
        refs: the images.
        where: the card file, for the error message.

    Raises:
        DataError: the card states values between those that the files hold.
    """
    grid = grid_of(refs)
    if grid is not None and not grid.holds(native.low, native.step):
        raise DataError(
            f"{where}: expected low = {grid.offset:.10g} + k * {grid.step:.10g} and a step of "
            f"{grid.step:.10g} in [native], the values that the files hold (rescale slope and "
            f"intercept), got low = {native.low:.10g}, step = {native.step:.10g}: success on "
            "rounded images would be judged on values between them; inspect the folder again"
        )
    slopes = sorted({abs(s) for ref in refs for s, _ in pairs_of(ref)})
    if not slopes or (grid is not None and grid.shared):
        return ""
    return (
        f"rescale slopes ({slopes[0]:g} to {slopes[-1]:g}) or intercepts differ: images "
        f"are rounded to steps of {native.step:g}, which are not those of every file, so success "
        "on rounded images may not hold in the file of an image"
    )
