"""Subgroups of a row: the worst-case score of each sex, age band, scanner or site, in words."""

from __future__ import annotations

import math

from robustbench_med.bench.record import Stored
from robustbench_med.stats import UNDEFINED
from robustbench_med.subgroups import FEWEST, WIDEST, Grouping, Subgroup, groupings
from robustbench_med.worst_case import rungs_of

from ..wording.records import p_words
from ..wording.text import number, sign
from .board import Board, Row


def by_subgroup(board: Board, row: Row) -> list[Grouping]:
    """Return the worst-case scores of the subgroups of each column; empty if the data have none.

    The scores of a subgroup are those at each radius of the board, 0 (clean) first.
    """
    table = row.image_scores.table
    run = _source(row)
    if run is None or not row.images:
        return []
    places = {rung: place for place, rung in enumerate(rungs_of(table))}

    def on_board(group: Subgroup) -> Subgroup:
        at = [places.get(rung) for rung in range(len(board.ladder) + 1)]
        return group._replace(
            scores=tuple(UNDEFINED if i is None else group.scores[i] for i in at),
            difference=tuple(UNDEFINED if i is None else group.difference[i] for i in at),
            p=tuple(math.nan if i is None else group.p[i] for i in at),
        )

    return [
        grouping._replace(subgroups=tuple(map(on_board, grouping.subgroups)))
        for grouping in groupings(table, run)
    ]


def _source(row: Row) -> Stored | None:
    """Return a valid record of a row, whose samples state the subgroups of its images."""
    runs = (run for column, run in row.runs.items() if column not in row.oblivious)
    return next((run for run in runs if run.record.status == "ok"), None)


def headline_words(board: Board) -> str:
    """Return the headline radius or severity of a board in words."""
    return f"severity {board.at}" if board.shift else f"ε = {board.at}"


def group_notes(board: Board, group: Subgroup) -> list[str]:
    """Return why a subgroup says little: too few patients, or an interval that is too wide."""
    if group.small:
        return [f"fewer than {FEWEST} patients or images: too few to say anything"]
    if group.vague(board.headline + 1):
        width = f"±{100 * WIDEST:.0f} points" if board.score.kind == "percent" else f"±{WIDEST}"
        return [f"wider than {width} at {headline_words(board)}: too few to say anything"]
    if group.rare(board.headline + 1):
        return [
            f"{group.patients} patients or images may hold none of the rare failures: the interval "
            "may be too narrow"
        ]
    return []


def difference_words(board: Board, group: Subgroup, rung: int) -> str:
    """Return the difference of a subgroup from the rest at a rung, with interval and p value."""
    estimate = group.difference[rung]
    if not math.isfinite(estimate.value):
        return "not compared"
    kind = board.score.kind
    unit = sign(kind, "")
    low, high = (signed(bound, kind) for bound in (estimate.low, estimate.high))
    value = f"{signed(estimate.value, kind)}{' points' if unit == '%' else ''}"
    return f"{value} ({low} to {high}), {p_words(group.p[rung])}"


def signed(value: float, kind: str) -> str:
    """Return a difference with its sign.

    >>> signed(-0.25, "percent"), signed(0.5, "unit")
    ('−25.0', '+0.500')
    """
    return ("\N{MINUS SIGN}" if value < 0 else "+") + number(abs(value), kind)
