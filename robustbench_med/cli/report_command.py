"""`report`: evidence on one model for an assessor, as one HTML file and one JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_med.cli.choices import LOCAL
from robustbench_med.errors import ResultsError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.record import Stored


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(report)


def report(
    victim: Annotated[str, typer.Option("--victim", help="The model, as its records name it.")],
    folder: Annotated[
        Path, typer.Argument(help="Folder of records: one suite's, or one that holds several.")
    ] = LOCAL,
    criteria: Annotated[
        Path | None,
        typer.Option("--criteria", help="TOML file of acceptance criteria, written before a run."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the files go; by default that folder.")
    ] = None,
) -> None:
    """Write the evidence that records hold on one model: report-NAME.html and report-NAME.json.

    It names clauses of the EU AI Act, the FDA's cybersecurity guidance and ISO 14971 that its
    sections are evidence for; it states no conformity.
    """
    from rich.console import Console

    from robustbench_med import registry

    pages: Any = registry.module("leaderboard")
    given = None if criteria is None else pages.read_criteria(criteria)
    stored, unreadable = _records(folder)
    target = out or folder
    try:
        written = pages.write_report(
            stored,
            victim=victim,
            base=folder,
            out=target,
            criteria=given,
            unreadable=unreadable,
        )
    except OSError as error:
        raise ResultsError(f"expected to write into {target}, got: {error.strerror}") from None
    console = Console()
    if written.document.criteria is not None:
        _verdicts(written.document.criteria, console)
    for path in (written.html, written.json):
        console.print(f"report: {path}", highlight=False, soft_wrap=True, markup=False)
    for line in unreadable:
        console.print(
            f"not read: {line}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    if unreadable:
        raise typer.Exit(1)


def _records(folder: Path) -> tuple[list[Stored], list[str]]:
    from robustbench_med.bench import store

    folders = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    files = ("*/record.json", "*/samples.parquet")  # either may be lost
    folders = [one for one in folders if any(any(one.glob(file)) for file in files)]
    if not folders:
        raise ResultsError(f"expected records below {folder}, got none: run a suite first")
    read = [store.read_all(one) for one in folders]
    return [s for stored, _ in read for s in stored], [line for _, bad in read for line in bad]


def _verdicts(criteria: Any, console: Console) -> None:  # noqa: ANN401 - of the leaderboard
    for one in criteria.judged:
        doubted = " (doubted)" if one.doubted else ""
        line = f"{one.number} {one.verdict}{doubted}: {one.words}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
        measured = [o for o in one.outcomes if o.judged is not None and o.estimate is not None]
        for o in measured:
            found = f"   {o.heading}: {o.estimate.value:.3f}"
            if one.basis != "value":
                found += f", {one.basis} end of its interval {o.judged:.3f}"
            console.print(found, highlight=False, soft_wrap=True, markup=False)
        for why in dict.fromkeys(outcome.why for outcome in one.outcomes if outcome.why):
            console.print(f"   {why}", highlight=False, soft_wrap=True, markup=False)
    if criteria.written_after:
        line = f"{criteria.file} is younger than the first record: written after the results"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
