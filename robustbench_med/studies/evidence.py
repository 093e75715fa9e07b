"""Evidence: what a study's published protocols and this bench's records say of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustbench_med import registry
from robustbench_med.bench.record import Stored
from robustbench_med.errors import ResultsError, UnknownNameError, VictimError
from robustbench_med.models.trained_here import trained_card
from robustbench_med.spec import parse
from robustbench_med.stats import Estimate
from robustbench_med.stats.patients import resampled_patients, resamples
from robustbench_med.studies.outcome import Outcome, read_outcomes
from robustbench_med.studies.readings import (
    Answers,
    Change,
    Repeated,
    change_of,
    compare,
    counts_successes,
    repeated,
)
from robustbench_med.studies.study import Claim, Corrected, Published, Quirk, Row, Study
from robustbench_med.studies.verdict import Verdict, judge_row, judge_study
from robustbench_med.worst_case import lowest, owners_of, rung_of, score_table


class RowEvidence(NamedTuple):
    """One row of a study with all that is known of it.

    Attributes:
        row: the row.
        published_before, published_after: the paper's numbers; None if they could not be read.
        outcome: the answers under the published protocol; None if it has not run, and for a row
            that compares two others.
        here: the paper's reading of these answers.
        corrected: the worst case in this bench's records; None if they have not been made.
        flagged: whether a flag was raised on one of these records.
        verdict: of the published protocol.
        corrected_verdict: of this bench's protocol: of the direction alone, because its score is
            another than the paper's.
        failure: why a stored outcome cannot be used, or "".
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


class QuirkEvidence(NamedTuple):
    """A quirk with the number that it moves.

    Attributes:
        quirk: the quirk.
        row: the row whose number it moves.
        kept, removed: the row's score under attack with the quirk and without it; None if it was
            not measured or cannot be removed alone.
    """

    quirk: Quirk
    row: Row
    kept: Estimate | None
    removed: Estimate | None


class StudyEvidence(NamedTuple):
    """A study with the evidence for each of its rows and quirks, and its verdicts."""

    study: Study
    rows: tuple[RowEvidence, ...]
    quirks: tuple[QuirkEvidence, ...] = ()

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
    return [_study(study, results, records) for study in studies]


@dataclass(frozen=True)
class _Found:
    """What a results folder holds of a study: outcomes and scores by the id of a measurement."""

    outcomes: dict[str, Outcome]
    here: dict[str, Repeated]
    corrected: dict[str, Repeated]
    flagged: frozenset[str]
    failures: dict[str, str]


def _study(study: Study, results: Path, records: Sequence[Stored]) -> StudyEvidence:
    outcomes, failures = _outcomes(study, results)
    here = {
        name: repeated(outcome.measured.reading, _answers(outcome), outcome.samples)
        for name, outcome in outcomes.items()
    }
    corrected, flagged = {}, set()
    for row in study.rows:
        matching = [] if row.corrected is None else matching_records(row.corrected, records)
        if matching and row.corrected:
            corrected[row.id] = worst_case(matching, row.corrected.eps)
        if any(stored.record.doubts for stored in matching):
            flagged.add(row.id)
    found = _Found(outcomes, here, corrected, frozenset(flagged), failures)
    return StudyEvidence(
        study,
        tuple(_row(study, row, found) for row in study.rows),
        tuple(_quirk(study, quirk, here) for quirk in study.quirks),
    )


def _outcomes(study: Study, results: Path) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Return the outcomes that are still those of the study, and why others cannot be used."""
    wanted = study.measurements()
    try:
        stored = read_outcomes(results, study.name)
    except ResultsError as error:
        # not where the folder lies on this machine
        reason = str(error).replace(str(results), results.name)
        return {}, dict.fromkeys(wanted, reason)
    usable, failures = {}, {}
    for name, measured in wanted.items():
        outcome = stored.get(name)
        if outcome is None or outcome.measured != measured:
            continue  # not made yet, or of an older version of the study
        if _weights(measured) in (outcome.weights, None):
            usable[name] = outcome
        else:
            failures[name] = "made with other weights: run the study again"
    return usable, failures


def _weights(measured: Published) -> tuple[str, str] | None:
    """Return the checksums of a measurement's weights today; None if they are not here."""
    names = (measured.victim, measured.surrogate or measured.victim)
    try:
        cards = [registry.find("models", name) for name in names]
        victim, attacked = (trained_card(c) if c.trained_here else c for c in cards)
    except (UnknownNameError, VictimError):
        return None
    return victim.sha256, attacked.sha256


def _row(study: Study, row: Row, found: _Found) -> RowEvidence:
    before, after = (
        reference.value if (reference := study.reference(name)) else None
        for name in (row.before, row.after)
    )
    parts = row.compares or (row.id,)
    here, corrected = _change(parts, found.here), _change(parts, found.corrected)
    published = after - before if after is not None and before is not None else None
    return RowEvidence(
        row,
        before,
        after,
        found.outcomes.get(row.id),
        here,
        corrected,
        bool(found.flagged & set(parts)),
        judge_row(here and here.effect, row.claim, published),
        judge_row(corrected and corrected.effect, claim_of_corrected(study, row)),
        next((found.failures[part] for part in parts if part in found.failures), ""),
    )


def _change(parts: Sequence[str], scores: dict[str, Repeated]) -> Change | None:
    """Return the change of a row, or between two rows; None if one has no score."""
    if any(part not in scores for part in parts):
        return None
    known = [scores[part] for part in parts]
    return change_of(known[0]) if len(known) == 1 else compare(*known)


def _quirk(study: Study, quirk: Quirk, here: dict[str, Repeated]) -> QuirkEvidence:
    kept, removed = (
        None if name not in here else change_of(here[name]).after
        for name in (quirk.moves, f"{quirk.moves}.{quirk.id}")
    )
    return QuirkEvidence(quirk, study.row(quirk.moves), kept, removed)


def claim_of_corrected(study: Study, row: Row) -> Claim:
    """Return the claim about the score of this bench, which falls where an attack succeeds."""
    if row.corrected is not None and row.corrected.claim is not None:
        return row.corrected.claim
    if row.claim == "unchanged":
        return "unchanged"
    if row.compares is None:
        return "falls"
    opposite: dict[Claim, Claim] = {"rises": "falls", "falls": "rises"}
    return opposite[row.claim] if successes_counted(study, row) else row.claim


def successes_counted(study: Study, row: Row) -> bool:
    """Return whether a row's published score rises where an attack succeeds."""
    measured = (study.row(row.compares[0]) if row.compares else row).published
    return measured is not None and counts_successes(measured)


def _answers(outcome: Outcome) -> Answers:
    n = len(outcome.samples)
    truth = np.zeros(n, dtype=np.int64) if outcome.truth is None else np.array(outcome.truth)
    return Answers(truth, np.array(outcome.clean), np.array(outcome.attacked), outcome.patient_ids)


def matching_records(wanted: Corrected, records: Sequence[Stored]) -> list[Stored]:
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
            and set(case.channels) == set(wanted.channels)
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


def worst_case(records: Sequence[Stored], eps: float) -> Repeated:
    """Return the score of clean images and the worst case at a radius.

    Args:
        records: of one victim on the same images, one an attack, each with that radius.
        eps: the radius.
    """
    table = lowest([_two_columns(stored, eps) for stored in records])
    values = table.to_numpy(dtype=np.float64)
    weights = resamples(len(values), owners_of(table, records[0]))
    repeats = (weights @ values) / weights.sum(1, keepdims=True)
    before, after = values.mean(0)
    samples = tuple(map(str, table.index))
    return Repeated(before, after, repeats.T, resampled_patients(weights), samples)
