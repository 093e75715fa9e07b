"""Write boards as one HTML page, which needs no network and works under a strict policy."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Collection, Sequence
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_med import palette
from robustbench_med.bench.check_words import check_rows, flag_words
from robustbench_med.bench.failure import Failure
from robustbench_med.files import write_text
from robustbench_med.stats import Estimate

from .boards.board import Board, Row
from .boards.breakdown import by_class, by_patient
from .boards.charts import colour, shape
from .boards.corruption_scores import corruption_scores
from .boards.critical import critical, critical_head, critical_words
from .boards.defenses import change_unit, defense_words, signed_change
from .boards.degradation import degradations
from .boards.subgroups import by_subgroup, difference_words, group_notes, headline_words
from .card_sheets import KINDS, anchor, sheets
from .cite import bibtex
from .exports import csv_text, packed_csv, page_json
from .headline import headline_of
from .page_context import choices, origin, views
from .rows import Column, rank_text
from .tables import argmax_words, beyond_words
from .wording import text
from .wording.metrics import metric_notes, metric_rows
from .wording.records import (
    attacker_words,
    audit_words,
    budget_words,
    commit_words,
    comparison_words,
    cost_words,
    decision_words,
    distance_words,
    ladder_words,
    parameter_words,
    spread_words,
)
from .wording.score import Score
from .wording.text import FAILURES_MEAN

TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    boards: list[Board],
    folder: Path,
    *,
    title: str,
    failures: Sequence[Failure] = (),
    csv: str = "",
    figures: Collection[str] = (),
) -> Path:
    """Write `leaderboard.html` into `folder` in one step and return its path; see `render`."""
    html = render(
        boards, title=title, suite=folder.name, failures=failures, csv=csv, figures=figures
    )
    return write_text(folder / "leaderboard.html", html)


def render(
    boards: list[Board],
    *,
    title: str,
    suite: str,
    failures: Sequence[Failure] = (),
    csv: str = "",
    figures: Collection[str] = (),
) -> str:
    """Return the page of `boards`, which names the failures; the same boards give the same text.

    Args:
        boards: the boards to show.
        title: title of the page.
        suite: name of the suite.
        failures: cases without a usable record.
        csv: the result of `exports.csv_text`, if the caller has it.
        figures: the figures that lie beside the page in `figures`, by their names without an
            ending; the page links to them, and to `wide.csv`.
    """
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            title=text.plain(title) or "Leaderboard",
            suite=text.plain(suite),
            **page_parts(),
            failures=failures,
            figure_files=figures,
            means=FAILURES_MEAN,
            headline=headline_of(boards),
            card_kinds=KINDS,
            sheets=sheets(boards),
            groups=views(boards),
            origin=(source := origin(boards)),
            choices=choices(boards),
            data=page_json(boards),
            csv=packed_csv(csv or csv_text(boards)),
            bibtex=bibtex(boards, versions=source["versions"]),
        )
    )


def page_parts(own_style: str = "") -> dict[str, str]:
    """Return the style and the scripts of a page, and the policy that allows only these.

    Args:
        own_style: file of the styles that only this kind of page has, after those of all pages.
    """
    files = [file for file in ("style.css", own_style) if file]
    style = "".join((TEMPLATES / file).read_text(encoding="utf-8") for file in files)
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    start = "document.documentElement.classList.add('js')"
    policy = [
        "default-src 'none'",
        "img-src data:",
        f"style-src {policy_hash(style)}",
        f"script-src {policy_hash(start)} {policy_hash(script)}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return {
        "policy": "; ".join(policy),
        "start": Markup(start),  # noqa: S704 - our own files, hashed in the policy
        "style": Markup(style),  # noqa: S704
        "script": Markup(script),  # noqa: S704
    }


@cache
def environment() -> Environment:
    """Return the environment that renders our templates; it escapes every value.

    It is made once, because reading the templates takes longer than filling them in.
    """
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(
        argmax_words=argmax_words,
        attack_anchor=partial(anchor, "attack"),
        attacker_words=attacker_words,
        audit_words=audit_words,
        budget_words=budget_words,
        beyond_words=beyond_words,
        by_class=by_class,
        by_patient=by_patient,
        by_subgroup=by_subgroup,
        corruption_scores=corruption_scores,
        degradations=degradations,
        difference_words=difference_words,
        group_notes=group_notes,
        headline_words=headline_words,
        signed_change=signed_change,
        check_rows=check_rows,
        colour=colour,
        commit_words=commit_words,
        critical=critical,
        critical_head=critical_head,
        critical_words=critical_words,
        cost_words=cost_words,
        change_unit=change_unit,
        decision_words=decision_words,
        defense_words=defense_words,
        distance_words=distance_words,
        flag_words=flag_words,
        ladder_words=ladder_words,
        metric_notes=metric_notes,
        metric_rows=metric_rows,
        model_anchor=partial(anchor, "model"),
        parameter_words=parameter_words,
        rank_text=rank_text,
        region_colour=palette.colour,
        shape=shape,
        spread_words=spread_words,
        comparison_words=comparison_words,
    )
    templates.filters.update(
        finite=math.isfinite,
        first_upper=lambda words: words[:1].upper() + words[1:],
        heat=heat,
        https=text.https,
        interval=text.interval,
        measured=text.measured,
        number=text.number,
        packed=packed,
        packed_column=packed_column,
        percent_of=lambda value: f"{100 * value:.2f}",
        plain=text.plain,
        radius=text.radius,
        sign=text.sign,
        with_unit=with_unit,
        scale=lambda kind: f"{text.SCALE[kind][0]:g}",
    )
    return templates


def policy_hash(content: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline script or style."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def packed(estimates: tuple[Estimate, ...], kind: str = "percent") -> str:
    """Return estimates in the form that the script reads: `value,low,high;...`, empty if undefined.

    The numbers are rounded here, because the script would round halves the other way.

    >>> packed((Estimate(value=0.5625, low=0.25, high=1.0),)), f"{56.25:.1f}"
    ('56.2,25.0,100.0', '56.2')
    """
    rows = ((e.value, e.low, e.high) for e in estimates)
    written = (
        ",".join(text.number(v, kind) if math.isfinite(v) else "" for v in row) for row in rows
    )
    return ";".join(written)


def with_unit(written: str, value: float | str | None, score: Score, only: str = "") -> str:
    """Return a score as text with its unit; a text or a dash stays as it is.

    Args:
        written: the number as text.
        value: the number; None or a text if there is none.
        score: the score of the board.
        only: the only kind of score whose unit is added; by default every kind.
    """
    units = isinstance(value, float) and score.kind == (only or score.kind)
    unit = text.sign(score.kind, score.short) if units else ""
    return f"{written}\N{NO-BREAK SPACE}{unit}" if unit else written


def packed_column(column: Column, row: Row, rungs: int) -> str:
    """Return the values of a row in a column, one for each radius, in the form of `packed`."""
    cells = []
    for rung in range(rungs if column.at_radius else 1):
        value = column.read(row, rung)
        numbers = (value.value, value.low, value.high)
        written = (text.number(n, column.kind) if isinstance(n, float) else "" for n in numbers)
        cells.append(",".join(written))
    return ";".join(cells)


def heat(value: float) -> str:
    """Return the CSS class that colours a share, in steps of a tenth; empty if it is undefined.

    The class depends on the rounded number that is shown, because the script knows only that one.

    >>> heat(0.0), heat(0.47), heat(1.0)
    ('heat0', 'heat5', 'heat10')
    """
    if not math.isfinite(value):
        return ""
    return f"heat{math.floor(float(text.number(value)) / 10 + 0.5)}"
