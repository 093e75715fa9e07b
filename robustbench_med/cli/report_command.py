"""The command `report`: evidence on each model for an assessor, as an HTML and a JSON file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_med.cli.choices import LOCAL
from robustbench_med.errors import ResultsError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.record import Stored
    from robustbench_med.bench.store import Damaged

LEVELS = ("not_met", "not_tested", "doubted")
_DEPTH = 4  # how many levels below the folder a record may lie: results/SUITE/CASE and deeper


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(report)


def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder of one suite's records, or a folder of such folders.")
    ] = LOCAL,
    victim: Annotated[
        list[str] | None,
        typer.Option(
            "--victim",
            help="Report on this model, by name or title; repeatable. By default on each model.",
        ),
    ] = None,
    criteria: Annotated[
        Path | None,
        typer.Option(
            "--criteria", help="A TOML file of acceptance criteria, written before the run."
        ),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on",
            help="Exit with code 1 if a criterion is one of these: not_met, not_tested, doubted.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder for the files; by default the folder of the records."
        ),
    ] = None,
    latex: Annotated[
        bool,
        typer.Option(
            "--latex",
            help="Write for a paper as well: tables.tex (booktabs, attacks as columns, intervals), "
            "wide.csv, and each figure of the page as SVG and PDF in the folder figures.",
        ),
    ] = False,
) -> None:
    """Write a report on each model: report-NAME.html and report-NAME.json.

    The sections name the clauses they are evidence for (EU AI Act, FDA guidance, ISO 14971); they
    do not state conformity. Exit code 1: a record cannot be read, or a criterion of --fail-on; 2: a
    mistake in the arguments.
    """
    from rich.console import Console

    from robustbench_med.bench.publish import pages

    leaderboard = pages()
    levels = _levels(fail_on, criteria)
    acceptance = None if criteria is None else leaderboard.read_criteria(criteria)
    stored, damaged = _records(folder)
    unreadable = [record.failure for record in damaged]
    target, console = out or folder, Console()
    try:
        reports = leaderboard.write_reports(
            stored,
            victims=victim or (),
            base=folder,
            out=target,
            criteria=acceptance,
            unreadable=unreadable,
        )
        # every file is written before a line is printed: a console may fail
        written = list(reports)
    except OSError as error:
        raise ResultsError(f"expected to write into {target}, got: {error.strerror}") from None
    paper = _write_paper(folder, target) if latex else []
    failed = [line for model_report in written for line in _show(model_report, levels, console)]
    reported = [model_report.document.victim for model_report in written]
    known = {record.record.case.victim for record in stored}
    for line, missing in leaderboard.unjudged(acceptance, reported, known) if acceptance else []:
        _print_line(line, console)
        if missing and "not_tested" in levels:
            failed.append(f"fails on not_tested: {line.split()[0]}")
    for path, figures in paper:
        _print_line(f"for a paper: {path}, with {figures} figure{'s' * (figures != 1)}", console)
    for line in _unread_lines(known, damaged):
        _print_line(line, console, style="red")
    for line in failed:
        _print_line(line, console, style="red")
    if damaged or (levels and failed):
        raise typer.Exit(1)


def _write_paper(folder: Path, target: Path) -> list[tuple[Path, int]]:
    """Write the files for a paper; return each tables.tex with its number of figures.

    Those of one suite are written into `target`, those of several into a folder for each suite.

    Raises:
        ResultsError: the files cannot be written.
    """
    from robustbench_med.bench.publish import pages, read_boards

    suites, written = _folders(folder, _DEPTH), []
    for suite in suites:
        home = target if suites == [folder] else target / suite.relative_to(folder)
        try:
            tables, _, *figures = pages().write_paper(read_boards(suite), home)
        except OSError as error:
            raise ResultsError(f"expected to write into {home}, got: {error.strerror}") from None
        written.append((tables, len(figures) // 2))
    return written


def _levels(fail_on: str | None, criteria: Path | None) -> set[str]:
    """Return the verdicts that end the command with exit code 1.

    Raises:
        UnknownNameError: a name is not a verdict.
        SpecError: there are no criteria.
    """
    if fail_on is None:
        return set()
    levels = [name.strip().replace("-", "_").replace(" ", "_") for name in fail_on.split(",")]
    for level in levels:
        if level not in LEVELS:
            raise UnknownNameError("verdict for --fail-on", level, LEVELS)
    if criteria is None:
        raise SpecError("expected --criteria with --fail-on, got none: nothing would be judged")
    return set(levels)


def _records(folder: Path) -> tuple[list[Stored], list[Damaged]]:
    """Return the records of a folder of records, or of a folder of such folders.

    Raises:
        ResultsError: it is not a folder, or it has no records.
    """
    from robustbench_med.bench import store

    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise ResultsError(f"expected a folder of records, got {folder}: {what}")
    if store.has_record(folder):
        raise ResultsError(
            f"expected a folder of records, got that of one record, {folder}: other attacks on the "
            f"same model may be stronger; pass {folder.parent}"
        )
    folders = _folders(folder, _DEPTH)
    if not folders:
        raise ResultsError(f"expected records below {folder}, got none: run a suite first")
    stored, damaged = [], []
    for path in folders:
        readable, unreadable = store.read_each(path)
        stored += readable
        damaged += unreadable
    return stored, damaged


def _folders(folder: Path, depth: int) -> list[Path]:
    """Return the folders of records: `folder` and those below it, without hidden ones."""
    from robustbench_med.bench import store

    folders = [folder] if store.holds_records(folder) else []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        child = Path(entry.path)
        if depth > 1 and not entry.name.startswith(".") and entry.is_dir():
            folders += [] if store.is_loose(child) else _folders(child, depth - 1)
    return folders


def _show(written: Any, levels: set[str], console: Console) -> list[str]:  # noqa: ANN401
    """Print a summary of a model's report; return a line for each criterion that fails."""
    document = written.document
    boards, records = len(document.boards), len(document.records)
    counted = f"{boards} board{'s' * (boards > 1)} of {records} record{'s' * (records > 1)}"
    data = ", ".join(dataset.heading for dataset in document.data)
    _print_line(f"{document.victim}: {document.title} on {data}, {counted}", console, style="bold")
    judged = () if document.criteria is None else document.criteria.judged
    if document.criteria is not None:
        _verdicts(document.criteria, console)
    for path in (written.html, written.json):
        _print_line(f"report: {path}", console)
    if not levels:
        missed = [criterion for criterion in judged if criterion.verdict == "not met"]
        if missed:
            _print_line(f"{len(missed)} not met: --fail-on not_met makes that exit code 1", console)
        return []
    return [
        f"fails on {', '.join(failed)}: {criterion.number} of {document.victim}"
        for criterion in judged
        if (failed := sorted(levels & verdicts_of(criterion)))
    ]


def verdicts_of(judged: Any) -> set[str]:  # noqa: ANN401 - of the leaderboard
    """Return the verdicts on a criterion, as --fail-on calls them."""
    return {judged.verdict.replace(" ", "_")} | ({"doubted"} if judged.doubted else set())


def _unread_lines(known: set[str], damaged: list[Damaged]) -> list[str]:
    """Return a line for each record that cannot be read, and for each model without another."""
    lines = [f"not read: {unreadable.line}" for unreadable in damaged]
    unreported = dict.fromkeys(
        unreadable.record.case.victim
        for unreadable in damaged
        if unreadable.record is not None and unreadable.record.case.victim not in known
    )
    lines += [f"no report of {name}: none of its records can be read" for name in unreported]
    return lines


def _verdicts(criteria: Any, console: Console) -> None:  # noqa: ANN401 - of the leaderboard
    for criterion in criteria.judged:
        doubted = " (doubted)" if criterion.doubted else ""
        _print_line(f"{criterion.number} {criterion.verdict}{doubted}: {criterion.words}", console)
        for outcome in criterion.outcomes:
            if outcome.judged is None or outcome.estimate is None:
                continue
            unit = f" {outcome.unit}" if outcome.unit else ""
            line = f"   {outcome.heading}: {outcome.estimate.value:.3f}{unit}"
            if criterion.basis != "value":
                line += f", {criterion.basis} end of its interval {outcome.judged:.3f}{unit}"
            _print_line(line, console)
        for reason in dict.fromkeys(outcome.why for outcome in criterion.outcomes if outcome.why):
            _print_line(f"   {reason}", console)
    if criteria.written_after:
        _print_line(
            f"{criteria.file} is newer than the first record: it was written after the results",
            console,
        )


def _print_line(line: str, console: Console, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
