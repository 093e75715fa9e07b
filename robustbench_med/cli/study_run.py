"""Run the published protocols of studies, and write their page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_med.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from robustbench_med.bench.failure import Failure
    from robustbench_med.bench.record import Stored
    from robustbench_med.studies.study import Study


def prepare_victims(victims: Sequence[str], data: Path | None, console: Console) -> list[Failure]:
    """Train the victims whose weights are neither shipped nor in the cache; return what failed.

    Args:
        victims: names of victims.
        data: folder with the files of named datasets.
        console: shows the progress.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from robustbench_med.bench.failure import Failure
    from robustbench_med.training.missing import missing_victims, train_missing

    failures: list[Failure] = []
    cards = missing_victims(victims)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console) as progress:
        for place, card in enumerate(cards, start=1):
            label = f"training {place} of {len(cards)}: {card.name}"
            task = progress.add_task(label, total=1.0)
            try:
                train_missing(card, data=data, progress=partial(_show, progress, task))
            except BenchError as error:
                label = f"training of {card.name}"
                failures.append(Failure(label=label, reason=str(error), error=error))
    return failures


def _show(progress: Progress, task: TaskID, fraction: float) -> None:
    progress.update(task, completed=fraction)


def measure_studies(
    studies: Sequence[Study], folder: Path, data: Path | None, console: Console
) -> list[Failure]:
    """Run every published protocol that has no outcome stored; return what failed.

    A protocol that fails costs no other one. A finished one is not run again.

    Args:
        studies: the studies.
        folder: the results folder of the suite.
        data: folder with the files of named datasets.
        console: shows the progress.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from robustbench_med.bench.failure import Failure
    from robustbench_med.studies.measure import measure

    measurements = [(study, name) for study in studies for name in study.measurements()]
    failures: list[Failure] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("as published", total=len(measurements))
        for study, name in measurements:
            label = f"{study.title} · {name}"
            progress.update(task, description=label)
            try:
                measure(study, name, folder, data=data)
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
    shown = list(studies().values())
    page: Path = pages().write_study_page(evidence_of(shown, folder, records), folder)
    return page
