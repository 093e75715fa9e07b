"""The page of studies: each claim of the literature beside what it becomes here."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robustbench_med.files import write_text
from robustbench_med.stats import Estimate
from robustbench_med.studies.evidence import RowEvidence, StudyEvidence
from robustbench_med.studies.study import Question
from robustbench_med.studies.verdict import SIMILAR, UNCHANGED, WIDE, Verdict

from .page import environment, page_parts
from .svg import FAINT, INK, drawing, inline, plain_axes, stroke

NAME = "studies.html"
QUESTIONS: dict[Question, str] = {
    "breaks": "Does it break?",
    "transfers": "Does it transfer?",
    "defended": "Does the defense hold?",
    "control": "Do the controls stay unchanged?",
}
# what a score is from, with the marker of matplotlib and its path in the legend
SOURCES = (
    ("published", "D", "M4 0 8 4 4 8 0 4z"),
    ("as published, here", "o", "M4 .5a3.5 3.5 0 1 0 .01 0z"),
    ("corrected", "s", "M.5.5h7v7h-7z"),
)


def write_study_page(evidence: Sequence[StudyEvidence], folder: Path) -> Path:
    """Write `studies.html` into `folder` in one step and return its path."""
    html = (
        environment()
        .get_template("studies.html.j2")
        .render(
            **page_parts(),
            studies=[(each, figure(each)) for each in evidence],
            questions=QUESTIONS,
            answers={each.study.name: {q: answer(each, q) for q in QUESTIONS} for each in evidence},
            sources=[(name, path) for name, _, path in SOURCES],
            verdicts=Verdict,
            percent=percent,
            estimate_words=estimate_words,
            rule={"unchanged": UNCHANGED, "similar": SIMILAR, "wide": WIDE},
            has_boards=(folder / "leaderboard.html").is_file(),
        )
    )
    return write_text(folder / NAME, html)


def percent(value: float | None) -> str:
    """Return a share of 1 in percent, or a dash.

    >>> percent(0.125)
    '12.5 %'
    """
    return "–" if value is None else f"{100 * value:.3g} %"


def estimate_words(estimate: Estimate | None) -> str:
    """Return an estimate with its interval in percent, or a dash."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    low, high = (f"{100 * bound:.0f}" for bound in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.0f} % [{low} to {high}]"


def answer(evidence: StudyEvidence, question: Question) -> dict[str, Any] | None:
    """Return the cell of the overview: the primary row of a question, or None without one."""
    rows = [r for r in evidence.rows if r.row.question == question and r.row.primary]
    if not rows:
        return None
    row = rows[0]
    return {"row": row, "change": row.here, "corrected": row.corrected, "verdict": row.verdict}


def figure(evidence: StudyEvidence) -> Markup:
    """Return the scores of a study's rows under attack, with 95 % intervals, as an `<svg>`."""
    rows = list(reversed(evidence.rows))
    prefix = f"study-{evidence.study.name.replace('_', '-')}"
    height = 0.4 + 0.6 * len(rows)
    with drawing(prefix, 6.6, height) as canvas:
        axes = canvas.add_axes((0.3, 0.32 / height, 0.68, 1 - 0.37 / height))
        plain_axes(axes)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        for y, row in enumerate(rows):
            for place, (value, low, high) in _scores(row):
                at, colour = y + 0.22 * (1 - place), stroke(place + 1)
                axes.plot([100 * low, 100 * high], [at, at], color=colour, linewidth=1.6)
                axes.plot([100 * value], [at], SOURCES[place][1], color=colour, markersize=5)
            if row.here is not None:
                clean = 100 * row.here.before.value
                axes.plot([clean, clean], [y - 0.34, y + 0.34], color=INK, linewidth=0.8)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        labels = [textwrap.fill(row.row.label, 26) for row in rows]
        axes.set_yticks(range(len(rows)), labels, color=INK)
        label = f"Scores under attack of {evidence.study.title}: published and measured here"
        return Markup(inline(canvas, prefix=prefix, label=label))  # noqa: S704 - our own figure


def _scores(row: RowEvidence) -> Iterator[tuple[int, tuple[float, float, float]]]:
    """Yield the scores under attack that are known: place in SOURCES, value, low and high."""
    if row.published_after is not None:
        yield 0, (row.published_after, row.published_after, row.published_after)
    # the corrected number is the share of images still right, another score than one that rises
    corrected = None if row.row.claim == "rises" else row.corrected
    for place, change in ((1, row.here), (2, corrected)):
        if change is not None and not math.isnan(change.after.value):
            yield place, (change.after.value, change.after.low, change.after.high)
