"""Answers: what the evidence on a study says to the questions of the overview, in words."""

from __future__ import annotations

import math
from typing import NamedTuple

from robustbench_med.stats import Estimate
from robustbench_med.studies.evidence import (
    RowEvidence,
    StudyEvidence,
    claim_of_corrected,
    successes_counted,
)
from robustbench_med.studies.outcome import Outcome
from robustbench_med.studies.readings import Change
from robustbench_med.studies.study import Claim, Question, Row, Study
from robustbench_med.studies.verdict import UNCHANGED, Verdict, judge_study

QUESTIONS: dict[Question, str] = {
    "breaks": "Does it break?",
    "transfers": "Does it transfer?",
    "defended": "Does the defense hold?",
    "control": "Do the controls stay unchanged?",
}
UNCLEAR = "Unclear"
# what a question is answered by a change of the score that is worse, none or better for the model
_WORDS: dict[Question, dict[str, str]] = {
    "breaks": {"worse": "Yes", "same": "No", "better": "No"},
    "transfers": {"worse": "Yes", "same": "No", "better": "No"},
    "defended": {"worse": "No", "same": "Yes", "better": "Yes"},
    "control": {"worse": "No", "same": "Yes", "better": "No"},
}


class Answer(NamedTuple):
    """The cell of a study and a question.

    Attributes:
        word: yes, no or unclear, as published; empty if there is none.
        corrected: the word of the corrected protocol where it is another, or "".
        verdict: of the rows that ask; None without an answer.
        numbers: the score before and after, as measured here; those of the first question have a
            cell of their own.
        missing: why there is no answer, or "".
    """

    word: str = ""
    corrected: str = ""
    verdict: Verdict | None = None
    numbers: str = ""
    missing: str = ""


def answer(evidence: StudyEvidence, question: Question) -> Answer:
    """Return a study's answer to a question: of its first primary row that asks it.

    The controls are answered by all primary rows that are one.
    """
    rows = [r for r in evidence.rows if r.row.question == question and r.row.primary]
    if not rows:
        return Answer(missing="the study does not ask this")
    first = rows[0]
    if question == "control":
        verdict = judge_study(r.verdict for r in rows)
        words = [_word(evidence.study, r, r.here, r.verdict) for r in rows]
        word = next((w for w in ("No", UNCLEAR, "Yes") if w in words), "")
        if not word:
            return Answer(missing="not measured yet")
        number = "" if len(rows) == 1 else f"{words.count('Yes')} of {len(rows)} unchanged"
        return Answer(word, "", verdict, number or change_words(first.here))
    here = _word(evidence.study, first, first.here, first.verdict)
    other = _corrected_word(evidence.study, first)
    numbers = "" if question == "breaks" else change_words(first.here or first.corrected)
    if here:
        return Answer(here, other if other != here else "", first.verdict, numbers)
    if other:
        return Answer("", other, first.corrected_verdict, numbers)
    return Answer(missing=first.failure or "not measured yet")


def _word(study: Study, r: RowEvidence, change: Change | None, verdict: Verdict) -> str:
    """Return yes, no or unclear for the change of a row's published score; "" without one."""
    if change is not None and successes_counted(study, r.row):
        change = change._replace(effect=_negative(change.effect))
    return _reply(study, r.row, change, verdict, r.row.claim)


def _corrected_word(study: Study, r: RowEvidence) -> str:
    """Return yes, no or unclear for the change of a row's corrected score; "" without one."""
    return _reply(study, r.row, r.corrected, r.corrected_verdict, claim_of_corrected(study, r.row))


def _negative(e: Estimate) -> Estimate:
    return Estimate(value=-e.value, low=-e.high, high=-e.low)


def _reply(study: Study, row: Row, change: Change | None, verdict: Verdict, claim: Claim) -> str:
    """Return yes, no or unclear for a change that falls where the model gets worse.

    Args:
        study: the study of the row.
        row: the row.
        change: the change of its score; None if it was not measured.
        verdict: on that change.
        claim: what the verdict holds the change against.
    """
    if change is None or math.isnan(change.effect.value):
        return ""
    if verdict == Verdict.CANNOT_BE_JUDGED:
        return UNCLEAR
    low, high = change.effect.low, change.effect.high
    small = low > -UNCHANGED and high < UNCHANGED
    if claim == "unchanged" and small:
        kind = "same"
    elif high < 0:
        kind = "worse"
    elif low > 0:
        kind = "better"
    elif small:
        kind = "same"
    else:
        return UNCLEAR
    if kind == "same" and _without_defense(study, row):
        return "No"  # the score under attack is the same with and without the defense
    return _WORDS[row.question][kind]


def _without_defense(study: Study, row: Row) -> bool:
    """Return whether a row that asks for a defense starts from the score without one."""
    if row.question != "defended" or row.compares is None:
        return False
    return study.row(row.compares[0]).question != "defended"


def size_row(evidence: StudyEvidence) -> RowEvidence | None:
    """Return the row whose numbers and visible change stand for the study; None without one.

    It is the first primary row that asks whether a model breaks, or else whether attacks transfer.
    """
    for question in ("breaks", "transfers"):
        for r in evidence.rows:
            if r.row.question == question and r.row.primary:
                return r
    return None


def size_words(evidence: StudyEvidence, r: RowEvidence | None) -> str:
    """Return the largest change of a row's images and their similarity, in words, or ""."""
    if r is None:
        return ""
    if r.row.compares:  # the change of the images that it ends with
        r = next(other for other in evidence.rows if other.row.id == r.row.compares[1])
    return "" if r.outcome is None else visible_change(r.outcome)


def visible_change(outcome: Outcome) -> str:
    """Return the largest change in grey levels of 255, and the mean SSIM, in words."""
    grey = 255 * max(outcome.linf, default=math.nan)
    words = "" if math.isnan(grey) else f"{grey:.3g}\N{NO-BREAK SPACE}grey levels"
    known = [value for value in outcome.ssim if not math.isnan(value)]
    if known:
        similar = f"{sum(known) / len(known):.2f}".removeprefix("0")
        words += f"{', ' if words else ''}SSIM\N{NO-BREAK SPACE}{similar}"
    return words


def percent(value: float | None) -> str:
    """Return a share of 1 in percent, or a dash.

    >>> percent(0.125)
    '12.5 %'
    """
    return "–" if value is None or math.isnan(value) else f"{100 * value:.3g} %"


def estimate_words(estimate: Estimate | None) -> str:
    """Return an estimate with its interval in percent, or a dash.

    >>> estimate_words(Estimate(value=0.5, low=0.251, high=0.749))
    '50 % [25 to 75]'
    """
    if estimate is None or math.isnan(estimate.value):
        return "–"
    low, high = (f"{100 * bound:.0f}" for bound in (estimate.low, estimate.high))
    exact = estimate.low == estimate.high  # known by definition
    return f"{100 * estimate.value:.0f} %" + ("" if exact else f" [{low} to {high}]")


def change_words(change: Change | None) -> str:
    """Return a score before and after in percent, or a dash."""
    if change is None:
        return "–"
    return f"{_whole(change.before)} → {_whole(change.after)}"


def _whole(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else f"{100 * estimate.value:.0f} %"
