"""The committed results of the studies: complete, of the present protocols, and each judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.errors import DataError
from robustbench_med.studies.evidence import evidence_of
from robustbench_med.studies.measure import key_today
from robustbench_med.studies.outcome import read_outcomes
from robustbench_med.studies.study import Study, studies
from robustbench_med.studies.verdict import Verdict

CHECKOUT = Path(__file__).parents[2]
RESULTS = CHECKOUT / "results" / "studies"
DATA = CHECKOUT.parent / "shared" / "data"


@pytest.mark.parametrize("study", studies().values(), ids=studies())
def test_every_published_protocol_of_a_study_was_measured(study: Study) -> None:
    stored = read_outcomes(RESULTS, study.name)
    assert {name: outcome.measured for name, outcome in stored.items()} == study.measurements()


@pytest.mark.slow
@pytest.mark.parametrize("study", studies().values(), ids=studies())
def test_the_outcomes_are_of_these_protocols_images_and_weights(study: Study) -> None:
    """Those of victims that are trained here are left out, for other machines round otherwise."""
    stored, cards = read_outcomes(RESULTS, study.name), registry.load("models")
    for name, measured in study.measurements().items():
        names = (measured.victim, measured.surrogate or measured.victim)
        if any(cards[victim].trained_here for victim in names):
            continue
        try:
            assert stored[name].key == key_today(study, name, data=DATA), name
        except DataError as error:
            pytest.skip(str(error))


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
