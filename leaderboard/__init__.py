"""Turn records into tables, figures and one HTML page. No tensor is computed on.

The command line calls `publish_boards` and `show_boards`; the other functions are their parts.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from rich.console import Console

from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored
from robustbench_med.files import write_text

from .boards.board import Board, Row
from .boards.ranking import make_boards
from .exports import csv_text
from .page import write_page
from .paper import FIGURES, WIDE, wide_csv, write_figures, write_paper
from .report import read_criteria, unjudged, write_report, write_reports
from .start_page import SuiteEntry, suite_entry, write_start_page
from .study_page import write_study_page
from .tables import terminal_tables, write_tables

FILES = ("leaderboard.html", "leaderboard.csv", "leaderboard.md")  # what `publish` writes

__all__ = [
    "FILES",
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
    "write_paper",
    "write_report",
    "write_reports",
    "write_start_page",
    "write_study_page",
    "write_tables",
]


def publish(
    records: list[Stored], folder: Path, *, title: str, failures: Sequence[Failure] = ()
) -> Path:
    """Write `leaderboard.html`, `.csv` and `.md` into `folder`, each in one step.

    Args:
        records: the records; each board has those that can be compared.
        folder: usually the folder of the records; its name is the name of the suite.
        title: heading of the page.
        failures: cases without a usable record; the page names them, and their rows are incomplete.

    Returns:
        The path of the page.
    """
    return publish_boards(make_boards(records, failures), folder, title=title, failures=failures)


def publish_boards(
    boards: list[Board],
    folder: Path,
    *,
    title: str,
    failures: Sequence[Failure] = (),
    figures: bool = False,
) -> Path:
    """Write the files of boards, as `publish` does for records.

    Args:
        boards: the boards.
        folder: the folder of the records.
        title: heading of the page.
        failures: cases without a usable record.
        figures: whether each figure is written as SVG and PDF too, and a wide CSV, beside the
            page, which links to them.
    """
    csv, names = csv_text(boards), set[str]()
    write_tables(boards, folder, title=title, failures=failures, csv=csv)
    if figures:
        write_text(folder / WIDE, wide_csv(boards))
        names = {path.stem for path in write_figures(boards, folder / FIGURES)}
    return write_page(boards, folder, title=title, failures=failures, csv=csv, figures=names)


def show(records: list[Stored], console: Console, *, failures: Sequence[Failure] = ()) -> None:
    """Print a table for each board to `console`."""
    show_boards(make_boards(records, failures), console)


def show_boards(made: list[Board], console: Console, *, only: Container[str] | None = None) -> int:
    """Print the tables of boards, and return how many boards were left out.

    Args:
        made: all boards, so that a transfer matrix is complete.
        console: the console that prints them.
        only: ids of cases; only boards that show one of them are printed.
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
