"""Radii in the units of a dataset: grey levels, Hounsfield units, or what its card says. Pure.

Radii are measured on images in [0, 1]. What 1 stands for differs: 2/255 of an 8-bit picture are two
grey levels, of a CT window from -160 to 240 HU 3.1 HU, of a volume scaled by its own percentiles
another intensity in each. Where the card does not say it in numbers, nothing is converted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from robustbench_med.cards import DatasetCard
from robustbench_med.metrics.segmentation import units

from .text import NORMS, plain

_NUMBER = r"[-+−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"  # noqa: RUF001 - people write a minus sign
_RANGE = re.compile(
    rf"(?P<unit>.*?)\s*(?P<low>{_NUMBER})\s*(?:\.\.+|…|\bto\b)\s*(?P<high>{_NUMBER})(?P<rest>.*)"
)
_UNSTATED = ("", "float")  # what own floats are called whose file does not say more


class Native(NamedTuple):
    """What [0, 1] stands for, where a card gives two numbers.

    Attributes:
        unit: "grey level", "HU"; empty where it is not stated.
        low, high: what 0 and 1 stand for.
        rest: what follows the numbers: "of an MRI window".
    """

    unit: str
    low: float
    high: float
    rest: str


def native(card: DatasetCard) -> Native | None:
    """Return the range of a card as numbers; None where its text holds none."""
    found = _RANGE.fullmatch(plain(card.native_range))
    if found is None:
        return None
    low, high = (float(found[name].replace("−", "-")) for name in ("low", "high"))  # noqa: RUF001
    unit, rest = found["unit"], found["rest"].strip()
    if not unit and " " not in rest:  # "-160..240 HU"
        unit, rest = rest, ""
    unit = "grey level" if unit in ("grey levels", "gray level", "gray levels") else unit
    return Native(unit, low, high, rest) if low < high else None


def native_radius(eps: float, card: DatasetCard, norm: str, budget: str = "absolute") -> str:
    """Return a radius in the units of the data: "2 grey levels", "3.14 HU".

    Empty where the radius is no largest change of a value (another norm, a ratio), or where the
    card does not state the units.
    """
    found = native(card)
    if norm != "linf" or budget != "absolute" or found is None or found.unit in _UNSTATED:
        return ""
    value = eps * (found.high - found.low)
    size = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{size} {found.unit}" + ("s" if found.unit == "grey level" and size != "1" else "")


def native_radii(ladder: tuple[float, ...], card: DatasetCard) -> str:
    """Return L∞ radii in the units of the data: "0.5, 1, 2 grey levels"; empty where not stated."""
    each = [native_radius(eps, card, "linf") for eps in ladder]
    numbers = [one.partition(" ")[0] for one in each]
    return ", ".join([*numbers[:-1], each[-1]]) if each and each[-1] else ""


def range_words(card: DatasetCard) -> str:
    """Return what 0 and 1 stand for: "grey level 0..255", or that it is not stated."""
    found = native(card)
    if found is not None and found.unit in _UNSTATED and not found.rest:
        stated = f"{found.low:g} to {found.high:g}"
        return f"values from {stated}, in units that are not stated"
    return plain(card.native_range)


def linf_words(ladder: tuple[float, ...], card: DatasetCard) -> str:
    """Return how far a value may move, in the units of the data and in parts of the range.

    E.g. "1, 2 grey levels (1, 2 parts in 255 of the range, grey level 0..255)".
    """
    parts = ", ".join(f"{eps * 255:.3g}" for eps in ladder) + " parts in 255 of the range"
    own = native_radii(ladder, card)
    return f"{own} ({parts}, {range_words(card)})" if own else f"{parts} ({range_words(card)})"


_MEASURES = {
    "linf": "the largest change of a value, as a part of the range (L∞)",
    "l2": "the root of the summed squares of all changes (L2), of values from 0 to 1",
    "l1": "the sum of all changes (L1), of values from 0 to 1",
    "l0": "the number of values changed (L0): pixels times channels",
}


def measure_words(norm: str, budget: str = "absolute") -> str:
    """Return what a radius is: which size of a change, counted in what."""
    if budget == "mean_norm":
        return (
            f"the size of the change in % of a training image's mean {NORMS.get(norm, norm)} norm"
        )
    return _MEASURES[norm]


def metric_unit(metric: str, card: DatasetCard) -> str:
    """Return the unit of a metric of masks on a dataset: "mm", "px", "ml"; empty of a share."""
    if card.task != "segmentation":
        return ""
    base = metric.partition("[")[0]
    found = units(card.spacing, len(card.size))
    return f"within {card.tolerance:g} {found['hd95']}" if base == "nsd" else found.get(base, "")
