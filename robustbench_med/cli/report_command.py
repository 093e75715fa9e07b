"""`report`: evidence on models for an assessor, as one HTML file and one JSON a model."""

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
_DEPTH = 4  # levels below the folder given that a record may lie at: results/SUITE/CASE and deeper


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(report)


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of records: one suite's, or one that holds several.")
    ] = LOCAL,
    victim: Annotated[
        list[str] | None,
        typer.Option(
            "--victim",
            help="A model, by name or title; repeatable. Unless given, a report of each model.",
        ),
    ] = None,
    criteria: Annotated[
        Path | None,
        typer.Option("--criteria", help="TOML file of acceptance criteria, written before a run."),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            "--fail-on",
            help="Exit with 1 where a criterion is one of these: not_met, not_tested, doubted.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the files go; by default that folder.")
    ] = None,
) -> None:
    """Write what records show of each model: report-NAME.html and report-NAME.json.

    The sections name the clauses they are evidence for (EU AI Act, FDA guidance, ISO 14971); they
    state no conformity. Exit code 1: a record cannot be read, or --fail-on; 2: a mistake.
    """
    from rich.console import Console

    from robustbench_med import registry

    pages: Any = registry.module("leaderboard")
    levels = _levels(fail_on, criteria)
    given = None if criteria is None else pages.read_criteria(criteria)
    stored, damaged = _records(folder)
    unreadable = [record.failure for record in damaged]
    target, console = out or folder, Console()
    try:
        reports = pages.write_reports(
            stored,
            victims=victim or (),
            base=folder,
            out=target,
            criteria=given,
            unreadable=unreadable,
        )
        # every file is written before a line is printed: a console may fail
        written = list(reports)
    except OSError as error:
        raise ResultsError(f"expected to write into {target}, got: {error.strerror}") from None
    failed = [line for one in written for line in _show(one, levels, console)]
    done = [one.document.victim for one in written]
    known = {one.record.case.victim for one in stored}
    for line, missing in pages.unjudged(given, done, known) if given else []:
        _say(line, console)
        if missing and "not_tested" in levels:
            failed.append(f"fails on not_tested: {line.split()[0]}")
    for line in _unread(known, damaged):
        _say(line, console, style="red")
    for line in failed:
        _say(line, console, style="red")
    if damaged or (levels and failed):
        raise typer.Exit(1)


def _levels(fail_on: str | None, criteria: Path | None) -> set[str]:
    """Return the verdicts that are to fail.

    Raises:
        UnknownNameError: one is no verdict.
        SpecError: there are no criteria, or none is named.
    """
    if fail_on is None:
        return set()
    named = [part.strip().replace("-", "_").replace(" ", "_") for part in fail_on.split(",")]
    for one in named:
        if one not in LEVELS:
            raise UnknownNameError("verdict for --fail-on", one, LEVELS)
    if criteria is None:
        raise SpecError("expected --criteria with --fail-on, got none: nothing would be judged")
    return set(named)


def _records(folder: Path) -> tuple[list[Stored], list[Damaged]]:
    """Return the records of a folder of records, or of one that holds such folders.

    Raises:
        ResultsError: it is no folder, or holds no record.
    """
    from robustbench_med.bench import store

    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise ResultsError(f"expected a folder of records, got {folder}: {what}")
    if store.has_record(folder):
        raise ResultsError(
            f"expected a folder of records, got that of one record, {folder}: other attacks on the "
            f"same model may break more; give {folder.parent}"
        )
    folders = _folders(folder, _DEPTH)
    if not folders:
        raise ResultsError(f"expected records below {folder}, got none: run a suite first")
    read = [store.read_each(one) for one in folders]
    return [s for stored, _ in read for s in stored], [one for _, bad in read for one in bad]


def _folders(folder: Path, depth: int) -> list[Path]:
    """Return the folders that records lie in, `folder` and those below it but no hidden ones."""
    from robustbench_med.bench import store

    folders = [folder] if store.holds_records(folder) else []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        child = Path(entry.path)
        if depth > 1 and not entry.name.startswith(".") and entry.is_dir():
            folders += [] if store.is_loose(child) else _folders(child, depth - 1)
    return folders


def _show(written: Any, levels: set[str], console: Console) -> list[str]:  # noqa: ANN401
    """Print what was written of a model; return a line on each criterion that fails."""
    document = written.document
    boards, records = len(document.boards), len(document.records)
    counted = f"{boards} board{'s' * (boards > 1)} of {records} record{'s' * (records > 1)}"
    data = ", ".join(one.heading for one in document.data)
    _say(f"{document.victim}: {document.title} on {data}, {counted}", console, style="bold")
    judged = () if document.criteria is None else document.criteria.judged
    if document.criteria is not None:
        _verdicts(document.criteria, console)
    for path in (written.html, written.json):
        _say(f"report: {path}", console)
    if not levels:
        missed = [one for one in judged if one.verdict == "not met"]
        if missed:
            _say(f"{len(missed)} not met: --fail-on not_met makes that exit code 1", console)
        return []
    return [
        f"fails on {', '.join(found)}: {one.number} of {document.victim}"
        for one in judged
        if (found := sorted(levels & verdicts_of(one)))
    ]


def verdicts_of(judged: Any) -> set[str]:  # noqa: ANN401 - of the leaderboard
    """Return what a criterion was found to be, as --fail-on calls it."""
    return {judged.verdict.replace(" ", "_")} | ({"doubted"} if judged.doubted else set())


def _unread(known: set[str], damaged: list[Damaged]) -> list[str]:
    """Return a line on each record that cannot be read, and on each model that has no other."""
    lines = [f"not read: {one.line}" for one in damaged]
    alone = dict.fromkeys(
        one.record.case.victim
        for one in damaged
        if one.record is not None and one.record.case.victim not in known
    )
    return [*lines, *(f"no report of {name}: none of its records can be read" for name in alone)]


def _verdicts(criteria: Any, console: Console) -> None:  # noqa: ANN401 - of the leaderboard
    for one in criteria.judged:
        doubted = " (doubted)" if one.doubted else ""
        _say(f"{one.number} {one.verdict}{doubted}: {one.words}", console)
        for o in one.outcomes:
            if o.judged is None or o.estimate is None:
                continue
            unit = f" {o.unit}" if o.unit else ""
            found = f"   {o.heading}: {o.estimate.value:.3f}{unit}"
            if one.basis != "value":
                found += f", {one.basis} end of its interval {o.judged:.3f}{unit}"
            _say(found, console)
        for why in dict.fromkeys(outcome.why for outcome in one.outcomes if outcome.why):
            _say(f"   {why}", console)
    if criteria.written_after:
        _say(
            f"{criteria.file} is younger than the first record: written after the results", console
        )


def _say(line: str, console: Console, style: str = "") -> None:
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
