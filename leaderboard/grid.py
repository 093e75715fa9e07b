"""Grid: the records of a board by row and column; no two share a cell, and none is left out."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from robustbench_med.bench.record import Stored

from .board import RowKey
from .columns import Asked, named
from .lost import Lost


class Grid(NamedTuple):
    """The records of a board by row and column.

    Attributes:
        cells: row -> column -> record.
        asked: column -> what was asked for.
        lost: row -> its columns without a record.
    """

    cells: dict[RowKey, dict[str, Stored]]
    asked: dict[str, Asked]
    lost: dict[RowKey, list[str]]


def grid_of(group: list[Stored], lost: list[Lost], titles: dict[str, str]) -> Grid:
    """Return the records by row and column: no two share a cell, and none is left out."""
    rows = [RowKey.of(*Asked.of(s), s.record.defense_card) for s in group]
    gone = [
        (RowKey.of(one.case, one.attack, one.defense), Asked(one.case, one.attack))
        for one in lost
        if one.case is not None and one.attack is not None
    ]
    gone = [(key, asked) for key, asked in gone if key in rows]
    every = [*map(Asked.of, group), *(asked for _, asked in gone)]
    grid = Grid({}, {}, defaultdict(list))
    keys = [*rows, *(key for key, _ in gone)]
    taken: set[tuple[RowKey, str]] = set()
    for place, (key, asked, name) in enumerate(zip(keys, every, named(every, titles), strict=True)):
        column = f"{name} (case {asked.case.id})" if (key, name) in taken else name
        taken.add((key, column))
        grid.asked[column] = asked
        if place < len(group):
            grid.cells.setdefault(key, {})[column] = group[place]
        else:
            grid.lost[key].append(column)
    return grid
