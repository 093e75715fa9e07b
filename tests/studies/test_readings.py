"""Readings: papers that count the same answers differently get different numbers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.stats import Estimate
from robustbench_med.studies.readings import (
    READINGS,
    SUCCESSES,
    Answers,
    Change,
    change_of,
    compare,
    counts_successes,
    repeated,
)
from robustbench_med.studies.study import Published


def read_change(text: str, answers: Answers) -> Change:
    return change_of(repeated(text, answers, tuple(map(str, range(len(answers.truth))))))


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


def test_a_change_of_no_image_is_bounded_by_the_number_of_images() -> None:
    for n, bound in ((100, 0.05), (20, 0.2)):
        truth = np.arange(n) % 2
        scores = two([0.9 if t and i > n // 5 else 0.1 for i, t in enumerate(truth)])
        change = read_change("accuracy", Answers(truth, scores, scores))
        assert change.effect.value == 0
        assert change.effect.high == -change.effect.low
        assert 0.5 * bound < change.effect.high < bound


def test_wrong_readings_are_named() -> None:
    with pytest.raises(UnknownNameError, match="reading"):
        read_change("bogus", ANSWERS)
    with pytest.raises(SpecError, match="target"):
        read_change("called_as", ANSWERS)
    three = Answers(np.arange(3), np.eye(3), np.eye(3))
    with pytest.raises(SpecError, match="two classes"):
        read_change("accuracy(threshold=0.5)", three)


def test_iou_follows_from_the_dice_of_each_region() -> None:
    before, after = np.array([[1.0, 0.5], [0.8, 0.0]]), np.array([[0.5, 0.5], [0.0, 0.0]])
    answers = Answers(np.zeros(2, dtype=int), before, after)
    assert read_change("dice", answers).before.value == pytest.approx(before.mean())
    assert read_change("iou", answers).before.value == pytest.approx((1 + 1 / 3 + 2 / 3 + 0) / 4)
    assert read_change("iou", answers).after.value == pytest.approx((1 / 3 + 1 / 3) / 4)


def test_one_region_alone_counts_and_images_are_drawn_or_damaged() -> None:
    before, after = np.array([[1.0, 0.5], [0.8, 0.2]]), np.array([[0.5, 0.8], [0.0, 0.7]])
    answers = Answers(np.zeros(2, dtype=int), before, after)
    assert read_change("dice(region=1)", answers).before.value == pytest.approx(0.35)
    assert read_change("iou(region=0)", answers).after.value == pytest.approx((1 / 3 + 0) / 2)
    drawn = read_change("drawn(region=1)", answers)
    assert (drawn.before.value, drawn.after.value) == (0.0, 0.5)
    assert read_change("drawn(region=1, dice=0.7)", answers).after.value == 1.0
    damaged = read_change("damaged", answers)
    assert (damaged.before.value, damaged.after.value) == (0.0, 0.5)
    with pytest.raises(SpecError, match="region"):
        read_change("dice(region=2)", answers)


def test_a_detector_that_cannot_tell_clean_images_apart_has_an_area_of_one_half() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(40, 1))
    attacked = clean + 1
    change = read_change("detection_auc", Answers(np.zeros(40, dtype=int), clean, attacked))
    # of clean images it is one half by definition, which no sample makes uncertain
    assert change.before == Estimate(value=0.5, low=0.5, high=0.5)
    truth = np.repeat([0, 1], 40)
    expected = roc_auc_score(truth, np.concatenate([clean, attacked])[:, 0])
    assert change.after.value == pytest.approx(expected)
    assert change.effect.low > 0


def test_two_rows_are_paired_on_the_same_images_and_independent_on_others() -> None:
    n = 100
    truth = np.arange(n) % 2
    clean = two([0.9 if t else 0.1 for t in truth])
    broken = clean.copy()
    broken[:50] = broken[:50, ::-1]
    worse = broken.copy()
    worse[50:60] = worse[50:60, ::-1]
    names = tuple(map(str, range(n)))
    others = tuple(f"other {i}" for i in range(n))
    first, second = (
        repeated("accuracy", Answers(truth, clean, attacked), names) for attacked in (broken, worse)
    )
    paired, apart = compare(first, second), compare(first, second._replace(samples=others))
    assert paired.before.value == apart.before.value == 0.5
    assert paired.effect.value == apart.effect.value == pytest.approx(-0.1)
    assert paired.effect.high < 0  # ten images of a hundred, the others equal
    widths = [change.effect.high - change.effect.low for change in (paired, apart)]
    assert widths[1] > 1.5 * widths[0]


def test_every_reading_says_whether_it_counts_successes() -> None:
    of_what_is_right = {"accuracy", "auc", "dice", "iou", "detection_auc"}
    assert of_what_is_right | set(SUCCESSES) == set(READINGS)
    assert not of_what_is_right & set(SUCCESSES)
    measured = {"dataset": "d", "victim": "v", "protocol": "fgsm(eps=0.1)"}
    for reading, goal, counts in (
        ("fooling_of_truth", "", True),
        ("dice", "", False),
        ("dice", "empty(label=1)", True),  # the Dice with the masks that the attacker wants
    ):
        published = Published.model_validate({**measured, "reading": reading, "goal": goal})
        assert counts_successes(published) == counts


def test_missed_counts_ill_images_alone() -> None:
    truth = np.array([0, 0, 1, 2, 2, 1])
    clean = np.eye(3)[[0, 1, 1, 2, 0, 1]]
    attacked = np.eye(3)[[0, 0, 0, 0, 0, 2]]
    change = read_change("missed(normal=0)", Answers(truth, clean, attacked))
    assert change.before.value == 0.25
    assert change.after.value == 0.75
    healthy = Answers(np.zeros(3, dtype=int), clean[:3], attacked[:3])
    assert np.isnan(read_change("missed(normal=0)", healthy).after.value)


def test_an_area_counts_order_alone() -> None:
    shifted = two([0.01, 0.02, 0.3, 0.4])  # every image is now called healthy, in the same order
    answers = Answers(np.array([0, 0, 1, 1]), two([0.1, 0.2, 0.8, 0.9]), shifted)
    assert read_change("auc", answers).after.value == 1.0
    assert read_change("accuracy", answers).after.value == 0.5
