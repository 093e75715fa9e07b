"""Publish: write the page, the CSV and the Markdown file of all records in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.failure import Failure, recall, remember
from robustbench_med.bench.record import Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.errors import ResultsError


class Published(NamedTuple):
    """The result of publishing a folder.

    Attributes:
        page: the path of the page; None if no record can be read, so that nothing was written.
        boards: the boards of the leaderboard.
        cases: ids of the readable records.
        damaged: one line for each record that cannot be read.
        not_scored: number of cases without a usable record; the page names them.
        records: the readable records.
    """

    page: Path | None
    boards: list[Any]
    cases: set[str]
    damaged: list[str]
    not_scored: int = 0
    records: Sequence[Stored] = ()


def pages() -> Any:  # noqa: ANN401 - a package that the core does not import
    """Import and return the package that writes tables and pages of records.

    This is the only place where the core imports another folder without a card. Only publishing
    needs that folder, so nothing that computes imports it.
    """
    return registry.module("leaderboard")


def publish(
    folder: Path,
    title: str,
    *,
    planned: Sequence[ResolvedCase] | None = None,
    failures: Sequence[Failure] = (),
    figures: bool = False,
) -> Published:
    """Write `leaderboard.html`, `.csv` and `.md` of all records in `folder`, earlier ones too.

    If there are records but none can be read, nothing is written, and the three files of an earlier
    call are removed, because nothing supports their numbers any more.

    Args:
        folder: the folder of the records.
        title: the title of the page.
        planned: the cases of a run; None if nothing was run.
        failures: the failures of a run; this page and later pages name them.
        figures: whether figures and a wide CSV are written beside the page.

    Raises:
        ResultsError: the folder cannot be written.
    """
    leaderboard = pages()
    stored, damaged = store.read_each(folder)
    finished = {record.record.case_id for record in stored}
    try:
        missing = [
            *_without_record(folder, finished, planned, failures),
            *map(_failure_of, damaged),
        ]
        boards = leaderboard.make_boards(stored, missing)
        page = None
        if stored:
            page = leaderboard.publish_boards(
                boards, folder, title=title, failures=missing, figures=figures
            )
        elif damaged:
            for name in leaderboard.FILES:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ResultsError(f"expected to write into {folder}, got: {error.strerror}") from None
    return Published(
        page, boards, finished, [record.line for record in damaged], len(missing), stored
    )


def read_boards(folder: Path) -> list[Any]:
    """Return the boards of the records in `folder`, as its page shows them; nothing is written."""
    stored, damaged = store.read_each(folder)
    finished = {record.record.case_id for record in stored}
    missing = [*_without_record(folder, finished, None, ()), *map(_failure_of, damaged)]
    boards: list[Any] = pages().make_boards(stored, missing)
    return boards


def _without_record(
    folder: Path,
    finished: set[str],
    planned: Sequence[ResolvedCase] | None,
    failures: Sequence[Failure],
) -> list[Failure]:
    """Return the failures of this run and earlier ones, except for cases with an older record."""
    if planned is None:
        stored = [f for f in recall(folder) if f.case is not None and f.case.id not in finished]
    else:
        ran = [resolved.case for resolved in planned]
        stored = remember(folder, ran, failures, finished=finished)
    return [*stored, *(failure for failure in failures if failure.case is None)]


def _failure_of(damaged: store.Damaged) -> Failure:
    """Return a damaged record as a failure, without the path of a folder on this machine."""
    failure, home = damaged.failure, damaged.home
    label = home.name if failure.case is None else f"{failure.case.label} ({home.name})"
    reason = failure.reason.replace(str(home), home.name)
    return failure.model_copy(update={"label": label, "reason": reason})
