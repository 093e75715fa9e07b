"""Whether an attack that a row lacks may matter for its place among the rows that met it. Pure."""

from __future__ import annotations

from robustbench_med.bench.record import Stored
from robustbench_med.worst_case import lowest, score_table

from .board import Board, Row
from .crosscheck import ALLOWED

_DROP = 0.05  # of a Dice: less is no attack that does more


def adds(column: str, row: Row, rows: list[Row], board: Board) -> bool:
    """Whether an attack that a row lacks may matter for its place.

    It does not where every row that met it, and one of those that this row met, was left by it as
    those left it, but for an image a radius: then all of them are ranked by the attacks they share,
    and the result is the same. An oblivious attack never ranks.
    """
    if any(column in other.oblivious for other in rows):
        return False
    own = {c for c in row.met if c not in row.oblivious}
    seen = False
    for other in rows:
        shared = {c for c in other.met if c in own and c not in other.oblivious}
        if column not in other.met or not shared:
            continue
        before, after = (
            [score_table(run, board.ladder) for run in _valid(other, kept)]
            for kept in (shared, {*shared, column})
        )
        if len(after) <= len(before) or not before:
            return True
        rungs = [r for r in range(len(board.ladder) + 1) if any(r in t.columns for t in before)]
        left, lower = (lowest(tables, rungs) for tables in (before, after))
        common = left.index.intersection(lower.index)
        drop = left.loc[common].to_numpy(float) - lower.loc[common].to_numpy(float)
        if ((drop > _DROP).sum(axis=0) > ALLOWED).any():
            return True
        seen = True
    return not seen


def _valid(row: Row, columns: set[str]) -> list[Stored]:
    """Return the valid records of a row under the attacks of `columns`."""
    return [
        run
        for column, run in row.runs.items()
        if row.again.get(column, column) in columns and run.record.status == "ok"
    ]
