"""Residual risk, limits and threat models: counted, and said in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from leaderboard.report.document import Remaining
from leaderboard.report.model_boards import boards_of_model, single
from leaderboard.report.residual_risk import least_changes, limits, remaining
from leaderboard.report.threats import not_tested, threat_models
from robustbench_med.bench.record import Stored
from tests.leaderboard.planted import DATASETS, PROVENANCE
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import VICTIM, N, falls, pair, wilson

Maker = Callable[..., Stored]
CT = DATASETS[1].model_copy(update={"native_range": "HU -160..240"})
MRI = DATASETS[1].model_copy(update={"native_range": "0 to the 99th percentile of a volume"})


@pytest.mark.parametrize("n", [6, 7, 64, 1000])
def test_the_least_change_is_the_first_that_the_exact_test_sees(n: int) -> None:
    k = round(least_changes(n) * n)
    assert scipy_stats.binomtest(0, k, 0.5).pvalue <= 0.05
    assert scipy_stats.binomtest(0, k - 1, 0.5).pvalue > 0.05


def test_too_few_images_can_show_no_change() -> None:
    assert np.isnan(least_changes(5))


def residual_risk(records: list[Stored]) -> Remaining:
    (model_board,) = boards_of_model(records, VICTIM)
    tested = remaining(model_board)
    assert tested is not None
    return tested


def test_what_changes_at_the_smallest_radius_is_counted_by_patient(make_stored: Maker) -> None:
    # images 1 and 3 fall first; of patients of three images 0-2 and 3-5
    images, patients = (
        residual_risk(pair(make_stored)),
        residual_risk(pair(make_stored, patients=True)),
    )
    assert (images.units, images.changed, images.of) == ("images", 2, N)
    assert (patients.units, patients.changed, patients.of) == ("patients", 2, 7)
    assert patients.share.value == pytest.approx(2 / 7)
    assert (patients.share.low, patients.share.high) == pytest.approx(wilson(2, 7))
    assert patients.least_seen == pytest.approx(6 / 7)
    assert patients.possible == pytest.approx(1 - 0.05 ** (1 / 7))  # Clopper-Pearson, none of 7
    risk = residual_risk([make_stored(falls(i3=1, i4=1), patients=True)])
    assert risk.changed == 1  # both images are of one patient


def test_controls_and_invalid_records_leave_nothing_to_count(make_stored: Maker) -> None:
    (control,) = boards_of_model([make_stored([1] * N, attack="noise")], VICTIM)
    assert remaining(control) is None
    broken = {"status": "invalid", "reason": "NaN", "rungs": (), "audit": None}
    (invalid,) = boards_of_model([make_stored([1] * N, record=broken)], VICTIM)
    assert remaining(invalid) is None


def test_limits_say_what_the_data_are(make_stored: Maker) -> None:
    dirty = PROVENANCE.model_copy(update={"git_dirty": True, "git_commit": ""})
    sentences = " ".join(limits(boards_of_model(pair(make_stored), VICTIM), ["a last line"]))
    assert "Synthetic data: Chest X-ray. The images are drawn phantoms, not patients" in sentences
    assert "20 images, images treated as independent; a change of fewer than 6 of 20 " in sentences
    assert "(30.0 %) cannot be distinguished from chance" in sentences
    assert "No radius above the largest tried was tested (8/255)" in sentences
    assert sentences.endswith("a last line")
    assert "uncommitted changes" not in sentences
    notes = DATASETS[2].model_copy(update={"notes": ("one image a child",)})
    real = [make_stored([6] * N, dataset=notes, patients=True, record={"provenance": dirty})]
    sentences = " ".join(limits(boards_of_model(real, VICTIM), []))
    assert "Synthetic" not in sentences
    assert "PneumoniaMNIST: one image a child" in sentences
    assert "6 patients; a change of fewer than 6 of 6 patients" in sentences
    fewer = make_stored([6] * 10, case={"n": 10}, threat="query", attack="square")
    both = " ".join(limits(boards_of_model([make_stored([6] * N), fewer], VICTIM), []))
    assert "10 / 20 images, images treated as independent" in both
    assert "fewer than 6 of 10 images (60.0 %) or 6 of 20 images (30.0 %) cannot" in both
    few = " ".join(limits(boards_of_model([make_stored([6] * 5)], VICTIM), []))
    assert "5 images are too few to distinguish any change from chance" in few
    assert "images are treated as independent" not in sentences
    assert "checkout with uncommitted changes" in sentences
    assert "do not state the commit" in sentences


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "change every value of the image by at most 0.5, 1, 2, 4, 8 grey levels (0.5, 1, "),
        ({"dataset": CT}, "by at most 0.784, 1.57, 3.14, 6.27, 12.5 HU (0.5, 1, 2, 4, 8 parts in "),
        ({"dataset": MRI}, "at most 0.5, 1, 2, 4, 8 parts in 255 of the range (0 to the 99th per"),
        ({"case": {"norm": "l2"}, "ladder": (0.5, 1.0)}, "by at most 0.5, 1 in L2"),
        ({"case": {"norm": "l1"}, "ladder": (4.0,)}, "by at most 4 in L1"),
        ({"case": {"norm": "l0"}, "ladder": (16.0,)}, "change at most 16 values of the image"),
        (
            {"case": {"norm": "l2", "budget": "mean_norm"}, "ladder": (0.02,)},
            "by at most 2 % of a training image's mean L2 norm",
        ),
    ],
)
def test_what_the_attacker_may_change_in_plain_words(
    make_stored: Maker, changes: dict[str, Any], words: str
) -> None:
    (tested,) = threat_models(boards_of_model([make_stored([6] * N, **changes)], VICTIM))
    assert words in tested.may
    assert tested.wants == "any wrong call"
    assert tested.attacks == ("PGD-40",)


def test_what_was_tested_is_not_listed_as_missing(make_stored: Maker) -> None:
    alone = " ".join(not_tested(boards_of_model(pair(make_stored), VICTIM)))
    for words in (
        "one perturbation for all images; transfer from another model; no box",
        "black box by queries",
        "Controls, which show",
        "L2, L1, L0",
        "one particular wrong call",
        "behind a defense",
        "Poisoning",
    ):
        assert words in alone
    assert "white box" not in alone
    assert "control: no attack" not in alone  # a control is no attacker
    more = [*pair(make_stored), make_stored([6] * N, attack="square")]
    more += [make_stored([6] * N, attack="noise"), make_stored([6] * N, case={"norm": "l2"})]
    more += [make_stored([6] * N, case={"objective": "targeted(target=1)"})]
    sentences = " ".join(not_tested(boards_of_model(more, VICTIM)))
    for words in ("queries", "Controls, which show", "L2", "one particular wrong call"):
        assert words not in sentences


def test_an_attacker_who_overlooks_the_defense_is_told(make_stored: Maker) -> None:
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    model_boards = boards_of_model([blind], VICTIM)
    assert "An attacker who knows the defense (adaptive)." in not_tested(model_boards)
    (tested,) = threat_models(model_boards)
    assert "defended by Mahalanobis" in tested.who
    assert "ignores the defense" in tested.who
    assert "knows the defense" not in tested.who
    known = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    (tested,) = threat_models(boards_of_model([known], VICTIM))
    assert "The attacker knows the defense." in tested.who
    assert "An attacker who knows the defense (adaptive)." not in not_tested(
        boards_of_model([known], VICTIM)
    )


def test_a_case_in_two_folders_counts_once(make_stored: Maker) -> None:
    first, second = pair(make_stored)
    copy = first._replace(folder=first.folder + "-copy")
    differing = copy._replace(record=first.record.model_copy(update={"n": 3}), folder="zzz")
    unique, lines = single([differing, copy, second, first])
    assert [stored.folder for stored in unique] == sorted([first.folder, second.folder])
    assert lines == [
        f"a second folder has the same record as {first.record.case_id}, which is not used",
        f"a second folder has another record of the same case as {first.record.case_id}, which is "
        "not used",
    ]
