"""Evidence: what a study's published protocol and this bench's records say of each of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustbench_med.bench.record import Stored
from robustbench_med.errors import ResultsError
from robustbench_med.spec import parse
from robustbench_med.stats import intervals
from robustbench_med.stats.patients import resampled_patients, resamples
from robustbench_med.studies.outcome import Outcome, read_outcome
from robustbench_med.studies.readings import Answers, Change, read_change
from robustbench_med.studies.study import Claim, Corrected, Row, Study
from robustbench_med.studies.verdict import Verdict, judge_row, judge_study
from robustbench_med.worst_case import lowest, owners_of, rung_of, score_table


class RowEvidence(NamedTuple):
    """One row of a study with all that is known of it.

    Attributes:
        row: the row.
        published_before, published_after: the paper's numbers; None if they could not be read.
        outcome: the answers under the published protocol; None if it has not run.
        here: the paper's reading of these answers.
        corrected: the worst case in this bench's records; None if they have not been made.
        flagged: whether a flag was raised on one of these records.
        verdict: of the published protocol.
        corrected_verdict: of this bench's protocol: of the direction alone, because its score is
            another than the paper's.
        failure: why a stored outcome cannot be read, or "".
    """

    row: Row
    published_before: float | None
    published_after: float | None
    outcome: Outcome | None
    here: Change | None
    corrected: Change | None
    flagged: bool
    verdict: Verdict
    corrected_verdict: Verdict
    failure: str = ""


class StudyEvidence(NamedTuple):
    """A study with the evidence for each of its rows, and its verdicts."""

    study: Study
    rows: tuple[RowEvidence, ...]

    @property
    def verdict(self) -> Verdict:
        """Whether the published protocol gives the published result here."""
        return judge_study(r.verdict for r in self.rows if r.row.primary)

    @property
    def corrected_verdict(self) -> Verdict:
        """Whether the claim stands under this bench's protocol."""
        return judge_study(r.corrected_verdict for r in self.rows if r.row.primary)


def evidence_of(
    studies: Iterable[Study], results: Path, records: Sequence[Stored]
) -> list[StudyEvidence]:
    """Return the evidence for studies in a results folder."""
    return [
        StudyEvidence(study, tuple(_row(study, row, results, records) for row in study.rows))
        for study in studies
    ]


def _row(study: Study, row: Row, results: Path, records: Sequence[Stored]) -> RowEvidence:
    before, after = (
        reference.value if (reference := study.reference(name)) else None
        for name in (row.before, row.after)
    )
    outcome, failure = None, ""
    try:
        outcome = read_outcome(results, study.name, row.id)
    except ResultsError as error:
        failure = str(error).replace(
            str(results), results.name
        )  # not where it lies on this machine
    if outcome is not None and outcome.measured != row.published:
        outcome = None  # of an older version of the study
    here = None if outcome is None else read_change(outcome.measured.reading, _answers(outcome))
    matching = [] if row.corrected is None else _matching(row.corrected, records)
    corrected = worst_change(matching, row.corrected.eps) if matching and row.corrected else None
    change = after - before if after is not None and before is not None else None
    return RowEvidence(
        row,
        before,
        after,
        outcome,
        here,
        corrected,
        any(stored.record.doubts for stored in matching),
        judge_row(here and here.effect, row.claim, change),
        judge_row(corrected and corrected.effect, _claim_of_corrected(row)),
        failure,
    )


def _claim_of_corrected(row: Row) -> Claim:
    """Return the claim about the score of this bench, which falls where an attack succeeds."""
    return "unchanged" if row.claim == "unchanged" else "falls"


def _answers(outcome: Outcome) -> Answers:
    return Answers(
        np.array(outcome.truth),
        np.array(outcome.clean),
        np.array(outcome.attacked),
        outcome.patient_ids,
    )


def _matching(wanted: Corrected, records: Sequence[Stored]) -> list[Stored]:
    """Return the records that a row asks for, if there is one for each of its attacks."""
    of_attack: dict[str, Stored] = {}
    for stored in records:
        case = stored.record.case
        if (
            stored.record.status == "ok"
            and case.dataset == wanted.dataset
            and case.victim == wanted.victim
            and (case.surrogate or "") == wanted.surrogate
            and case.norm == wanted.norm
            and parse(case.defense).name == parse(wanted.defense).name
            and (case.defense == "none" or case.knowledge == wanted.knowledge)
            and case.objective == wanted.objective
            and rung_of(wanted.eps, case.ladder) >= 0
        ):
            of_attack.setdefault(case.attack, stored)
    if not set(wanted.attacks) <= set(of_attack):
        return []
    return [of_attack[name] for name in wanted.attacks]


def _two_columns(stored: Stored, eps: float) -> pd.DataFrame:
    """Return the score table of a record with two columns: 0 clean, 1 the radius."""
    columns = [0, rung_of(eps, stored.record.case.ladder) + 1]
    return score_table(stored)[columns].set_axis([0, 1], axis=1)


def worst_change(records: Sequence[Stored], eps: float) -> Change:
    """Return the score of clean images, the worst case at a radius, and their paired difference.

    Args:
        records: of one victim on the same images, one an attack, each with that radius.
        eps: the radius.
    """
    table = lowest([_two_columns(stored, eps) for stored in records])
    values = table.to_numpy(dtype=np.float64)
    patients = owners_of(table, records[0])
    weights = resamples(len(values), patients)
    repeats = (weights @ values) / weights.sum(1, keepdims=True)
    before, after = (intervals.mean(values[:, rung], patients) for rung in (0, 1))
    effect = intervals.interval(
        after.value - before.value,
        repeats[:, 1] - repeats[:, 0],
        n_patients=resampled_patients(weights),
        bounds=(-1.0, 1.0),
    )
    return Change(before, after, effect)
