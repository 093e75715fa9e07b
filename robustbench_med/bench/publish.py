"""From the records of a folder to its page, CSV and Markdown, which hold all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.failure import Failure, recall, remember
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.errors import ResultsError


class Published(NamedTuple):
    """What a folder holds.

    Attributes:
        page: its path; None where the folder has no record, so that nothing was written.
        boards: of the leaderboard.
        cases: ids of the readable records.
        damaged: a line on each record that cannot be read.
        not_scored: how many cases have no usable record; the page names them.
    """

    page: Path | None
    boards: list[Any]
    cases: set[str]
    damaged: list[str]
    not_scored: int = 0


def pages() -> Any:  # noqa: ANN401 - a package that the core does not import
    """Return the package that writes tables and pages of records, loaded now.

    The only place where the core reaches for another folder than by a card: who publishes needs it,
    and nothing that computes does.
    """
    return registry.module("leaderboard")


def publish(
    folder: Path,
    title: str,
    *,
    planned: Sequence[ResolvedCase] | None = None,
    failures: Sequence[Failure] = (),
) -> Published:
    """Write `leaderboard.html`, `.csv` and `.md` of all records in `folder`, earlier ones too.

    Args:
        folder: of the records.
        title: of the page.
        planned: the cases of a run; None where nothing was run.
        failures: of a run; the page names them, and so do later pages.

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
        page = (
            leaderboard.publish_boards(boards, folder, title=title, failures=missing)
            if stored or damaged
            else None
        )
    except OSError as error:
        raise ResultsError(f"expected to write into {folder}, got: {error.strerror}") from None
    return Published(page, boards, finished, [record.line for record in damaged], len(missing))


def _without_record(
    folder: Path,
    finished: set[str],
    planned: Sequence[ResolvedCase] | None,
    failures: Sequence[Failure],
) -> list[Failure]:
    """Return what failed, in earlier runs too; a case that has an older record did not."""
    if planned is None:
        stored = [f for f in recall(folder) if f.case is not None and f.case.id not in finished]
    else:
        ran = [resolved.case for resolved in planned]
        stored = remember(folder, ran, failures, finished=finished)
    return [*stored, *(failure for failure in failures if failure.case is None)]


def _failure_of(damaged: store.Damaged) -> Failure:
    """Return the failure that a damaged record is, without a folder of this machine."""
    failure, home = damaged.failure, damaged.home
    label = home.name if failure.case is None else f"{failure.case.label} ({home.name})"
    reason = failure.reason.replace(str(home), home.name)
    return failure.model_copy(update={"label": label, "reason": reason})
