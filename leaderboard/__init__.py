"""Leaderboard: records to tables, figures and one HTML page. Computes on no tensors.

`publish` and `show` are what the command line calls; the rest is what they are made of.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from rich.console import Console

from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored

from .boards.board import Board, Row
from .boards.ranking import make_boards
from .exports import csv_text
from .page import write_page
from .report import read_criteria, unjudged, write_report, write_reports
from .start_page import SuiteEntry, suite_entry, write_start_page
from .tables import terminal_tables, write_tables

__all__ = [
    "Board",
    "Row",
    "SuiteEntry",
    "make_boards",
    "publish",
    "publish_boards",
    "read_criteria",
    "show",
    "show_boards",
    "suite_entry",
    "terminal_tables",
    "unjudged",
    "write_page",
    "write_report",
    "write_reports",
    "write_start_page",
    "write_tables",
]


def publish(
    records: list[Stored], folder: Path, *, title: str, failures: Sequence[Failure] = ()
) -> Path:
    """Write `leaderboard.html`, `.csv` and `.md` into `folder`, each in one step.

    Args:
        records: what to compare; boards are made of those that may be compared.
        folder: usually the folder the records lie in; its name is called the suite.
        title: heading of the page.
        failures: cases without a usable record; the page names them, and their rows are incomplete.

    Returns:
        The path of the page.
    """
    return publish_boards(make_boards(records, failures), folder, title=title, failures=failures)


def publish_boards(
    boards: list[Board], folder: Path, *, title: str, failures: Sequence[Failure] = ()
) -> Path:
    """Write the files of boards that are made already, as `publish`."""
    csv = csv_text(boards)
    write_tables(boards, folder, title=title, failures=failures, csv=csv)
    return write_page(boards, folder, title=title, failures=failures, csv=csv)


def show(records: list[Stored], console: Console, *, failures: Sequence[Failure] = ()) -> None:
    """Print a table a board to `console`."""
    show_boards(make_boards(records, failures), console)


def show_boards(made: list[Board], console: Console, *, only: Container[str] | None = None) -> int:
    """Print the tables of boards, and return how many boards were left out.

    Args:
        made: all boards, so that a transfer matrix is whole.
        console: where they go.
        only: print just the boards on which one of these cases stands.
    """
    shown = [
        board
        for board in made
        if only is None
        or any(run.record.case_id in only for row in board.rows for run in row.runs.values())
    ]
    for table in terminal_tables(made, width=console.width, only=shown):
        console.print(table)
    return len(made) - len(shown)
