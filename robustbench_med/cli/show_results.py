"""Show what a run left: its boards on the page and in the terminal, and what was not scored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustbench_med.cli import study_run

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.failure import Failure
    from robustbench_med.bench.publish import Published
    from robustbench_med.bench.resolved_case import ResolvedCase


def report_failures(failures: list[Failure], console: Console) -> None:
    """Print the failures, and end with exit code 1 if there are any."""
    for failure in failures:
        text = f"not scored: {failure}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def publish_boards(
    folder: Path,
    title: str,
    console: Console,
    *,
    planned: list[ResolvedCase] | None = None,
    failures: list[Failure] | None = None,
    figures: bool = False,
) -> Published:
    """Write the boards of all records in `folder`, then print them; return what was written.

    The page, CSV and Markdown are written first, so that they do not depend on what can be printed.

    Args:
        folder: the folder of the records.
        title: the title of the page.
        console: prints the tables. After a run it prints the boards that show one of its cases.
        planned: the cases of a run; None without a run.
        failures: the failures of the run, which the page names.
        figures: whether figures and a wide CSV are written beside the page.
    """
    from robustbench_med.bench.publish import publish

    published = publish(folder, title, planned=planned, failures=failures or [], figures=figures)
    lines = []
    if published.page is not None:
        lines += _show_boards(published, planned, console)
    elif published.damaged:
        line = f"There is no leaderboard page: no record in {folder} can be read."
        console.print(line, style="red", highlight=False, soft_wrap=True, markup=False)
    page = study_run.write_study_page(folder, published.records)
    if page is not None:
        lines.append(f"studies: {page}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return published


def _show_boards(
    published: Published, planned: list[ResolvedCase] | None, console: Console
) -> list[str]:
    """Print the boards of a run, and return lines on the page and on what is not printed."""
    from robustbench_med.bench.publish import pages

    run_ids = None if planned is None else {resolved.case.id for resolved in planned}
    unprinted = pages().show_boards(published.boards, console, only=run_ids)
    lines = [f"\nleaderboard: {published.page}"]
    earlier = 0 if run_ids is None else len(published.cases - run_ids)
    if run_ids is not None and earlier:
        line = (
            f"The page shows all records of the folder: "
            f"{counted(len(published.cases & run_ids), 'case')} of this run and {earlier} of "
            "earlier runs."
        )
        if unprinted:
            line += f" {counted(unprinted, 'board')} of earlier runs only: not printed above."
        lines.append(line)
    return lines


def unreadable(published: Published) -> list[Failure]:
    """Return the records of a folder that cannot be read."""
    from robustbench_med.bench.failure import Failure

    return [Failure(label="record", reason=line) for line in published.damaged]


def counted(n: int, word: str) -> str:
    """Return a number with its word in the right form."""
    return f"{n} {word}{'' if n == 1 else 's'}"
