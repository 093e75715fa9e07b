"""The committed results of the studies: complete, of the present protocols, and each judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_med.bench import store
from robustbench_med.studies.evidence import evidence_of
from robustbench_med.studies.outcome import read_outcomes
from robustbench_med.studies.study import Study, studies
from robustbench_med.studies.verdict import Verdict

RESULTS = Path(__file__).parents[2] / "results" / "studies"


@pytest.mark.parametrize("study", studies().values(), ids=studies())
def test_every_published_protocol_of_a_study_was_measured(study: Study) -> None:
    stored = read_outcomes(RESULTS, study.name)
    for name, measured in study.measurements().items():
        assert stored[name].measured == measured, name
        assert stored[name].key


@pytest.mark.slow
def test_every_row_of_a_study_has_its_numbers() -> None:
    records, damaged = store.read_all(RESULTS)
    assert not damaged
    for evidence in evidence_of(studies().values(), RESULTS, records):
        assert evidence.verdict != Verdict.CANNOT_BE_JUDGED, evidence.study.name
        for row in evidence.rows:
            where = (evidence.study.name, row.row.id)
            assert not row.failure, where
            if row.row.published is not None:
                assert row.here is not None, where
            if row.row.corrected is not None:
                assert row.corrected is not None, where
        for quirk in evidence.quirks:
            if quirk.quirk.without:
                assert quirk.removed is not None, (evidence.study.name, quirk.quirk.id)
