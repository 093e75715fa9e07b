"""From the records of a folder to its page, CSV and Markdown, which hold all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.unscored import recall, remember
from robustbench_med.errors import ResultsError


class Published(NamedTuple):
    """What a folder holds.

    Attributes:
        page: its path; None where the folder has no record, so that nothing was written.
        boards: of the leaderboard.
        cases: ids of the readable records.
        damaged: a line on each record that cannot be read.
    """

    page: Path | None
    boards: list[Any]
    cases: set[str]
    damaged: list[str]


def publish(
    folder: Path,
    title: str,
    *,
    planned: Sequence[Planned] | None = None,
    lost: Sequence[tuple[str, str]] = (),
) -> Published:
    """Write `leaderboard.html`, `.csv` and `.md` of all records in `folder`, earlier ones too.

    Args:
        folder: of the records.
        title: of the page.
        planned: the cases of a run; None where nothing was run.
        lost: (label, reason) of what has no record; the page says so, and later ones too.

    Raises:
        ResultsError: the folder cannot be written.
    """
    pages: Any = registry.module("leaderboard")
    stored, damaged = store.read_each(folder)
    finished = {one.record.case_id for one in stored}
    try:
        gone = [
            *_missing(pages, folder, finished, planned, lost),
            *(_damaged(pages, one) for one in damaged),
        ]
        made = pages.boards(stored, gone)
        page = (
            pages.publish_boards(made, folder, title=title, lost=gone)
            if stored or damaged
            else None
        )
    except OSError as error:
        raise ResultsError(f"expected to write into {folder}, got: {error.strerror}") from None
    return Published(page, made, finished, [one.line for one in damaged])


def _missing(
    pages: Any,  # noqa: ANN401 - of the leaderboard
    folder: Path,
    finished: set[str],
    planned: Sequence[Planned] | None,
    lost: Sequence[tuple[str, str]],
) -> list[Any]:
    """Return what failed, in earlier runs too; a case whose older record stands is none."""
    if planned is None:
        kept = [one for one in recall(folder) if one.case.id not in finished]
    else:
        kept = remember(folder, planned, lost, finished=finished)
    found = [pages.Lost(one.label, one.reason, one.case, one.attack, one.defense) for one in kept]
    known = {one.case.label for one in planned or ()}
    return [*found, *(pages.Lost(label, reason) for label, reason in lost if label not in known)]


def _damaged(pages: Any, one: store.Damaged) -> Any:  # noqa: ANN401 - of the leaderboard
    label, reason = one.home.name, one.line.replace(str(one.home), one.home.name)
    record = one.record
    if record is None:
        return pages.Lost(label, reason)
    cards = record.attack_card, record.defense_card
    return pages.Lost(f"{record.case.label} ({label})", reason, record.case, *cards)
