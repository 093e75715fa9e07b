"""Images: which ones a record saw, and how records that saw others are kept apart. Pure.

Records of one dataset may have drawn other images of it (another suite, another number, another
split). What is scored on them is no statement on one set of images, so each set has its own board.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored

from .text import plain


class Images(NamedTuple):
    """A set of images: the hash of the data, the split, and their ids."""

    data: str
    split: str
    ids: frozenset[str]


Draw = tuple[str, str, int | None, int]


def images_of(run: Stored) -> Images:
    """Return the images a record saw."""
    case = run.record.case
    return Images(case.data_sha256, case.split, frozenset(map(str, run.samples["sample"].unique())))


def common_images(runs: Iterable[Stored]) -> Images | None:
    """Return the images most valid runs saw; the larger set where two are as common."""
    counted = Counter(images_of(run) for run in runs if run.record.status == "ok")
    return max(counted, key=lambda k: (counted[k], len(k.ids), k[:2]), default=None)


def draw_of(case: Case) -> Draw:
    """Return what decides which images a case draws."""
    return case.data_sha256, case.split, case.n, case.seed


def by_images(group: list[Stored]) -> list[list[Stored]]:
    """Return the records in parts of which each saw one set of images, the largest set first.

    Draws that give the same images make one part ("all" and a number beyond what there is). One
    that has only invalid records stands alone.
    """
    draws: dict[Draw, list[Stored]] = {}
    for stored in group:
        draws.setdefault(draw_of(stored.record.case), []).append(stored)
    parts: dict[object, list[Stored]] = {}
    for draw, runs in draws.items():
        parts.setdefault(common_images(runs) or draw, []).extend(runs)
    ordered = [sorted(part, key=lambda s: s.record.case_id) for part in parts.values()]
    return sorted(ordered, key=lambda part: (-_size(part), part[0].record.case_id))


def image_words(parts: list[list[Stored]]) -> list[str]:
    """Return what tells each part of `by_images` from the others; empty where there is one.

    E.g. "90 images of suite quick", "90 images of suite quick, seed 1".
    """
    if len(parts) == 1:
        return [""]
    told: list[list[str]] = [[f"{_size(part)} images{_suite(part)}"] for part in parts]
    for more in (_splits, _seeds, _data):
        common = Counter(map(tuple, told))
        told = [
            [*words, more(part)] if common[tuple(words)] > 1 else words
            for words, part in zip(told, parts, strict=True)
        ]
    return [", ".join(words) for words in told]


def _size(part: list[Stored]) -> int:
    seen = common_images(part)
    return 0 if seen is None else len(seen.ids)


def _suite(part: list[Stored]) -> str:
    found = (re.search(r"\brun (\w[\w.-]*)", s.record.provenance.command) for s in part)
    names = {plain(match[1]) for match in found if match}
    return f" of suite {names.pop()}" if len(names) == 1 else ""


def _splits(part: list[Stored]) -> str:
    return f"{part[0].record.case.split} split"


def _seeds(part: list[Stored]) -> str:
    return f"seed {part[0].record.case.seed}"


def _data(part: list[Stored]) -> str:
    return f"data {part[0].record.case.data_sha256[:8]}"
