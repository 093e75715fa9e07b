"""Render: the document of a report as one HTML file, without script and without network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from ..boards.charts import curves
from ..boards.detectors import COLUMNS
from ..gallery import PAGE_BYTES, gallery, regions_shown, shown
from ..page import TEMPLATES, environment, policy_hash
from ..wording import text
from .document import Clause, Report
from .model_boards import Chosen


def render(document: Report, chosen: list[Chosen]) -> str:
    """Return the HTML of a report; the same document gives the same text.

    Args:
        document: what is shown.
        chosen: its boards, for curves and pictures.
    """
    style = "".join(
        (TEMPLATES / file).read_text(encoding="utf-8") for file in ("style.css", "report.css")
    )
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {policy_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    made = environment()
    made.filters.update(served=served, spans=spans, stamp=stamp)
    numbers = {reference.case_id: reference.number for reference in document.records}
    return made.get_template("report.html.j2").render(
        document=document,
        policy=policy,
        style=Markup(style),  # noqa: S704 - our own files, hashed in the policy
        numbers=numbers,
        figures={one.anchor: _curves(one) for one in chosen},
        galleries=_galleries(chosen),
        detector_columns=COLUMNS,
        headings=list(dict.fromkeys(board.heading for board in document.boards)),
    )


def _curves(one: Chosen) -> str:
    row = one.row
    if one.board.control or row.standing == "invalid" or not row.images:
        return ""
    return Markup(curves(one.board, one.anchor))  # noqa: S704 - drawn by figures.py


def _galleries(chosen: list[Chosen]) -> list[dict[str, Any]]:
    """Return the pictures stored with the records of each board that has some."""
    share = PAGE_BYTES // max(len(chosen), 1)
    found = []
    for one in chosen:
        pictures = gallery(one.board, budget=share)
        if pictures:
            found.append(
                {
                    "anchor": one.anchor,
                    "pictures": [(p, one.runs[p.column].record.case_id) for p in pictures],
                    "regions": regions_shown(one.board, pictures),
                    "shown": shown(pictures, slides=False),
                    "board": one.board,
                }
            )
    return found


def served(clauses: tuple[Clause, ...]) -> list[tuple[str, str]]:
    """Return the clauses of a section by framework: ("EU AI Act", "Art. 9(8) (testing ...)")."""
    found: dict[str, list[str]] = {}
    for clause in clauses:
        words = f"{clause.clause} ({clause.subject})"
        found.setdefault(clause.framework, []).append(words)
    return [(framework, "; ".join(words)) for framework, words in found.items()]


def spans(ids: Iterable[str], numbers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return records as (first, last) of each run of neighbours, so that twelve take no line.

    Fewer than four in a row stand alone.

    Args:
        ids: case ids.
        numbers: case id -> "R1", "R2", ...

    >>> spans("abcdf", {"a": "R1", "b": "R2", "c": "R3", "d": "R4", "f": "R6"})
    [('a', 'd'), ('f', 'f')]
    """
    ordered = sorted(set(ids), key=lambda one: int(numbers[one][1:]))
    runs: list[list[str]] = []
    for one in ordered:
        if runs and int(numbers[one][1:]) == int(numbers[runs[-1][-1]][1:]) + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    found = []
    for run in runs:
        found += [(run[0], run[-1])] if len(run) > 3 else [(one, one) for one in run]
    return found


def stamp(time: str) -> str:
    """Return a time as people read it: "2026-01-15 10:12 UTC".

    >>> stamp("2026-01-15T10:12:00Z"), stamp("soon")
    ('2026-01-15 10:12 UTC', 'soon')
    """
    plain = text.plain(time)
    day, mark, clock = plain.partition("T")
    return f"{day} {clock[:5]} UTC" if mark and len(clock) >= len("10:12") else plain
