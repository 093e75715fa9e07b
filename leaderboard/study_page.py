"""The page of studies: each claim of the literature beside what it becomes here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from robustbench_med.files import write_text
from robustbench_med.stats import Estimate
from robustbench_med.studies.evidence import RowEvidence, StudyEvidence
from robustbench_med.studies.study import Question
from robustbench_med.studies.verdict import SIMILAR, UNCHANGED, WIDE, Verdict

from .page import environment, page_parts
from .svg import INK, drawing, inline, plain_axes, stroke

NAME = "studies.html"
QUESTIONS: dict[Question, str] = {
    "breaks": "Does it break?",
    "size": "By how much?",
    "visible": "At which visible size?",
    "transfers": "Does it transfer?",
    "defended": "Does the defense hold?",
}
SOURCES = (("published", 3, "D"), ("as published, here", 1, "o"), ("corrected", 2, "s"))


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
            sources=SOURCES,
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
    if estimate is None or estimate.value != estimate.value:  # noqa: PLR0124 - NaN
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


def _points(row: RowEvidence) -> list[tuple[float | None, Estimate | None]]:
    """Return the score under attack: published, as published here, corrected."""
    return [
        (row.published_after, None),
        (None, row.here and row.here.after),
        (None, row.corrected and row.corrected.after),
    ]


def figure(evidence: StudyEvidence) -> Markup:
    """Return the scores of a study's rows under attack, with 95 % intervals, as an `<svg>`."""
    rows = list(reversed(evidence.rows))
    prefix = f"study-{evidence.study.name.replace('_', '-')}"
    with drawing(prefix, 6.6, 0.55 + 0.62 * len(rows)) as canvas:
        axes = canvas.add_axes(
            (0.34, 0.45 / (0.55 + 0.62 * len(rows)), 0.63, 1 - 0.5 / (0.55 + 0.62 * len(rows)))
        )
        plain_axes(axes)
        axes.grid(axis="x", color="#040506", linewidth=0.6)
        axes.grid(visible=False, axis="y")
        for y, row in enumerate(rows):
            for (value, estimate), (_, colour, marker), shift in zip(
                _points(row), SOURCES, (0.22, 0.0, -0.22), strict=True
            ):
                if estimate is not None and estimate.value == estimate.value:  # noqa: PLR0124
                    value = estimate.value
                    axes.plot(
                        [100 * estimate.low, 100 * estimate.high],
                        [y + shift] * 2,
                        color=stroke(colour),
                        linewidth=1.6,
                    )
                if value is not None:
                    axes.plot(
                        [100 * value], [y + shift], marker, color=stroke(colour), markersize=5
                    )
            clean = row.here and row.here.before
            if clean:
                axes.plot([100 * clean.value] * 2, [y - 0.34, y + 0.34], color=INK, linewidth=0.8)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_yticks(range(len(rows)), [r.row.label for r in rows], color=INK)
        axes.set_xlabel("score under attack, in %; the thin line is the clean score", color=INK)
        label = f"Scores under attack of {evidence.study.title}: published and measured here"
        return Markup(inline(canvas, prefix=prefix, label=label))  # noqa: S704 - our own figure
