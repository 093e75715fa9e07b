"""Chosen: the boards of one model, and the records behind them by number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from robustbench_med.bench.check_words import check_rows, flag_words
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored
from robustbench_med.bench.store import files_of
from robustbench_med.errors import ResultsError, UnknownNameError

from ..boards.board import Board, Row, single_row_board
from ..boards.ranking import make_boards
from ..wording.records import audit_words, cost_words
from ..wording.text import plain
from .document import Reference


class ModelBoard(NamedTuple):
    """A board cut down to one row of the model; `anchor` is unique in the report."""

    board: Board
    row: Row
    anchor: str

    @property
    def runs(self) -> dict[str, Stored]:
        """Column -> record."""
        return self.row.runs

    @property
    def ids(self) -> tuple[str, ...]:
        """Case ids of all its records."""
        return tuple(run.record.case_id for run in self.row.runs.values())


def single(records: Iterable[Stored]) -> tuple[list[Stored], list[str]]:
    """Return each case once, of those in several folders the first, and a line on each other."""
    first_by_id: dict[str, Stored] = {}
    lines = []
    for stored in sorted(records, key=lambda s: s.folder):
        case_id = stored.record.case_id
        first = first_by_id.setdefault(case_id, stored)
        if first is not stored:
            same = first.record == stored.record
            what = "the same record" if same else "another record of the same case"
            lines.append(f"{what} as {case_id} lies in a second folder and is not used")
    return list(first_by_id.values()), lines


def boards_of_model(records: list[Stored], victim: str) -> list[ModelBoard]:
    """Return every board of `victim`, in the order of the leaderboard, a row each.

    Boards are made of all records, so that a row knows which attacks others met and it did not.

    Raises:
        ResultsError: there is no record.
        UnknownNameError: none of that victim; lists those there are.
    """
    return rows_of(make_boards(records), find_victim(records, victim))


def rows_of(boards: list[Board], victim: str) -> list[ModelBoard]:
    """Return the boards that have a row of `victim`, cut down to it; a board for each row."""
    rows = [(board, row) for board in boards for row in board.rows if row.key.victim == victim]
    cut = [single_row_board(board, row) for board, row in rows]
    return [
        ModelBoard(board, board.rows[0], f"board-{number}") for number, board in enumerate(cut, 1)
    ]


def victims(records: Iterable[Stored]) -> dict[str, str]:
    """Return the models that records are of, in the order of their names: name -> title."""
    titles = {stored.record.case.victim: stored.record.model_card.title for stored in records}
    return dict(sorted(titles.items()))


def find_victim(records: list[Stored], query: str, failures: Sequence[Failure] = ()) -> str:
    """Return the name that records state of the model asked for by name or by title.

    Args:
        records: those that could be read.
        query: a name as records state it, or the title that pages show where one model has it.
        failures: records that could not be read: a model may have no other.

    Raises:
        ResultsError: there is no record, the model has none that can be read, or a title is that of
            several models.
        UnknownNameError: no record is of it; lists the models there are.
    """
    known = victims(records)
    if query in known:
        return query
    mine = [f for f in failures if f.case is not None and f.case.victim == query]
    if mine or (failures and not records):
        of = f" of {query!r}" if mine else ""
        raise ResultsError(
            f"expected a record{of} that can be read, got none: {failure_words(mine or failures)}"
        )
    if not records:
        raise ResultsError("expected records to report on, got none: run a suite first")
    named = [name for name, title in known.items() if plain(title).lower() == query.lower()]
    if len(named) > 1:
        raise ResultsError(
            f"expected the name of one model, got {query!r}, the title of {len(named)}: "
            f"{', '.join(named)}"
        )
    if named:
        return named[0]
    error = UnknownNameError("victim with records", query, known)
    if failures:
        error.args = (f"{error}; {failure_words(failures)}",)
    raise error


def failure_words(failures: Sequence[Failure]) -> str:
    """Return which records cannot be read and why: the first, and how many there are."""
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{len(failures)} cannot be read: {failures[0].reason}{more}"


def references(model_boards: list[ModelBoard], base: Path) -> dict[str, Reference]:
    """Return the records of the boards by case id, numbered in their order.

    Args:
        model_boards: the boards.
        base: folder that paths are given below.
    """
    by_id: dict[str, Reference] = {}
    for model_board in model_boards:
        for column, run in model_board.runs.items():
            number = f"R{len(by_id) + 1}"
            by_id.setdefault(run.record.case_id, _reference(number, column, run, base))
    return by_id


def _reference(number: str, column: str, run: Stored, base: Path) -> Reference:
    record, provenance = run.record, run.record.provenance
    file, samples = files_of(Path(run.folder))
    checked = check_rows(record)
    return Reference(
        number=number,
        case_id=record.case_id,
        path=Path(os.path.relpath(file, base)).as_posix(),
        record_sha256=sha256(file),
        samples_path=Path(os.path.relpath(samples, base)).as_posix(),
        samples_sha256=sha256(samples),
        dataset=record.case.dataset,
        column=column,
        threat=record.case.threat,
        n=record.n,
        status=record.status,
        started=provenance.started,
        version=provenance.version,
        git_commit=provenance.git_commit,
        git_dirty=provenance.git_dirty,
        command=plain(provenance.command),
        flags=tuple(flag_words(record, flag) for flag in record.flags),
        passed=sum(not row.raised for row in checked),
        audit=tuple(audit_words(record)),
        cost=cost_words(record),
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
