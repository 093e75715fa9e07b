"""Write the start page, which lists the suites of a results folder and links to their pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from robustbench_med.files import write_text

from .boards.board import Board
from .headline import Headline, counted, headline_of
from .page import environment, page_parts
from .study_page import NAME as STUDIES
from .wording import text

NAME = "index.html"


class SuiteEntry(NamedTuple):
    """A suite as the start page lists it.

    Attributes:
        title: title of the suite.
        folder: the folder of its page, CSV and Markdown file.
        headline: the headline of its page.
        boards: number of its boards; without any, the suite has no page.
        not_scored: number of its cases without a usable record.
    """

    title: str
    folder: Path
    headline: Headline
    boards: int
    not_scored: int

    @property
    def counts(self) -> str:
        """Number of models, cases, attacks, datasets and boards in words."""
        head = self.headline
        models, boards = counted(head.models, "model"), counted(self.boards, "board")
        return f"{models}, {head.counts}, {boards}"


def suite_entry(
    boards: Sequence[Board], folder: Path, *, title: str, not_scored: int = 0
) -> SuiteEntry:
    """Return the entry of a suite from the boards of its page."""
    return SuiteEntry(text.plain(title), folder, headline_of(boards), len(boards), not_scored)


def write_start_page(entries: Sequence[SuiteEntry], folder: Path) -> Path:
    """Write `index.html` into `folder` in one step and return its path.

    Args:
        entries: the suites; their folders are in `folder` or are `folder` itself.
        folder: the folder of the start page.
    """
    links = {entry.folder: Path(os.path.relpath(entry.folder, folder)) for entry in entries}
    html = (
        environment()
        .get_template("start.html.j2")
        .render(
            **page_parts(),
            suites=[
                (
                    entry,
                    {
                        kind: (links[entry.folder] / f"leaderboard.{kind}").as_posix()
                        for kind in ("html", "csv", "md")
                    }
                    | {"studies": _studies(entry.folder, links[entry.folder])},
                )
                for entry in sorted(entries, key=lambda entry: entry.title.lower())
            ],
            records=counted(sum(entry.headline.cases for entry in entries), "case"),
            count=counted(len(entries), "suite"),
        )
    )
    return write_text(folder / NAME, html)


def _studies(folder: Path, link: Path) -> str:
    """Return the link to the page of studies of a suite; "" if its folder has none."""
    return (link / STUDIES).as_posix() if (folder / STUDIES).is_file() else ""
