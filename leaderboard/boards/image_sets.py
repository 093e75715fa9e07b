"""Image sets: group records by the images they were scored on, one board for each set. Pure.

Records of one dataset may cover different images, because of another suite, number or split. Scores
on different images cannot be compared, so each set of images has its own board.
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


class ImageSet(NamedTuple):
    """A set of images: the hash of the data, the split, and their ids."""

    data: str
    split: str
    ids: frozenset[str]


Draw = tuple[str, str, int | None, int]


class ImageSetRecords(NamedTuple):
    """Records that were scored on one set of images.

    Attributes:
        runs: the records in the order of their case ids.
        images: the images of most valid runs; if two sets are equally common, the larger one; None
            without a valid run.
        strays: ids of the valid cases that were scored on other images.
    """

    runs: list[Stored]
    images: ImageSet | None
    strays: frozenset[str]

    @property
    def size(self) -> int:
        """Number of images."""
        return 0 if self.images is None else len(self.images.ids)


def _images_of(run: Stored) -> ImageSet:
    """Return the images that a record was scored on."""
    case, ids = run.record.case, run.samples["sample"].unique()
    return ImageSet(case.data_sha256, case.split, frozenset(map(str, ids)))


def draw_key(case: Case) -> Draw:
    """Return the fields of a case that determine which images it draws."""
    return case.data_sha256, case.split, case.n, case.seed


def group_by_image_set(group: list[Stored]) -> list[ImageSetRecords]:
    """Return the records grouped by the set of images they were scored on, the largest set first.

    Draws that give the same images are one group ("all" and a number larger than the split). A draw
    with only invalid records is a separate group.
    """
    images = {run.record.case_id: _images_of(run) for run in group if run.record.status == "ok"}
    draws: dict[Draw, list[Stored]] = {}
    for stored in group:
        draws.setdefault(draw_key(stored.record.case), []).append(stored)
    sets: dict[object, list[Stored]] = {}
    for draw, runs in draws.items():
        sets.setdefault(_records_of(runs, images).images or draw, []).extend(runs)
    groups = [_records_of(runs, images) for runs in sets.values()]
    return sorted(groups, key=lambda records: (-records.size, records.runs[0].record.case_id))


def _records_of(runs: list[Stored], images: Mapping[str, ImageSet]) -> ImageSetRecords:
    ordered = sorted(runs, key=lambda run: run.record.case_id)
    valid = {
        case_id: images[case_id] for run in ordered if (case_id := run.record.case_id) in images
    }
    counts = Counter(valid.values())
    common = max(counts, key=lambda k: (counts[k], len(k.ids), k[:2]), default=None)
    strays = frozenset(case_id for case_id, own_set in valid.items() if own_set != common)
    return ImageSetRecords(ordered, common, strays)


def group_by_ladder(records: ImageSetRecords) -> list[tuple[tuple[float, ...], list[Stored]]]:
    """Return the radii and runs of each board of one image set, split by their radii.

    Runs with a common radius are on one board, and so are two runs that share one with a third.
    """
    groups: list[tuple[tuple[float, ...], list[Stored]]] = []
    for run in records.runs:
        ladder, runs = run.record.case.ladder, [run]
        separate = []
        for radii, members in groups:
            if have_common_radius(radii, ladder):
                new = tuple(eps for eps in radii if not have_common_radius((eps,), ladder))
                ladder, runs = tuple(sorted((*ladder, *new))), [*members, *runs]
            else:
                separate.append((radii, members))
        groups = [*separate, (ladder, runs)]
    ordered = ((e, sorted(runs, key=lambda s: s.record.case_id)) for e, runs in groups)
    return sorted(ordered, key=lambda group: group[0])


def have_common_radius(ladder: Iterable[float], radii: Iterable[float]) -> bool:
    """Whether two ladders have a radius in common."""
    known = list(radii)
    return any(math.isclose(a, b, rel_tol=1e-6) for a in ladder for b in known)


def image_set_words(groups: list[ImageSetRecords]) -> list[str]:
    """Return how each group of `group_by_image_set` differs from the others; empty if only one.

    E.g. "90 images of suite quick", "90 images of suite quick, seed 1".
    """
    if len(groups) == 1:
        return [""]
    words: list[list[str]] = [[f"{g.size} images{_suite_words(g.runs)}"] for g in groups]
    for more in (_split_words, _seed_words, _data_words):
        common = Counter(map(tuple, words))
        words = [
            [*known, more(group.runs[0].record.case)] if common[tuple(known)] > 1 else known
            for known, group in zip(words, groups, strict=True)
        ]
    return [", ".join(known) for known in words]


def _suite_words(runs: list[Stored]) -> str:
    matches = (re.search(r"\brun (\w[\w.-]*)", s.record.provenance.command) for s in runs)
    names = {plain(match[1]) for match in matches if match}
    return f" of suite {names.pop()}" if len(names) == 1 else ""


def _split_words(case: Case) -> str:
    return f"{case.split} split"


def _seed_words(case: Case) -> str:
    return f"seed {case.seed}"


def _data_words(case: Case) -> str:
    return f"data {case.data_sha256[:8]}"
