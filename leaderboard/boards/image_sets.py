"""Images: which ones a record saw, and how records that saw others are kept apart. Pure.

Records of one dataset may have drawn other images of it (another suite, another number, another
split). What is scored on them is no statement on one set of images, so each set has its own board.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored

from ..wording.text import plain


class Images(NamedTuple):
    """A set of images: the hash of the data, the split, and their ids."""

    data: str
    split: str
    ids: frozenset[str]


Draw = tuple[str, str, int | None, int]


def _images_of(run: Stored) -> Images:
    """Return the images a record saw."""
    case = run.record.case
    return Images(case.data_sha256, case.split, frozenset(map(str, run.samples["sample"].unique())))


class Part(NamedTuple):
    """Records that saw one set of images.

    Attributes:
        runs: in the order of their case ids.
        images: what most valid runs saw, the larger set where two are as common; None without one.
        strays: ids of the valid cases that saw others.
    """

    runs: list[Stored]
    images: Images | None
    strays: frozenset[str]

    @property
    def size(self) -> int:
        """Number of images."""
        return 0 if self.images is None else len(self.images.ids)


def draw_of(case: Case) -> Draw:
    """Return what decides which images a case draws."""
    return case.data_sha256, case.split, case.n, case.seed


def by_images(group: list[Stored]) -> list[Part]:
    """Return the records in parts of which each saw one set of images, the largest set first.

    Draws that give the same images make one part ("all" and a number beyond what there is). One
    that has only invalid records stands alone.
    """
    seen = {run.record.case_id: _images_of(run) for run in group if run.record.status == "ok"}
    draws: dict[Draw, list[Stored]] = {}
    for stored in group:
        draws.setdefault(draw_of(stored.record.case), []).append(stored)
    sets: dict[object, list[Stored]] = {}
    for draw, runs in draws.items():
        sets.setdefault(_part(runs, seen).images or draw, []).extend(runs)
    parts = [_part(runs, seen) for runs in sets.values()]
    return sorted(parts, key=lambda part: (-part.size, part.runs[0].record.case_id))


def by_ladder(part: Part) -> list[tuple[tuple[float, ...], list[Stored]]]:
    """Return the radii and records of a part, apart where no radius joins them.

    Records that share a radius belong together, and so do those that a third one joins.
    """
    groups: list[tuple[tuple[float, ...], list[Stored]]] = []
    for run in part.runs:
        ladder, runs = run.record.case.ladder, [run]
        rest = []
        for other, found in groups:
            if shares(other, ladder):
                own = tuple(eps for eps in other if not shares((eps,), ladder))
                ladder, runs = tuple(sorted((*ladder, *own))), [*found, *runs]
            else:
                rest.append((other, found))
        groups = [*rest, (ladder, runs)]
    return sorted(((e, sorted(r, key=lambda s: s.record.case_id)) for e, r in groups), key=_first)


def _first(group: tuple[tuple[float, ...], list[Stored]]) -> tuple[float, ...]:
    return group[0]


def shares(one: Iterable[float], other: Iterable[float]) -> bool:
    """Whether two ladders have a radius in common."""
    others = list(other)
    return any(math.isclose(a, b, rel_tol=1e-6) for a in one for b in others)


def _part(runs: list[Stored], seen: Mapping[str, Images]) -> Part:
    ordered = sorted(runs, key=lambda run: run.record.case_id)
    found = {i: seen[i] for run in ordered if (i := run.record.case_id) in seen}
    counted = Counter(found.values())
    images = max(counted, key=lambda k: (counted[k], len(k.ids), k[:2]), default=None)
    return Part(ordered, images, frozenset(i for i, own in found.items() if own != images))


def image_words(parts: list[Part]) -> list[str]:
    """Return what tells each part of `by_images` from the others; empty where there is one.

    E.g. "90 images of suite quick", "90 images of suite quick, seed 1".
    """
    if len(parts) == 1:
        return [""]
    told: list[list[str]] = [[f"{part.size} images{_suite(part.runs)}"] for part in parts]
    for more in (_splits, _seeds, _data):
        common = Counter(map(tuple, told))
        told = [
            [*words, more(part.runs[0].record.case)] if common[tuple(words)] > 1 else words
            for words, part in zip(told, parts, strict=True)
        ]
    return [", ".join(words) for words in told]


def _suite(runs: list[Stored]) -> str:
    found = (re.search(r"\brun (\w[\w.-]*)", s.record.provenance.command) for s in runs)
    names = {plain(match[1]) for match in found if match}
    return f" of suite {names.pop()}" if len(names) == 1 else ""


def _splits(case: Case) -> str:
    return f"{case.split} split"


def _seeds(case: Case) -> str:
    return f"seed {case.seed}"


def _data(case: Case) -> str:
    return f"data {case.data_sha256[:8]}"
