"""A study from its file to its page, on a shipped victim and a few phantoms."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from leaderboard import write_study_page
from robustbench_med.bench.plan import plan
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.store import read_each
from robustbench_med.cli.choices import GRID_OPTIONS
from robustbench_med.cli.choices import suite_of as chosen_suite
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.studies.evidence import evidence_of
from robustbench_med.studies.measure import measure
from robustbench_med.studies.outcome import path_of
from robustbench_med.studies.study import Study, suite_of
from robustbench_med.studies.verdict import Verdict


def study_of(n: int = 12) -> Study:
    measured = {
        "dataset": "phantom_chest",
        "victim": "chest_resnet",
        "protocol": "fgsm(eps=8/255)",
        "reading": "accuracy",
        "n": n,
    }
    corrected = {
        "dataset": "phantom_chest",
        "victim": "chest_resnet",
        "attacks": ["fgsm"],
        "eps": "8/255",
    }
    row = {"id": "fgsm", "label": "FGSM", "question": "breaks", "before": "clean", "after": "under"}
    facts = {"where": "table 1", "kind": "table", "certainty": "read"}
    return Study.model_validate(
        {
            "name": "toy",
            "title": "Toy study",
            "summary": "One step breaks it.",
            "protocol": "FGSM.",
            "substitute": "Phantoms.",
            "conclusion": "It breaks.",
            "references": [
                {"id": "clean", "of": "accuracy", "value": 0.95, **facts},
                {"id": "under", "of": "accuracy under attack", "value": 0.1, **facts},
            ],
            "rows": [{**row, "published": measured, "corrected": corrected}],
            "quirks": [{"id": "all", "what": "All images are attacked.", "moves": "fgsm"}],
            "grids": [
                {
                    "datasets": ["phantom_chest"],
                    "victims": ["chest_resnet"],
                    "attacks": ["fgsm"],
                    "ladder": ["2/255", "8/255"],
                    "n": n,
                }
            ],
        }
    )


def test_a_finished_row_is_read_and_a_changed_one_is_run_again(tmp_path: Path) -> None:
    study = study_of()
    first = measure(study, "fgsm", tmp_path)
    stored = path_of(tmp_path, "toy")
    written = stored.stat().st_mtime_ns
    assert measure(study, "fgsm", tmp_path) == first
    assert stored.stat().st_mtime_ns == written
    assert max(first.linf) == pytest.approx(8 / 255, abs=1e-6)
    assert first.outside == 0
    assert len(first.samples) == len(first.attacked) == 12
    fewer = study_of(n=8)
    assert len(measure(fewer, "fgsm", tmp_path).samples) == 8


def test_a_damaged_outcome_is_named_and_costs_one_row(tmp_path: Path) -> None:
    study = study_of()
    path = path_of(tmp_path, "toy")
    path.parent.mkdir(parents=True)
    path.write_text("{", "utf-8")
    with pytest.raises(ResultsError, match="damaged"):
        measure(study, "fgsm", tmp_path)
    (evidence,) = evidence_of([study], tmp_path, [])
    (row,) = evidence.rows
    assert row.verdict == Verdict.CANNOT_BE_JUDGED
    assert "damaged" in row.failure
    assert "got a damaged file" in write_study_page([evidence], tmp_path).read_text("utf-8")


def test_published_and_corrected_stand_side_by_side_on_the_page(tmp_path: Path) -> None:
    study = study_of()
    measure(study, "fgsm", tmp_path)
    planned, failures = plan(suite_of([study]))
    assert not failures
    run_cases(planned, tmp_path, console=Console(quiet=True), command="c", examples=0, jobs=1)
    records, _ = read_each(tmp_path)
    (evidence,) = evidence_of([study], tmp_path, records)
    (row,) = evidence.rows
    assert row.here is not None
    assert row.corrected is not None
    accuracy = records[0].record.rungs[-1].metrics["accuracy"].value
    assert row.corrected.after.value == pytest.approx(accuracy)
    assert row.corrected.after.value <= row.here.after.value + 1e-9
    assert evidence.corrected_verdict in (Verdict.IN_SIZE, Verdict.IN_DIRECTION)
    html = write_study_page([evidence], tmp_path).read_text(encoding="utf-8")
    for text in ("Toy study", "95 % → 10 %", "One step breaks it.", evidence.verdict.value):
        assert text in html


def test_a_study_is_named_only_with_the_suite_of_studies() -> None:
    options = dict.fromkeys((*GRID_OPTIONS, "seed")) | {"study": ["finlayson_2018"]}
    with pytest.raises(SpecError, match="--study"):
        chosen_suite({**options, "suite": "quick"})
    suite = chosen_suite({**options, "suite": "studies"})
    assert {victim for grid in suite.grids for victim in grid.victims} == {
        "pneumonia_resnet",
        "isic_resnet",
    }
