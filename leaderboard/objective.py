"""What the attacker wants and which channels may change, in plain English."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustbench_med.cards import DatasetCard
from robustbench_med.spec import Spec
from robustbench_med.worst_case import parse_objective

from .text import plain

_SHARES = {0.25: "a quarter of", 0.5: "half", 0.75: "three quarters of"}
_CHANGES = {"shrink": "shrink {organ}", "grow": "grow {organ}", "empty": "erase {organ}"}


def called(name: str) -> str:
    """Return a class or region as a sentence names it: `left_lung` is "left lung"."""
    return plain(name.replace("_", " "))


def the(name: str) -> str:
    """Return a name with its article."""
    return f"the {name}"


def objective_words(objective: str, card: DatasetCard) -> str:
    """Return what the attacker wants of a model of `card`.

    Of masks: "spoil only the tumour core", "draw a heart in place of the mediastinum", "shrink the
    left lung"; sizes where the objective states them, so that no two boards are called the same.
    """
    aim = parse_objective(objective) if card.task == "segmentation" else Spec("", {})
    if aim.name == "region" and "name" in aim.parameters:
        return f"spoil only {the(called(str(aim.parameters['name'])))}"
    if aim.name == "targeted" and {"mask", "label"} <= aim.parameters.keys():
        return _draw(aim.parameters, card)
    return plain(objective)


def _draw(parameters: Mapping[str, Any], card: DatasetCard) -> str:
    mask, label = str(parameters["mask"]), parameters["label"]
    known = isinstance(label, int) and 0 <= label < len(card.classes)
    organ = the(called(card.classes[label])) if known else f"class {plain(str(label))}"
    by, size = parameters.get("by"), parameters.get("size")
    if mask == "move":
        left = isinstance(by, int | float) and by < 0
        steps = f" by {plain(str(by)).lstrip('-')} px" if by is not None else ""
        return f"move {organ} to the {'left' if left else 'right'}{steps}"
    if mask in _CHANGES:
        steps = f" by {plain(str(by))} px" if by is not None and mask != "empty" else ""
        return _CHANGES[mask].format(organ=organ) + steps
    drawn = called(mask) + (" shape" if known and mask == card.classes[label] else "")
    height = f", {100 * size:.3g} % of the image high" if isinstance(size, int | float) else ""
    return f"draw a {drawn} in place of {organ}{height}"


def channel_words(channels: Mapping[str, float], card: DatasetCard) -> str:
    """Return which channels may change and how far; empty where all may, by the whole radius.

    E.g. "only T1ce", "only T1ce at half the radius", "only T1 and T2".
    """
    if not channels:
        return ""
    names, shares = [plain(name) for name in channels], set(channels.values())
    if len(shares) > 1:
        each = (f"{plain(name)} at {_share(share)} the radius" for name, share in channels.items())
        return f"only {', '.join(each)}"
    every = set(channels) == set(card.channel_names)
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    (share,) = shares
    at = "" if share == 1 else f" at {_share(share)} the radius"
    return ("every channel" if every else f"only {listed}") + at


def channel_label(channels: Mapping[str, float], card: DatasetCard) -> str:
    """Return the channels that may change as a short label: "T1ce", "T1 + T2", "T1 ×0.5"."""
    shares = set(channels.values())
    if set(channels) == set(card.channel_names) and len(shares) == 1 and shares != {1.0}:
        return f"all ×{shares.pop():g}"
    each = (plain(n) + ("" if share == 1 else f" ×{share:g}") for n, share in channels.items())
    return " + ".join(each) or "all"


def _share(share: float) -> str:
    return "the whole of" if share == 1 else _SHARES.get(share, f"{100 * share:.3g} % of")
