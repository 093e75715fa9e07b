"""Readings: papers that count the same answers differently get different numbers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.studies.readings import Answers, read_change


def two(p: list[float]) -> np.ndarray:
    return np.array([[1 - v, v] for v in p])


ANSWERS = Answers(
    truth=np.array([0, 0, 1, 1]),
    clean=two([0.1, 0.6, 0.3, 0.9]),  # one healthy and one ill image are wrong at 0.5
    attacked=two([0.7, 0.4, 0.2, 0.4]),
)


def test_accuracy_at_one_half_differs_from_that_at_another_threshold() -> None:
    half = read_change("accuracy(threshold=0.5)", ANSWERS)
    lower = read_change("accuracy(threshold=0.25)", ANSWERS)
    assert (half.before.value, half.after.value) == (0.5, 0.25)
    assert (lower.before.value, lower.after.value) == (0.75, 0.25)
    assert half.effect.value == -0.25
    assert read_change("accuracy", ANSWERS).before.value == 0.5


def test_fooling_counted_of_the_truth_includes_what_was_wrong_before() -> None:
    truth = read_change("fooling_of_truth", ANSWERS)
    clean = read_change("fooling_of_clean", ANSWERS)
    assert (truth.before.value, truth.after.value) == (0.5, 0.75)
    assert (clean.before.value, clean.after.value) == (0.0, 0.75)
    unchanged = ANSWERS._replace(attacked=ANSWERS.clean)
    assert read_change("fooling_of_truth", unchanged).after.value == 0.5
    assert read_change("fooling_of_clean", unchanged).after.value == 0.0


def test_auc_is_that_of_scikit_learn_and_of_three_classes_the_mean() -> None:
    change = read_change("auc", ANSWERS)
    assert change.before.value == pytest.approx(roc_auc_score(ANSWERS.truth, ANSWERS.clean[:, 1]))
    rng = np.random.default_rng(0)
    scores, truth = rng.dirichlet(np.ones(3), 30), np.arange(30) % 3
    three = read_change("auc", Answers(truth, scores, scores))
    assert three.after.value == pytest.approx(
        roc_auc_score(truth, scores, multi_class="ovr", average="macro")
    )


def test_the_difference_is_paired_and_its_interval_is_by_patient() -> None:
    n = 200
    truth = np.arange(n) % 2
    scores = two([0.9 if t else 0.1 for t in truth])
    attacked = scores.copy()
    attacked[:20] = attacked[:20, ::-1]
    alone = read_change("accuracy", Answers(truth, scores, attacked))
    patients = np.repeat([f"p{i}" for i in range(10)], 20)
    grouped = read_change("accuracy", Answers(truth, scores, attacked, patients))
    assert alone.effect.value == grouped.effect.value == pytest.approx(-0.1)
    assert alone.effect.high < 0
    width = [change.effect.high - change.effect.low for change in (alone, grouped)]
    assert width[1] > 2 * width[0]


def test_wrong_readings_are_named() -> None:
    with pytest.raises(UnknownNameError, match="reading"):
        read_change("bogus", ANSWERS)
    with pytest.raises(SpecError, match="target"):
        read_change("called_as", ANSWERS)
    three = Answers(np.arange(3), np.eye(3), np.eye(3))
    with pytest.raises(SpecError, match="two classes"):
        read_change("accuracy(threshold=0.5)", three)
