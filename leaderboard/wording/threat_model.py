"""Describe the threat model: the attacker's goal, the channels, and radii in native units.

Radii are measured on images in [0, 1]. The meaning of 1 differs: 2/255 is two grey levels of an
8-bit picture, 3.1 HU in a CT window from -160 to 240 HU, and a different intensity in each volume
that is scaled by its own percentiles. A radius is converted only if the card states the range in
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustbench_med.cards import DatasetCard
from robustbench_med.metrics.segmentation import units
from robustbench_med.native_units import GREY, Range, is_stated, parse_range
from robustbench_med.spec import Spec
from robustbench_med.worst_case import parse_objective

from .text import NORMS, plain, radius

_FRACTIONS = {0.25: "a quarter of", 0.5: "half", 0.75: "three quarters of"}
_CHANGES = {"shrink": "shrink {organ}", "grow": "grow {organ}", "empty": "erase {organ}"}


def class_words(name: str) -> str:
    """Return the name of a class or region for a sentence: `left_lung` is "left lung"."""
    return plain(name.replace("_", " "))


def with_article(name: str) -> str:
    """Return a name with its article."""
    return f"the {name}"


def objective_words(objective: str, card: DatasetCard) -> str:
    """Return the attacker's goal on data of `card`.

    For masks it is for example "spoil only the tumour core", "draw a heart in place of the
    mediastinum" or "shrink the left lung", with the sizes that the objective states, so that
    different boards have different names.
    """
    aim = parse_objective(objective) if card.task == "segmentation" else Spec("", {})
    if aim.name == "region" and "name" in aim.parameters:
        return f"spoil only {with_article(class_words(str(aim.parameters['name'])))}"
    if aim.name == "targeted" and {"mask", "label"} <= aim.parameters.keys():
        return _draw(aim.parameters, card)
    return plain(objective)


def _draw(parameters: Mapping[str, Any], card: DatasetCard) -> str:
    mask, label = str(parameters["mask"]), parameters["label"]
    known = isinstance(label, int) and 0 <= label < len(card.classes)
    organ = (
        with_article(class_words(card.classes[label])) if known else f"class {plain(str(label))}"
    )
    by, size = parameters.get("by"), parameters.get("size")
    if mask == "move":
        leftward = isinstance(by, int | float) and by < 0
        steps = f" by {plain(str(by)).lstrip('-')} px" if by is not None else ""
        return f"move {organ} to the {'left' if leftward else 'right'}{steps}"
    if mask in _CHANGES:
        steps = f" by {plain(str(by))} px" if by is not None and mask != "empty" else ""
        return _CHANGES[mask].format(organ=organ) + steps
    drawn = class_words(mask) + (" shape" if known and mask == card.classes[label] else "")
    height = f", {100 * size:.3g} % of the image high" if isinstance(size, int | float) else ""
    return f"draw a {drawn} in place of {organ}{height}"


def channel_words(channels: Mapping[str, float], card: DatasetCard) -> str:
    """Return which channels may change and how far; empty if all may change by the whole radius.

    E.g. "only T1ce", "only T1ce at half the radius", "only T1 and T2".
    """
    if not channels:
        return ""
    names, fractions = [plain(name) for name in channels], set(channels.values())
    if len(fractions) > 1:
        each = (
            f"{plain(name)} at {_fraction_words(fraction)} the radius"
            for name, fraction in channels.items()
        )
        return f"only {', '.join(each)}"
    every = set(channels) == set(card.channel_names)
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    (fraction,) = fractions
    at = "" if fraction == 1 else f" at {_fraction_words(fraction)} the radius"
    return ("every channel" if every else f"only {listed}") + at


def channel_label(channels: Mapping[str, float], card: DatasetCard) -> str:
    """Return the channels that may change as a short label: "T1ce", "T1 + T2", "T1 ×0.5"."""
    fractions = set(channels.values())
    if set(channels) == set(card.channel_names) and len(fractions) == 1 and fractions != {1.0}:
        return f"all ×{fractions.pop():g}"
    each = (
        plain(n) + ("" if fraction == 1 else f" ×{fraction:g}") for n, fraction in channels.items()
    )
    return " + ".join(each) or "all"


def _fraction_words(fraction: float) -> str:
    return (
        "the whole of" if fraction == 1 else _FRACTIONS.get(fraction, f"{100 * fraction:.3g} % of")
    )


def native(card: DatasetCard) -> Range | None:
    """Return the native range of a card as numbers; None if its text has no two numbers."""
    return parse_range(plain(card.native_range))


def native_radius(eps: float, card: DatasetCard, norm: str, budget: str = "absolute") -> str:
    """Return a radius in the units of the data: "2 grey levels", "3.14 HU".

    It is empty if the radius is not the largest change of a value (another norm, a ratio), or if
    the card does not state the units.
    """
    scale = native(card)
    if norm != "linf" or budget != "absolute" or scale is None or not is_stated(scale.unit):
        return ""
    value = eps * (scale.high - scale.low)
    size = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{size} {scale.unit}" + ("s" if scale.unit == GREY and size != "1" else "")


def radius_label(eps: float, card: DatasetCard, norm: str, budget: str = "absolute") -> str:
    """Return a radius as boards name it; in the unit of the data first where they are stored in it.

    E.g. "2/255", and "4 HU (0.249/255)" of a card with `native`.
    """
    plain_radius = radius(eps, norm, budget)
    words = "" if card.native is None else native_radius(eps, card, norm, budget)
    return f"{words} ({plain_radius})" if words else plain_radius


def native_radii(ladder: tuple[float, ...], card: DatasetCard) -> str:
    """Return L∞ radii in the units of the data: "0.5, 1, 2 grey levels"; empty if not stated."""
    each = [native_radius(eps, card, "linf") for eps in ladder]
    numbers = [text.partition(" ")[0] for text in each]
    return ", ".join([*numbers[:-1], each[-1]]) if each and each[-1] else ""


def range_words(card: DatasetCard) -> str:
    """Return the native values of 0 and 1: "grey level 0..255", or that they are not stated."""
    scale = native(card)
    if scale is not None and not is_stated(scale.unit) and not scale.rest:
        stated = f"{scale.low:g} to {scale.high:g}"
        return f"values from {stated}, in units that are not stated"
    return plain(card.native_range)


def linf_words(ladder: tuple[float, ...], card: DatasetCard) -> str:
    """Return how far a value may change, in the units of the data and in parts of the range.

    E.g. "1, 2 grey levels (1, 2 parts in 255 of the range, grey level 0..255)".
    """
    fractions = ", ".join(f"{eps * 255:.3g}" for eps in ladder) + " parts in 255 of the range"
    native_words = native_radii(ladder, card)
    return (
        f"{native_words} ({fractions}, {range_words(card)})"
        if native_words
        else f"{fractions} ({range_words(card)})"
    )


_MEASURES = {
    "linf": "the largest change of a value, as a part of the range (L∞)",
    "l2": "the root of the sum of all squared changes (L2), for values from 0 to 1",
    "l1": "the sum of all changes (L1), for values from 0 to 1",
    "l0": "the number of changed values (L0), which are pixels times channels",
    "severity": "the part of each parameter's range that the shift may use",
}


def measure_words(norm: str, budget: str = "absolute") -> str:
    """Return the meaning and the unit of a radius."""
    if budget == "mean_norm":
        return (
            f"the size of the change in % of a training image's mean {NORMS.get(norm, norm)} norm"
        )
    return _MEASURES[norm]


def metric_unit(metric: str, card: DatasetCard) -> str:
    """Return the unit of a metric of masks on a dataset: "mm", "px", "ml"; empty for a share."""
    if card.task != "segmentation":
        return ""
    base = metric.partition("[")[0]
    mask_units = units(card.spacing, len(card.size))
    return (
        f"within {card.tolerance:g} {mask_units['hd95']}"
        if base == "nsd"
        else mask_units.get(base, "")
    )
