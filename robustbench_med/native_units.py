"""Radii in the units of the data: "10HU", "4gl", "8/255 window", beside fractions of [0,1].

A radius in image units is a fraction of the range that the card states, from the stored value
behind 0 to the one behind 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.errors import SpecError
from robustbench_med.spec import number

GREY = "grey level"
WINDOW = "window"
_STEPS = ("gl", "greylevel", "greylevels", "graylevel", "graylevels")  # without spaces
_UNSTATED = ("", "float")  # units of a user's float images whose file states no unit
_NUMBER = r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"  # noqa: RUF001 - people write a minus sign
_RANGE = re.compile(
    rf"(?P<unit>.*?)\s*(?P<low>{_NUMBER})\s*(?:\.\.+|…|\bto\b)\s*(?P<high>{_NUMBER})(?P<rest>.*)"
)
_RADIUS = re.compile(
    r"\s*(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?(?:\s*/\s*[\d.]+)?)\s*(?P<unit>[^\d\s.+/-].*?)\s*"
)


class Range(NamedTuple):
    """The native range behind [0,1], as a text states it.

    Attributes:
        unit: "grey level", "HU"; empty if it is not stated.
        low, high: the native values of 0 and 1.
        rest: the text after the numbers: "of an MRI window".
    """

    unit: str
    low: float
    high: float
    rest: str


def parse_range(text: str) -> Range | None:
    """Return a native range as numbers; None if the text has no two rising numbers.

    >>> parse_range("grey level 0..255 of an MRI window")
    Range(unit='grey level', low=0.0, high=255.0, rest='of an MRI window')
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    low, high = (float(match[name].replace("−", "-")) for name in ("low", "high"))  # noqa: RUF001
    unit, rest = match["unit"], match["rest"].strip()
    if not unit and " " not in rest:  # "-160..240 HU"
        unit, rest = rest, ""
    unit = GREY if unit in ("grey levels", "gray level", "gray levels") else unit
    return Range(unit, low, high, rest) if low < high else None


def is_stated(unit: str) -> bool:
    """Return whether a unit says what the values are."""
    return unit not in _UNSTATED


def stated_range(card: DatasetCard) -> NativeRange | None:
    """Return the stored values behind 0 and 1 of a dataset; None if its card does not state them.

    A card without `native` may state them in the text of `native_range`; its steps are then those
    of its bit depth.
    """
    if card.native is not None:
        return card.native
    parsed = parse_range(card.native_range)
    if parsed is None or not is_stated(parsed.unit):
        return None
    step = (parsed.high - parsed.low) / card.levels
    try:
        return NativeRange(unit=parsed.unit, low=parsed.low, high=parsed.high, step=step)
    except ValueError:
        return None


def split_unit(value: object) -> tuple[object, str]:
    """Return the number of a radius and its unit; the unit is "" for a fraction of [0,1].

    >>> split_unit("10 HU"), split_unit("8/255 window"), split_unit("2/255"), split_unit(0.1)
    (('10', 'HU'), ('8/255', 'window'), ('2/255', ''), (0.1, ''))
    """
    match = _RADIUS.fullmatch(value) if isinstance(value, str) else None
    with suppress(SpecError):  # "1e-3" has no unit e-3
        number(str(value))
        match = None
    return (value, "") if match is None else (match["number"], match["unit"])


def has_unit(radii: object) -> bool:
    """Return whether a radius, or one of several, has a unit."""
    several = radii if isinstance(radii, list | tuple) else [radii]
    return any(split_unit(radius)[1] for radius in several)


def has_window_unit(radii: object) -> bool:
    """Return whether a radius, or one of several, is a fraction of the victim's window."""
    several = radii if isinstance(radii, list | tuple) else [radii]
    return any(split_unit(radius)[1].casefold() == WINDOW for radius in several)


def to_image_radius(value: object, card: DatasetCard, windows: Sequence[float] = ()) -> float:
    """Return a radius in image units, where x is in [0,1].

    Args:
        value: a number, or a text such as "2/255", "10HU", "4gl" (stored steps) or "8/255 window".
        card: states the native range of the data.
        windows: the widths of the victim's windows, as fractions of the native range.

    Raises:
        SpecError: the number is none, or the data or the victim do not have such a unit.

    >>> from robustbench_med.dataset_cards import load_cards
    >>> to_image_radius("4gl", load_cards()["phantom_chest"]) == 4 / 255
    True
    """
    text, unit = split_unit(value)
    radius = number(text)
    if not unit:
        return radius
    if unit.casefold() == WINDOW:
        return radius * _window(value, windows)
    native = stated_range(card)
    known = f"none ({card.native_range})" if native is None else f"{native.unit} ({native.text})"
    joined = unit.casefold().replace(" ", "")
    if native is not None and joined in _STEPS and (card.native or _is_grey(native.unit)):
        _check_steps(value, native, card)
        return radius / card.levels
    if native is not None and unit.casefold() == native.unit.casefold():
        return radius / (native.high - native.low)
    raise SpecError(
        f"expected eps in a unit that {card.name} has, which is {known}, or as a fraction of its "
        f"range such as 4/255, got {value!r}"
    )


def _is_grey(unit: str) -> bool:
    return unit.casefold().replace(" ", "") in _STEPS


def _check_steps(value: object, native: NativeRange, card: DatasetCard) -> None:
    """Raise SpecError if grey levels have two sizes: those of the range, and the stored steps."""
    width = native.high - native.low
    if not _is_grey(native.unit) or card.levels == round(width, 6):
        return
    if card.native is not None:
        cause = f"in steps of {native.step:g}"
        way = f"state low and high in steps of 1, {card.levels} of them"
    else:
        cause = f"in {card.levels} steps, those of its bit depth of {card.bit_depth}"
        bits = math.log2(width + 1)
        way = f"state a bit_depth of {bits:.0f}" if bits == round(bits) else "state `native`"
    raise SpecError(
        f"expected grey levels of one size for eps {value!r}, got {card.name} of {native.text} "
        f"{cause}: {way}, or write a fraction of the range such as 4/{width:g}"
    )


def _window(value: object, windows: Sequence[float]) -> float:
    if len(set(windows)) == 1:
        return windows[0]
    widths = "several of different width" if windows else "none"
    raise SpecError(
        f"expected a victim with one window for eps {value!r}, got {widths}: state it with "
        '--preprocess "window(centre, width)"'
    )
