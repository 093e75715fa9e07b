"""A draft of a card file, and what every way of drafting fills in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_med.datasets.dataset import SplitName
from robustbench_med.datasets.sources import words
from robustbench_med.datasets.sources.refs import ImageRef
from robustbench_med.errors import DataError

MOST_CLASSES = 200


@dataclass
class Draft:
    """A card file before it is written.

    Attributes:
        root: the folder of the data.
        format: the format of its files.
        refs: its images, without masks.
        mask_refs: its masks.
        card: fields of the card.
        source: fields of `[source]`.
        window: centre and width of the window that all files state, as "40/400"; "" = none.
        ends: the lowest and the highest value, where these were looked at.
        remarks: what was recognised, and by what.
        missing: what the person has to add before the data can be used.
    """

    root: Path
    format: str
    refs: list[ImageRef]
    mask_refs: list[ImageRef] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    window: str = ""
    ends: tuple[float, float] | None = None
    remarks: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def set_classes(draft: Draft, values: Iterable[str], where: str) -> None:
    """Fill in classes and their stored values."""
    values = sorted(set(values), key=_numerically)
    if any(re.fullmatch(r"-?\d*\.\d+", value) for value in values):
        raise DataError(
            f"{draft.root}: {where}: expected classes, got fractions such as "
            f"{next(v for v in values if '.' in v)}; soft labels cannot be used as truth"
        )
    if len(values) > MOST_CLASSES:
        raise DataError(
            f"{draft.root}: {where}: expected at most {MOST_CLASSES} classes, got {len(values)} "
            "different values"
        )
    if len(values) < 2:
        raise DataError(
            f"{draft.root}: {where}: expected at least two classes, got {', '.join(values)}"
        )
    numbers = all(re.fullmatch(r"-?\d+", value) for value in values)
    classes = [f"class {value}" for value in values] if numbers else values
    draft.card |= {"task": "single_label", "classes": classes}
    draft.source["values"] = values
    if numbers and values != [str(index) for index in range(len(values))]:
        draft.remarks.append(
            f"labels are {', '.join(values[:8])} and not 0..{len(values) - 1}: `values` gives "
            "the stored label of each class, in the order of the model's outputs"
        )
    healthy = [i for i, value in enumerate(values) if value.lower() in words.HEALTHY]
    if len(healthy) == 1:
        draft.card["normal"] = healthy[0]


def _numerically(value: str) -> tuple[int, int, str]:
    number = re.fullmatch(r"-?\d+", value)
    return (0, int(value), "") if number else (1, 0, value)


def split_names(stored: Iterable[str]) -> dict[SplitName, str]:
    """Return the word for each split; empty if a word is no split."""
    names: dict[SplitName, str] = {}
    for word in sorted(set(stored)):
        split = next((s for s, known in words.SPLITS.items() if word.lower() in known), None)
        if split is None or split in names:
            return {}
        names[split] = word
    return names
