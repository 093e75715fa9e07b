"""The page of studies: each claim of the literature beside what it becomes here."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from robustbench_med import registry
from robustbench_med.files import write_text
from robustbench_med.spec import parse
from robustbench_med.stats import Estimate
from robustbench_med.studies.evidence import RowEvidence, StudyEvidence
from robustbench_med.studies.readings import Change
from robustbench_med.studies.study import Reference, Row, Study
from robustbench_med.studies.verdict import SIMILAR, UNCHANGED, WIDE, Verdict
from robustbench_med.worst_case import parse_objective

from .page import environment, page_parts
from .study_answers import (
    QUESTIONS,
    Answer,
    answer,
    change_words,
    estimate_words,
    percent,
    size_row,
    size_words,
    visible_change,
)
from .wording import text

NAME = "studies.html"
MEANS = {
    Verdict.IN_SIZE: "is-size",
    Verdict.IN_DIRECTION: "is-direction",
    Verdict.NOT_REPRODUCED: "is-not",
    Verdict.CANNOT_BE_JUDGED: "is-open",
}
CERTAINTY = {
    "read": "read in the source",
    "abstract": "read in the abstract",
    "secondary": "read in a secondary source",
    "unverifiable": "could not be verified",
}


class Lane(NamedTuple):
    """One of the three scores of a row: published, as published here, or corrected.

    Attributes:
        kind: "published", "here" or "corrected".
        before, after: the score before and under attack; None where there is none.
        words, short: both in words, with intervals and without.
        note: what the score is of, where it is not that of the row, or how sure it is.
        missing: why there is no score, or "".
        verdict: on the score; None for the published one.
        warning: why a number may be wrong or could not be used, or "".
    """

    kind: str
    before: Estimate | None = None
    after: Estimate | None = None
    words: str = ""
    short: str = ""
    note: str = ""
    missing: str = ""
    verdict: Verdict | None = None
    warning: str = ""


class StudyView(NamedTuple):
    """A study as the page shows it.

    Attributes:
        evidence: the study with its evidence.
        command: what runs it.
        has_run: whether anything of it was measured here, or failed to be.
        tally, corrected_tally: how many of the rows that are judged have the study's verdict.
        answers: a cell of the overview for each question.
        change: the first primary row that asks whether the model breaks, in its three lanes.
        size: the visible size of that row's change, in words.
        rows: each row with its lanes and the visible size of its change.
    """

    evidence: StudyEvidence
    command: str
    has_run: bool
    tally: str
    corrected_tally: str
    answers: dict[str, Answer]
    change: tuple[Lane, ...]
    size: str
    rows: list[tuple[RowEvidence, tuple[Lane, ...], str]]


def write_study_page(evidence: Sequence[StudyEvidence], folder: Path) -> Path:
    """Write `studies.html` into `folder` in one step and return its path."""
    views = [_view(each) for each in evidence]
    html = (
        environment()
        .get_template("studies.html.j2")
        .render(
            **page_parts("studies.css"),
            views=views,
            counts=[_counts(views, corrected) for corrected in (False, True)],
            not_run=sum(not view.has_run for view in views),
            questions=QUESTIONS,
            means=MEANS,
            certainty=CERTAINTY,
            percent=percent,
            estimate_words=estimate_words,
            rule={"unchanged": UNCHANGED, "similar": SIMILAR, "wide": WIDE},
            has_boards=(folder / "leaderboard.html").is_file(),
        )
    )
    return write_text(folder / NAME, html)


def run_command(study: Study) -> str:
    """Return the command that runs a study."""
    name = shlex.quote(study.name)
    return f"python -m robustbench_med run studies --study {name} --data FOLDER"


def _view(evidence: StudyEvidence) -> StudyView:
    first = size_row(evidence)
    primary = [r for r in evidence.rows if r.row.primary]
    return StudyView(
        evidence,
        run_command(evidence.study),
        any(r.here or r.corrected or r.failure for r in evidence.rows),
        _tally(evidence.verdict, [r.verdict for r in primary]),
        _tally(evidence.corrected_verdict, [r.corrected_verdict for r in primary]),
        {question: answer(evidence, question) for question in QUESTIONS},
        () if first is None else _lanes(evidence.study, first),
        size_words(evidence, first),
        [(r, _lanes(evidence.study, r), _size(r)) for r in evidence.rows],
    )


def _size(r: RowEvidence) -> str:
    """Return the visible size of a row's change, and what lies outside of the valid range."""
    if r.outcome is None:
        return ""
    words = f"changed by {visible_change(r.outcome)}"
    outside = f"{percent(r.outcome.outside)} of the values leave the valid range"
    return f"{words}; {outside}" if r.outcome.outside else words


def _tally(verdict: Verdict, rows: Sequence[Verdict]) -> str:
    """Return how many of the rows that can be judged have a verdict, in words."""
    judged = [each for each in rows if each != Verdict.CANNOT_BE_JUDGED]
    same = sum(each == verdict for each in judged)
    return f"{same} of {len(judged)} results" if judged else ""


def _counts(views: Sequence[StudyView], corrected: bool) -> list[tuple[Verdict, int]]:
    """Return how many studies that have run have each verdict, the best first."""
    ran = [view.evidence for view in views if view.has_run]
    found = Counter(each.corrected_verdict if corrected else each.verdict for each in ran)
    return [(verdict, found[verdict]) for verdict in Verdict if found[verdict]]


def _lanes(study: Study, r: RowEvidence) -> tuple[Lane, ...]:
    """Return the three scores of a row."""
    parts = [study.row(name) for name in r.row.compares or (r.row.id,)]
    here = "" if all(part.published for part in parts) else "not measured by this row"
    asked = all(part.corrected for part in parts)
    corrected = "" if asked else "no corrected run answers this"
    return (
        _published(study, r),
        _measured("here", r.here, r.verdict, "cannot be used" if r.failure else here, r.failure),
        _measured(
            "corrected",
            r.corrected,
            r.corrected_verdict,
            corrected,
            "a check of these runs raised a flag" if r.flagged else "",
            _corrected_words(study, r.row) if asked else "",
        ),
    )


def _published(study: Study, r: RowEvidence) -> Lane:
    references = [study.reference(name) for name in (r.row.before, r.row.after)]
    named = [reference for reference in references if reference is not None]
    known = [reference for reference in named if reference.value is not None]
    if not known:
        missing = "could not be verified" if named else "no number known"
        return Lane("published", missing=missing)
    before, after = (_exact(reference) for reference in references)
    numbers = (percent(None if each is None else each.value) for each in (before, after))
    short = " → ".join(numbers)
    words = short if before or after is None else f"{percent(after.value)} under attack"
    sure = dict.fromkeys(CERTAINTY[reference.certainty] for reference in known)
    return Lane("published", before, after, words, short, ", ".join(sure))


def _exact(reference: Reference | None) -> Estimate | None:
    if reference is None or reference.value is None:
        return None
    return Estimate(value=reference.value, low=reference.value, high=reference.value)


def _measured(
    kind: str,
    change: Change | None,
    verdict: Verdict,
    missing: str,
    warning: str,
    note: str = "",
) -> Lane:
    if change is None:
        return Lane(kind, note=note, missing=missing or "not measured yet", warning=warning)
    words = f"{estimate_words(change.before)} → {estimate_words(change.after)}"
    short = change_words(change)
    return Lane(kind, change.before, change.after, words, short, note, "", verdict, warning)


def _corrected_words(study: Study, row: Row) -> str:
    """Return what corrected runs count, if it is not the row's score, and how they attack."""
    first = study.row(row.compares[0]) if row.compares else row
    words = [_corrected_score(first)]
    if row.corrected is not None:
        wanted, cards = row.corrected, registry.load("attacks")
        names = [cards[name].title if name in cards else name for name in wanted.attacks]
        radius = f"{text.radius(wanted.eps, wanted.norm)} in {text.NORMS[wanted.norm]}"
        channels = f" on {', '.join(wanted.channels)} alone" if wanted.channels else ""
        words.append(f"{', '.join(names)} at {radius}{channels}")
        if wanted.defense != "none":
            knows = "knows" if wanted.knowledge == "adaptive" else "does not know"
            words.append(f"the attacker {knows} the defense")
    return "; ".join(filter(None, words))


def _corrected_score(row: Row) -> str:
    """Return what the corrected score of a row counts; "" if its label says so."""
    measured, wanted = row.published, row.corrected
    if wanted is None:
        return ""
    card = registry.load("datasets").get(wanted.dataset)
    masks = card is not None and card.task == "segmentation"
    goal = parse_objective(wanted.objective)
    if goal.name != "untargeted":
        if not masks:
            return "images on which the goal is not reached"
        named = str(goal.parameters.get("name", ""))
        return f"Dice of {named}" if named else "1 - Dice with the wanted masks"
    defense = registry.load("defenses").get(parse(wanted.defense).name)
    guarded = defense is not None and defense.kind == "detector"
    if not guarded and measured is not None and not measured.goal:
        same = ("dice",) if masks else ("accuracy",)
        if parse(measured.reading).name in same:
            return ""
    if masks:
        return "mean Dice"
    return "images right or rejected" if guarded else "images still right"
