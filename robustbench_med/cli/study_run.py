"""Run the published protocols of studies, and write their page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_med.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.failure import Failure
    from robustbench_med.bench.record import Stored


def measure_studies(
    names: tuple[str, ...], folder: Path, data: Path | None, console: Console
) -> list[Failure]:
    """Run the published protocol of every row that has none stored; return what failed.

    A row that fails costs no other row. A finished row is not run again.

    Args:
        names: the studies; empty = all.
        folder: the results folder of the suite.
        data: folder with the files of named datasets.
        console: shows the progress.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from robustbench_med.bench.failure import Failure
    from robustbench_med.studies.measure import measure_row
    from robustbench_med.studies.study import find_studies

    rows = [(s, row) for s in find_studies(names) for row in s.rows if row.published is not None]
    failures: list[Failure] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("as published", total=len(rows))
        for study, row in rows:
            label = f"{study.title} · {row.label}"
            progress.update(task, description=label)
            try:
                measure_row(study, row, folder, data=data)
            except BenchError as error:
                failures.append(Failure(label=label, reason=str(error), error=error))
            progress.advance(task)
    return failures


def write_study_page(folder: Path, records: Sequence[Stored]) -> Path | None:
    """Write the page of the studies of a results folder; None if it holds no published protocol."""
    from robustbench_med.bench.publish import pages
    from robustbench_med.studies import outcome
    from robustbench_med.studies.evidence import evidence_of
    from robustbench_med.studies.study import studies

    measured = folder / outcome.FOLDER
    if not measured.is_dir():
        return None
    shown = [study for name, study in studies().items() if (measured / name).is_dir()]
    page: Path = pages().write_study_page(evidence_of(shown, folder, records), folder)
    return page
