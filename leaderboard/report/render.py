"""Render the document of a report as one HTML file, which has no script and needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from ..boards.charts import curves
from ..boards.detectors import COLUMNS
from ..gallery import PAGE_BYTES, gallery, regions_shown, shown
from ..page import TEMPLATES, environment, policy_hash
from ..wording import text
from .document import Clause, Report
from .model_boards import ModelBoard


def render(document: Report, model_boards: list[ModelBoard]) -> str:
    """Return the HTML of a report; the same document gives the same text.

    Args:
        document: the document.
        model_boards: its boards, for curves and pictures.
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
    numbers = {reference.case_id: reference.number for reference in document.records}
    template = _templates().get_template("report.html.j2")
    return template.render(
        document=document,
        policy=policy,
        style=Markup(style),  # noqa: S704 - our own files, hashed in the policy
        numbers=numbers,
        figures={model_board.anchor: _curves(model_board) for model_board in model_boards},
        galleries=_galleries(model_boards),
        detector_columns=COLUMNS,
        headings=list(dict.fromkeys(board.heading for board in document.boards)),
    )


@cache
def _templates() -> Environment:
    """Return what renders a page, with the filters of a report."""
    templates = environment().overlay()
    templates.filters = {**templates.filters, "served": served, "spans": spans, "stamp": stamp}
    return templates


def _curves(model_board: ModelBoard) -> str:
    row = model_board.row
    if model_board.board.control or row.standing == "invalid" or not row.images:
        return ""
    return Markup(curves(model_board.board, model_board.anchor))  # noqa: S704 - drawn by figures.py


def _galleries(model_boards: list[ModelBoard]) -> list[dict[str, Any]]:
    """Return the pictures of each board whose records have some."""
    budget = PAGE_BYTES // max(len(model_boards), 1)
    galleries = []
    for model_board in model_boards:
        pictures = gallery(model_board.board, budget=budget)
        if pictures:
            galleries.append(
                {
                    "anchor": model_board.anchor,
                    "pictures": [(p, model_board.runs[p.column].record.case_id) for p in pictures],
                    "regions": regions_shown(model_board.board, pictures),
                    "shown": shown(pictures, slides=False, shift=model_board.board.shift),
                    "board": model_board.board,
                }
            )
    return galleries


def served(clauses: tuple[Clause, ...]) -> list[tuple[str, str]]:
    """Return the clauses of a section by framework: ("EU AI Act", "Art. 9(8) (testing ...)")."""
    by_framework: dict[str, list[str]] = {}
    for clause in clauses:
        words = f"{clause.clause} ({clause.subject})"
        by_framework.setdefault(clause.framework, []).append(words)
    return [(framework, "; ".join(words)) for framework, words in by_framework.items()]


def spans(ids: Iterable[str], numbers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return records as (first, last) of each range, so that twelve in a row stay short.

    Fewer than four in a row are listed one by one.

    Args:
        ids: case ids.
        numbers: case id -> "R1", "R2", ...

    >>> spans("abcdf", {"a": "R1", "b": "R2", "c": "R3", "d": "R4", "f": "R6"})
    [('a', 'd'), ('f', 'f')]
    """
    ordered = sorted(set(ids), key=lambda case_id: int(numbers[case_id][1:]))
    runs: list[list[str]] = []
    for case_id in ordered:
        if runs and int(numbers[case_id][1:]) == int(numbers[runs[-1][-1]][1:]) + 1:
            runs[-1].append(case_id)
        else:
            runs.append([case_id])
    ranges = []
    for run in runs:
        ranges += [(run[0], run[-1])] if len(run) > 3 else [(case_id, case_id) for case_id in run]
    return ranges


def stamp(time: str) -> str:
    """Return a time in a readable form: "2026-01-15 10:12 UTC".

    >>> stamp("2026-01-15T10:12:00Z"), stamp("soon")
    ('2026-01-15 10:12 UTC', 'soon')
    """
    plain = text.plain(time)
    day, mark, clock = plain.partition("T")
    return f"{day} {clock[:5]} UTC" if mark and len(clock) >= len("10:12") else plain
