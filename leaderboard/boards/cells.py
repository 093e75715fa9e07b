"""Cells: the records of a board by row and column; no two share a cell, and none is missing."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored

from ..wording.text import radii
from .board import RowKey
from .columns import Asked, named


class Grid(NamedTuple):
    """The records of a board by row and column.

    Attributes:
        cells: row -> column -> record.
        asked: column -> what was asked for.
        lost: row -> its columns without a record.
        again: column -> the column whose attack it is, with another ladder or seed: a row ran it
            twice.
    """

    cells: dict[RowKey, dict[str, Stored]]
    asked: dict[str, Asked]
    lost: dict[RowKey, list[str]]
    again: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """The columns of the board: an attack on two ladders is one."""
        return [column for column in self.asked if column not in self.again]

    def met(self, key: RowKey) -> set[str]:
        """Return the columns of the board that a row has a record of, or should have."""
        return {self.again.get(c, c) for c in (*self.cells.get(key, {}), *self.lost.get(key, []))}

    def own(self, key: RowKey) -> frozenset[str]:
        """Return the columns that a row cannot have.

        An attack made on this very model, and one that mistakes a defense where there is none.
        """
        return frozenset(
            c
            for c, asked in self.asked.items()
            if asked.case.surrogate == key.victim
            or (key.defense == "none" and asked.case.knowledge != "adaptive")
        )

    def common(self) -> frozenset[str]:
        """Return the columns that a row must have to be ranked: those that half of the rows met.

        So one row with an attack of its own does not make all others incomplete, nor does one that
        lacks an attack make the others be ranked without it. Where no row has all of them: those of
        the rows that most others agree with, the more attacks the better; of two that are equal in
        both, none is preferred.
        """
        met, own = {k: self.met(k) for k in self.cells}, {k: self.own(k) for k in self.cells}
        half = frozenset(
            column
            for column in self.columns
            if 2 * sum(column in met[k] for k in met)
            >= sum(column in met[k] or column not in own[k] for k in met)
        )
        if any(half <= met[k] | own[k] for k in met):
            return half
        sets = {frozenset(met[k]) for k in met}

        def weight(one: frozenset[str]) -> tuple[int, int]:
            return sum(one <= met[k] | own[k] for k in met), len(one)

        best = max(map(weight, sets), default=(0, 0))
        found = [one for one in sets if weight(one) == best]
        return found[0] if len(found) == 1 else half


def grid_of(group: list[Stored], failures: list[Failure]) -> Grid:
    """Return the records by row and column: no two share a cell, and none is left out."""
    # of an attack that a row met on two ladders the longer one gives the column its name
    group = sorted(group, key=lambda s: -len(s.record.case.ladder))
    rows = [RowKey.of(*Asked.of(s), s.record.defense_card) for s in group]
    gone = [
        (RowKey.of(one.case, one.attack, one.defense), Asked(one.case, one.attack))
        for one in failures
        if one.case is not None and one.attack is not None
    ]
    gone = [(key, asked) for key, asked in gone if key in rows]
    every = [*map(Asked.of, group), *(asked for _, asked in gone)]
    grid = Grid({}, {}, defaultdict(list), {})
    keys = [*rows, *(key for key, _ in gone)]
    taken: dict[tuple[RowKey, str], Case] = {}
    for place, (key, asked, name) in enumerate(zip(keys, every, named(every), strict=True)):
        case, column = asked.case, name
        if (key, name) in taken:
            told = _apart(case, taken[key, name])
            column = f"{name} ({', '.join(told)})"
            if not told or (key, column) in taken:
                column = f"{name} (case {case.id})"
            if told:
                grid.again[column] = name
        taken[key, column] = case
        grid.asked[column] = asked
        if place < len(group):
            grid.cells.setdefault(key, {})[column] = group[place]
        else:
            grid.lost[key].append(column)
    return grid


def _apart(case: Case, other: Case) -> list[str]:
    """Return what tells two runs of one attack apart that one column holds: ladder and seed."""
    told = []
    if case.ladder != other.ladder:
        told.append(f"ε ∈ {radii(case.ladder, case.norm, case.budget)}")
    if case.seed != other.seed:
        told.append(f"seed={case.seed}")
    return told
