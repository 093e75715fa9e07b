"""Select the boards of one model, and number their records."""

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
    """A board with only one row, which is of the model; `anchor` is unique in the report."""

    board: Board
    row: Row
    anchor: str

    @property
    def runs(self) -> dict[str, Stored]:
        """Column -> record."""
        return self.row.runs

    @property
    def ids(self) -> tuple[str, ...]:
        """The case ids of all its records."""
        return tuple(run.record.case_id for run in self.row.runs.values())


def single(records: Iterable[Stored]) -> tuple[list[Stored], list[str]]:
    """Return one record for each case, that of the first folder, and a line on each other."""
    first_by_id: dict[str, Stored] = {}
    lines = []
    for stored in sorted(records, key=lambda s: s.folder):
        case_id = stored.record.case_id
        first = first_by_id.setdefault(case_id, stored)
        if first is not stored:
            same = first.record == stored.record
            what = "the same record" if same else "another record of the same case"
            lines.append(f"a second folder has {what} as {case_id}, which is not used")
    return list(first_by_id.values()), lines


def boards_of_model(records: list[Stored], victim: str) -> list[ModelBoard]:
    """Return every board of `victim` with only its row, in the order of the leaderboard.

    The boards are made from all records, so that a row knows which attacks ran only on others.

    Raises:
        ResultsError: there is no record.
        UnknownNameError: no record is of that victim; the message lists the known ones.
    """
    return rows_of(make_boards(records), find_victim(records, victim))


def rows_of(boards: list[Board], victim: str) -> list[ModelBoard]:
    """Return a board with only that row for each row of `victim`."""
    rows = [(board, row) for board in boards for row in board.rows if row.key.victim == victim]
    cut = [single_row_board(board, row) for board, row in rows]
    return [
        ModelBoard(board, board.rows[0], f"board-{number}") for number, board in enumerate(cut, 1)
    ]


def victims(records: Iterable[Stored]) -> dict[str, str]:
    """Return the models of the records, sorted by name: name -> title."""
    titles = {stored.record.case.victim: stored.record.model_card.title for stored in records}
    return dict(sorted(titles.items()))


def find_victim(records: list[Stored], query: str, failures: Sequence[Failure] = ()) -> str:
    """Return the name in the records of the model that is requested by name or by title.

    Args:
        records: the records that could be read.
        query: the name in the records, or a title that only one model has.
        failures: the records that could not be read; a model may have no others.

    Raises:
        ResultsError: there is no record, no record of the model can be read, or several models
            have the title.
        UnknownNameError: no record is of the model; the message lists the known ones.
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
            f"expected the name of one model, got {query!r}, which is the title of {len(named)}: "
            f"{', '.join(named)}"
        )
    if named:
        return named[0]
    error = UnknownNameError("victim with records", query, known)
    if failures:
        error.args = (f"{error}; {failure_words(failures)}",)
    raise error


def failure_words(failures: Sequence[Failure]) -> str:
    """Return how many records cannot be read, with the reason of the first."""
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{len(failures)} cannot be read: {failures[0].reason}{more}"


def references(model_boards: list[ModelBoard], base: Path) -> dict[str, Reference]:
    """Return the records of the boards by case id, numbered in the order of the boards.

    Args:
        model_boards: the boards.
        base: the folder that paths are relative to.
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
    """Return the SHA-256 of a file; empty if there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
