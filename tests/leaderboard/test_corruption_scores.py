"""MedMNIST-C through the bench: its cases, its levels, and BE and rBE on the page."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

import robustbench_med as rm
from leaderboard.boards.board import Board
from leaderboard.boards.corruption_scores import balanced_error, corruption_scores
from leaderboard.boards.ranking import make_boards
from leaderboard.page import render
from robustbench_med.bench.plan import plan
from robustbench_med.bench.suite import Grid, Suite, find_suite, override
from robustbench_med.corruption_tables import LEVELS, corruption_tables
from robustbench_med.errors import SpecError
from robustbench_med.evaluation import Evaluation

ABOUT = {"name": "toy", "title": "Toy", "summary": "", "source": "", "seed": 0}
ATTACKS = [
    f"medmnist_c(table='pneumoniamnist', corruption='{name}')"
    for name in ("pixelate", "contrast_up")
]


def suite_of(dataset: str, *attacks: str, **grid: object) -> Suite:
    fields = {"datasets": [dataset], "victims": ["*"], "attacks": attacks, "n": 4}
    return Suite.model_validate(ABOUT | {"grids": [fields | grid]})


def test_a_table_gives_one_case_for_each_of_its_corruptions() -> None:
    suite = suite_of("phantom_chest", "medmnist_c(table='octmnist')", victims=["chest_resnet"])
    planned, failures = plan(suite)
    assert not failures
    names = [item.case.parameters["corruption"] for item in planned]
    assert names == list(corruption_tables()["octmnist"].corruptions)
    assert {item.case.ladder for item in planned} == {LEVELS}


@pytest.mark.parametrize(
    ("attack", "grid", "message"),
    [
        ("medmnist_c", {}, "expected a table for phantom_chest, which is not of MedMNIST"),
        (
            "medmnist_c(table='octmnist', severity=0.5)",
            {},
            "expected severities in 0.2, .* got 0.5",
        ),
        ("medmnist_c(table='oct')", {}, "expected table in bloodmnist"),
        ("medmnist_c(table='octmnist', corruption='gamma_corr_up')", {}, "expected corruption of"),
    ],
)
def test_what_no_table_has_is_refused_before_anything_runs(
    attack: str, grid: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        plan(suite_of("phantom_chest", attack, **grid))


def test_the_suite_and_a_call_without_severity_run_the_five_levels() -> None:
    assert find_suite("corruptions").grids[0].ladder == LEVELS
    assert Grid(datasets=("toy",), attacks=("medmnist_c",)).ladder == LEVELS
    assert Grid(datasets=("toy",), attacks=("medmnist_c", "motion")).ladder == (0.25, 0.5, 0.75, 1)
    changed = override(find_suite("quick"), {"attacks": ["medmnist_c"]}, None)
    assert {grid.ladder for grid in changed.grids} == {LEVELS}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return rm.evaluate("chest_resnet", "phantom_chest", ATTACKS, n=12, seed=1)


@pytest.fixture(scope="module")
def board(evaluation: Evaluation) -> Board:
    (made,) = make_boards(evaluation.records)
    return made


def test_be_and_rbe_follow_the_formulas_of_medmnist_c(evaluation: Evaluation, board: Board) -> None:
    (found,) = corruption_scores(board, board.rows[0])
    table = corruption_tables()["pneumoniamnist"]
    samples = evaluation.records[0].samples
    errors = [
        1 - balanced_accuracy_score(list(rows["truth"]), list(rows["prediction"]))
        for _, rows in samples.groupby("eps")
    ]
    assert len(errors) == 6
    assert errors[0] == pytest.approx(found.clean)
    first, reference = found.scores[0], table.corruptions["pixelate"]
    assert first.name == "pixelate"
    assert first.error == pytest.approx(np.mean(errors[1:]))
    assert first.be == pytest.approx(np.mean(errors[1:]) / reference.error)
    added = np.mean(errors[1:]) - errors[0]
    assert first.rbe == pytest.approx(added / (reference.error - table.clean_error))
    # the reference network is better with more contrast than without
    assert found.scores[1].name == "contrast_up"
    assert np.isnan(found.scores[1].rbe)
    assert np.isfinite(found.rbe)
    assert found.be == pytest.approx(np.mean([score.be for score in found.scores]))
    assert len(found.missing) == 11


def test_the_page_shows_the_scores_and_what_they_cannot_be_compared_with(board: Board) -> None:
    page = render([board], title="Toy", suite="toy")
    assert "Scores of MedMNIST-C" in page
    assert "The images are 64×64" in page
    assert "did not rise under contrast_up" in page
    assert "Not run: jpeg_compression" in page


def test_a_balanced_error_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    expected = 1 - balanced_accuracy_score(truth, prediction)
    assert balanced_error(truth, prediction) == pytest.approx(expected)
    findings, called = rng.integers(0, 2, (50, 2)), rng.integers(0, 2, (50, 2))
    each = [1 - balanced_accuracy_score(findings[:, i], called[:, i]) for i in range(2)]
    assert balanced_error(findings, called) == pytest.approx(np.mean(each))
    findings[:5, 0] = -1
    each[0] = 1 - balanced_accuracy_score(findings[5:, 0], called[5:, 0])
    assert balanced_error(findings, called) == pytest.approx(np.mean(each))
