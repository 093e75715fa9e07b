"""A study from its file to its page, on a shipped victim and a few phantoms."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from leaderboard import write_study_page
from robustbench_med import registry
from robustbench_med.bench.plan import plan
from robustbench_med.bench.record import Stored
from robustbench_med.bench.runner import run_cases
from robustbench_med.bench.store import read_each
from robustbench_med.cli.choices import GRID_OPTIONS
from robustbench_med.cli.choices import suite_of as chosen_suite
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.models.trained_here import home_of
from robustbench_med.studies.evidence import evidence_of, matching_records
from robustbench_med.studies.measure import measure
from robustbench_med.studies.outcome import path_of, read_outcomes, write_outcome
from robustbench_med.studies.protocols import run_protocol
from robustbench_med.studies.study import Corrected, Study, suite_of
from robustbench_med.studies.target import Target
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


def changed(study: Study, published: dict[str, object], **fields: object) -> Study:
    """Return the toy study with other fields of its published protocol, and of itself."""
    values = study.model_dump(mode="json")
    values["rows"][0]["published"] |= published
    return Study.model_validate({**values, "grids": study.grids, **fields})


def test_a_quirk_is_measured_with_and_without_it(tmp_path: Path) -> None:
    quirks = [
        {"id": "small", "what": "It is small.", "moves": "fgsm", "without": {"n": 4}},
        {"id": "auc", "what": "Counted so.", "moves": "fgsm", "without": {"reading": "auc"}},
        {"id": "all", "what": "All images are attacked.", "moves": "fgsm"},
    ]
    study = changed(study_of(), {}, quirks=quirks)
    assert list(study.measurements()) == ["fgsm", "fgsm.small", "fgsm.auc"]
    for name in study.measurements():
        measure(study, name, tmp_path)
    outcomes = read_outcomes(tmp_path, "toy")
    assert len(outcomes["fgsm.small"].samples) == 4
    # another reading is of the same answers: the protocol has not run again
    assert outcomes["fgsm.auc"].seconds == outcomes["fgsm"].seconds
    assert outcomes["fgsm.auc"].attacked == outcomes["fgsm"].attacked
    (evidence,) = evidence_of([study], tmp_path, [])
    small, auc, everything = evidence.quirks
    assert small.kept == auc.kept
    assert small.removed is not None
    assert small.kept is not None
    assert small.removed.high - small.removed.low > small.kept.high - small.kept.low
    assert auc.removed != auc.kept
    assert everything.removed is None


def test_a_device_decides_at_its_threshold_and_is_attacked_without_it(tmp_path: Path) -> None:
    study = study_of(n=8)
    half = measure(study, "fgsm", tmp_path)
    device = measure(changed(study, {"operating_point": "youden"}), "fgsm", tmp_path)
    assert device.linf == half.linf
    before, after = (
        np.log(np.array(outcome.clean)[:, 1] / np.array(outcome.clean)[:, 0])
        for outcome in (half, device)
    )
    shift = after - before
    assert shift == pytest.approx(shift[0], abs=1e-3)  # stored with nine digits
    assert abs(shift[0]) > 0.01


def test_a_quirk_that_does_not_fit_its_row_is_refused() -> None:
    for without, word in (({"bogus": 1}, "bogus"), ({"n": 0}, "n")):
        quirk = {"id": "q", "what": "Odd.", "moves": "fgsm", "without": without}
        with pytest.raises(ValidationError, match=word):
            changed(study_of(), {}, quirks=[quirk])


def test_a_row_may_compare_two_others(tmp_path: Path) -> None:
    study = study_of()
    rows = [row.model_dump(mode="json") for row in study.rows]
    strong = {**rows[0], "id": "strong", "corrected": None}
    strong["published"] = {**rows[0]["published"], "protocol": "fgsm(eps=32/255)"}
    law = {"id": "law", "label": "More is worse", "question": "breaks"}
    study = changed(study, {}, rows=[*rows, strong, {**law, "compares": ["fgsm", "strong"]}])
    for name in study.measurements():
        measure(study, name, tmp_path)
    (evidence,) = evidence_of([study], tmp_path, [])
    weak_row, strong_row, law_row = evidence.rows
    assert law_row.here is not None
    assert weak_row.here is not None
    assert strong_row.here is not None
    assert law_row.here.before == weak_row.here.after
    assert law_row.here.after == strong_row.here.after
    assert law_row.outcome is None
    with pytest.raises(ValidationError, match="measured row"):
        changed(study, {}, rows=[*rows, {**law, "compares": ["fgsm", "law"]}])
    with pytest.raises(ValidationError, match="compares"):
        changed(study, {}, rows=[*rows, law])


def test_an_outcome_of_other_weights_is_not_shown(tmp_path: Path) -> None:
    study = study_of()
    outcome = measure(study, "fgsm", tmp_path)
    stale = outcome.model_copy(update={"weights": ("0" * 64, outcome.weights[1])})
    write_outcome(stale, tmp_path, "toy", "fgsm")
    (evidence,) = evidence_of([study], tmp_path, [])
    assert evidence.rows[0].here is None
    assert "other weights" in evidence.rows[0].failure


def test_a_damaged_card_in_the_cache_costs_the_page_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    card = registry.find("models", "fundus_lesion_model")
    home = home_of(card)
    home.mkdir(parents=True)
    (home / f"{card.name}.json").write_text("{", "utf-8")
    study = changed(study_of(), {"victim": card.name})
    (measured,) = study.measurements().values()
    outcome = measure(study_of(), "fgsm", tmp_path).model_copy(update={"measured": measured})
    write_outcome(outcome, tmp_path, "toy", "fgsm")
    (evidence,) = evidence_of([study], tmp_path, [])
    assert evidence.rows[0].here is not None


def test_masks_are_read_as_dice_against_the_truth_or_the_goal(tmp_path: Path) -> None:
    masks = {"dataset": "phantom_chest_organs", "victim": "organs_unet", "n": 4, "reading": "dice"}
    study = changed(study_of(), {**masks, "protocol": "fgsm(eps=0.0)"})
    against_truth = measure(study, "fgsm", tmp_path)
    assert against_truth.kind == "dice"
    assert against_truth.truth is None
    assert against_truth.clean == against_truth.attacked
    assert np.mean(against_truth.clean) > 0.8
    aimed = changed(study, {"goal": "empty(label=1)"})
    against_goal = measure(aimed, "fgsm", tmp_path)
    assert np.mean(against_goal.clean) < np.mean(against_truth.clean) - 0.1
    # the other organs are wanted where they are
    assert np.array(against_goal.clean)[:, 1:] == pytest.approx(
        np.array(against_truth.clean)[:, 1:]
    )
    with pytest.raises(SpecError, match="bogus"):
        measure(changed(study, {"goal": "bogus(label=1)"}), "fgsm", tmp_path)


def test_a_detector_is_read_by_its_suspicion(tmp_path: Path) -> None:
    study = changed(study_of(), {"defense": "confidence", "reading": "detection_auc"})
    outcome = measure(study, "fgsm", tmp_path)
    assert outcome.kind == "suspicion"
    assert outcome.columns == ("suspicion",)
    (evidence,) = evidence_of([study], tmp_path, [])
    assert evidence.rows[0].here is not None
    assert evidence.rows[0].here.before.value == 0.5


def test_a_study_is_named_only_with_the_suite_of_studies() -> None:
    options = dict.fromkeys((*GRID_OPTIONS, "seed")) | {"study": ["finlayson_2018"]}
    with pytest.raises(SpecError, match="--study"):
        chosen_suite({**options, "suite": "quick"})
    suite = chosen_suite({**options, "suite": "studies"})
    assert {victim for grid in suite.grids for victim in grid.victims} == {
        "pneumonia_resnet",
        "isic_resnet",
    }


def test_a_corrected_row_takes_the_records_of_its_channels() -> None:
    suite = changed(study_of(), {}, rows=[row.model_dump() for row in study_of().rows])
    grid = suite.grids[0].model_copy(
        update={
            "datasets": ("phantom_brain",),
            "victims": ("brain_unet",),
            "attacks": ("uap_gradient",),
            "channels": ("all", "T2", "T1 + FLAIR"),
        }
    )
    planned, failures = plan(suite_of([suite.model_copy(update={"grids": (grid,)})]))
    assert not failures
    records = [
        cast(Stored, SimpleNamespace(record=SimpleNamespace(status="ok", case=each.case)))
        for each in planned
    ]
    wanted = Corrected(
        dataset="phantom_brain", victim="brain_unet", attacks=("uap_gradient",), eps=8 / 255
    )
    for channels in ((), ("T2",), ("FLAIR", "T1")):
        (stored,) = matching_records(wanted.model_copy(update={"channels": channels}), records)
        assert set(stored.record.case.channels) == set(channels)
    assert not matching_records(wanted.model_copy(update={"channels": ("T1",)}), records)


def test_another_victim_meets_the_images_that_were_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(n=4)
    row = study.rows[0]
    assert row.published is not None
    other = row.published.model_copy(
        update={"victim": "chest_densenet", "surrogate": row.published.victim}
    )
    later = row.published.model_copy(update={"protocol": "fgsm(eps=4/255)"})
    ids = {"fgsm": row.published, "transfer": other, "smaller": later}
    rows = tuple(row.model_copy(update={"id": k, "published": p}) for k, p in ids.items())
    study = study.model_copy(update={"rows": rows, "quirks": ()})
    calls: list[str] = []

    def counted(text: str, target: Target) -> torch.Tensor:
        calls.append(text)
        return run_protocol(text, target)

    monkeypatch.setattr("robustbench_med.studies.measure.run_protocol", counted)
    monkeypatch.setattr("robustbench_med.studies.measure._recent", {})
    first, second, third = (measure(study, name, tmp_path) for name in ids)
    assert calls == ["fgsm(eps=8/255)", "fgsm(eps=4/255)"]
    assert first.linf == second.linf != third.linf
    assert first.weights[1] == second.weights[1]
    assert first.attacked != second.attacked
