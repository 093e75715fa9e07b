"""Cells: arrange the records of a board by row and column, with one record in each cell."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored

from ..wording.text import listed
from .board import RowKey
from .columns import AttackRequest, column_names


class Grid(NamedTuple):
    """The records of a board by row and column.

    Attributes:
        cells: row -> column -> record.
        requests: column -> the attack that was requested.
        failed: row -> its columns whose case failed.
        repeats: column -> the column of the same attack, if a row ran it a second time with another
            ladder or seed.
    """

    cells: dict[RowKey, dict[str, Stored]]
    requests: dict[str, AttackRequest]
    failed: dict[RowKey, list[str]]
    repeats: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """The columns of the board; an attack on two ladders is one column."""
        return [column for column in self.requests if column not in self.repeats]

    def attacked_by(self, key: RowKey) -> set[str]:
        """Return the columns for which a row has a record, or should have one."""
        columns = (*self.cells.get(key, {}), *self.failed.get(key, []))
        return {self.repeats.get(column, column) for column in columns}

    def not_applicable(self, key: RowKey) -> frozenset[str]:
        """Return the columns that a row cannot have.

        They are attacks crafted on this model itself, and, if there is no defense, attacks that
        assume another defense or none.
        """
        return frozenset(
            column
            for column, request in self.requests.items()
            if request.case.surrogate == key.victim
            or (key.defense == "none" and request.case.knowledge != "adaptive")
        )

    def common(self) -> frozenset[str]:
        """Return the columns that a row must have to be ranked: those that half of the rows have.

        So one row with an additional attack does not make all others incomplete, and one row that
        lacks an attack does not remove it from the ranking of the others. If no row has all of
        these columns, the set of one row is used: the set that most other rows include, and among
        those the largest. If two sets are equal in both, neither is preferred.
        """
        present = {key: self.attacked_by(key) for key in self.cells}
        complete = {key: columns | self.not_applicable(key) for key, columns in present.items()}
        half = frozenset(
            column
            for column in self.columns
            if 2 * sum(column in present[key] for key in present)
            >= sum(
                column in present[key] or column not in self.not_applicable(key) for key in present
            )
        )
        if any(half <= complete[key] for key in present):
            return half
        sets = {frozenset(columns) for columns in present.values()}

        def weight(columns: frozenset[str]) -> tuple[int, int]:
            return sum(columns <= complete[key] for key in present), len(columns)

        best = max(map(weight, sets), default=(0, 0))
        preferred = [columns for columns in sets if weight(columns) == best]
        return preferred[0] if len(preferred) == 1 else half


def grid_of(group: list[Stored], failures: list[Failure]) -> Grid:
    """Return the records by row and column.

    Args:
        group: records of one board.
        failures: cases of this board without a usable record; those of other rows are left out.
    """
    # if a row ran an attack on two ladders, the longer one gives the column its name
    group = sorted(group, key=lambda stored: -len(stored.record.case.ladder))
    rows = [RowKey.of(*AttackRequest.of(s), s.record.defense_card) for s in group]
    missing = [
        (RowKey.of(f.case, f.attack, f.defense), AttackRequest(f.case, f.attack))
        for f in failures
        if f.case is not None and f.attack is not None
    ]
    missing = [(key, request) for key, request in missing if key in rows]
    requests = [*map(AttackRequest.of, group), *(request for _, request in missing)]
    keys = [*rows, *(key for key, _ in missing)]
    grid = Grid({}, {}, defaultdict(list), {})
    cases: dict[tuple[RowKey, str], Case] = {}  # the case of each filled cell
    names = column_names(requests)
    for i, (key, request, name) in enumerate(zip(keys, requests, names, strict=True)):
        case, column = request.case, name
        if (key, name) in cases:
            words = _difference_words(case, cases[key, name])
            column = f"{name} ({', '.join(words)})"
            if not words or (key, column) in cases:
                column = f"{name} (case {case.id})"
            if words:
                grid.repeats[column] = name
        cases[key, column] = case
        grid.requests[column] = request
        if i < len(group):
            grid.cells.setdefault(key, {})[column] = group[i]
        else:
            grid.failed[key].append(column)
    return grid


def _difference_words(case: Case, other: Case) -> list[str]:
    """Return how two runs of one attack in one column differ: in ladder and seed."""
    words = []
    if case.ladder != other.ladder:
        words.append(listed(case.ladder, case.norm, case.budget))
    if case.seed != other.seed:
        words.append(f"seed={case.seed}")
    return words
