"""Scores equal scikit-learn's, their repeats too; what is undefined is NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from robustbench_med.cards import DatasetCard, Task
from robustbench_med.metrics.classification import Predictions, flips, score
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resamples

N = 60
NAMES = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc", "f1")


def card(k: int, *, task: Task = "single_label", normal: int | None = 0) -> DatasetCard:
    names = tuple(f"c{i}" for i in range(k))
    return DatasetCard(
        name="toy",
        title="Toy",
        modality="drawn",
        task=task,
        classes=names,
        normal=normal,
        channels=1,
        size=(8, 8),
    )


def classes(k: int, seed: int = 0, *, unlabelled: int = 0) -> tuple[NDArray[Any], ...]:
    """Return truth, predictions that are mostly right, and scores with many ties."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, N)
    scores = np.round(rng.dirichlet(np.ones(k), N) + 0.4 * np.eye(k)[y], 1)
    y[:unlabelled] = -1
    return y, scores.argmax(1), scores


def findings(k: int = 4, seed: int = 0) -> tuple[NDArray[Any], ...]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (N, k))
    scores = np.round(0.6 * rng.random((N, k)) + 0.3 * y, 1)
    y[rng.random((N, k)) < 0.2] = -1
    return y, (scores > 0.5).astype(int), scores


def scored(
    y: NDArray[Any],
    predicted: NDArray[Any],
    scores: NDArray[Any],
    of: DatasetCard,
    weights: NDArray[np.float64] | None = None,
) -> dict[str, Estimate]:
    p = Predictions.of(y, predicted, scores.astype(float), of)
    if weights is None:
        weights = np.ones((1, len(y)))
    return score(p, of, clusters=None, weights=weights)


def by_sklearn(
    y: NDArray[Any],
    predicted: NDArray[Any],
    scores: NDArray[Any],
    of: DatasetCard,
    w: NDArray[np.float64],
) -> dict[str, float]:
    """Return the same scores from scikit-learn alone, by the rules the docstrings state."""
    if of.task == "multi_label":
        each: list[dict[str, float]] = []
        for j in range(y.shape[1]):
            known = y[:, j] >= 0
            each.append(_side(y[known, j], predicted[known, j], scores[known, j], w[known]))
        found = {name: float(np.mean([row[name] for row in each])) for name in each[0]}
        found["balanced_accuracy"] = (found["sensitivity"] + found["specificity"]) / 2
        right = ((y == predicted) | (y < 0)).all(1)[(y >= 0).any(1)]
        return found | {"accuracy": float(right.mean())}
    known = y >= 0
    y, predicted, scores, w = y[known], predicted[known], scores[known], w[known]
    found = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted, sample_weight=w),
    }
    if of.binary:
        ill = 1 - (of.normal or 0)
        side = _side(y == ill, predicted == ill, scores[:, ill], w)
        found |= {"auc": side["auc"], "f1": side["f1"]}
    else:
        columns = range(len(of.classes))
        sides = [_side(y == j, predicted == j, scores[:, j], w) for j in columns]
        found |= {name: float(np.mean([s[name] for s in sides])) for name in ("auc", "f1")}
    if of.normal is not None:
        ill_truth, ill_called = y != of.normal, predicted != of.normal
        found["sensitivity"] = sk.recall_score(ill_truth, ill_called)
        found["specificity"] = sk.recall_score(~ill_truth, ~ill_called)
    return found


def _side(
    y: NDArray[Any], called: NDArray[Any], scores: NDArray[Any], w: NDArray[np.float64]
) -> dict[str, float]:
    kept = w > 0  # roc_auc_score wants to see both classes among those that weigh
    return {
        "sensitivity": sk.recall_score(y, called, sample_weight=w),
        "specificity": sk.recall_score(1 - y, 1 - called, sample_weight=w),
        "auc": sk.roc_auc_score(y[kept], scores[kept], sample_weight=w[kept]),
        "f1": sk.f1_score(y, called, sample_weight=w),
    }


ROWS: dict[str, tuple[tuple[NDArray[Any], ...], DatasetCard]] = {
    "two classes": (classes(2), card(2)),
    "two classes, the second healthy": (classes(2, 3), card(2, normal=1)),
    "three classes": (classes(3), card(3)),
    "three classes, the last healthy": (classes(3, 1), card(3, normal=2)),
    "some unlabelled": (classes(3, 2, unlabelled=7), card(3)),
    "no healthy class": (classes(3, 4), card(3, normal=None)),
    "findings": (findings(), card(4, task="multi_label", normal=None)),
}


@pytest.mark.parametrize("row", ROWS)
def test_every_value_is_that_of_scikit_learn(row: str) -> None:
    (y, predicted, scores), of = ROWS[row]
    found = scored(y, predicted, scores, of)
    assert tuple(sorted(found)) == tuple(sorted(NAMES))
    expected = by_sklearn(y, predicted, scores, of, np.ones(N))
    for name in NAMES:
        if name in expected:
            assert found[name].value == pytest.approx(expected[name], abs=1e-12), name
        else:
            assert math.isnan(found[name].value), name


@pytest.mark.parametrize("row", ROWS)
def test_a_repeat_of_weight_one_is_the_value(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (y, predicted, scores), of = ROWS[row]
    pairs: list[tuple[float, float]] = []

    def spy(value: float, repeat: Any, weights: NDArray[np.float64]) -> Estimate:  # noqa: ANN401
        pairs.append((value, float(repeat(weights)[0])))
        return Estimate(value=value, low=value, high=value)

    monkeypatch.setattr(intervals, "bootstrap", spy)
    scored(y, predicted, scores, of, np.ones((1, N)))
    # accuracy and the sides of one label have score intervals, which are no repeats
    assert len(pairs) == (5 if of.task == "multi_label" else 3)
    for value, repeated in pairs:
        assert repeated == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_weighted_repeat_is_that_of_scikit_learn(
    row: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (y, predicted, scores), of = ROWS[row]
    repeats: list[NDArray[np.float64]] = []

    def spy(value: float, repeat: Any, weights: NDArray[np.float64]) -> Estimate:  # noqa: ANN401
        repeats.append(repeat(weights))
        return Estimate(value=value, low=value, high=value)

    monkeypatch.setattr(intervals, "bootstrap", spy)
    w = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N)).astype(float)
    scored(y, predicted, scores, of, w[None])
    names = ["balanced_accuracy", "auc", "f1"]
    names += ["sensitivity", "specificity"] if of.task == "multi_label" else []
    expected = by_sklearn(y, predicted, scores, of, w)
    assert len(repeats) == len(names)
    for name, found in zip(names, repeats, strict=True):
        assert found.shape == (1,)
        assert found[0] == pytest.approx(expected[name], abs=1e-12), name


def test_auc_counts_a_tie_one_half() -> None:
    y = np.array([0, 0, 1, 1])
    ill = np.array([0.2, 0.5, 0.5, 0.9])  # 3 of 4 pairs in order, 1 tied
    scores = np.stack([1 - ill, ill], 1)
    found = scored(y, (ill > 0.5).astype(int), scores, card(2))
    assert found["auc"].value == pytest.approx(3.5 / 4)
    tied = np.full((4, 2), 0.5)
    assert scored(y, y, tied, card(2))["auc"].value == pytest.approx(0.5)


def test_a_class_absent_from_the_truth() -> None:
    y, predicted, scores = classes(3)
    y = np.where(y == 2, 1, y)  # class 2 is called now and then, and never true
    found = scored(y, predicted, scores, card(3))
    expected = np.mean([np.mean(predicted[y == j] == j) for j in (0, 1)])
    assert found["balanced_accuracy"].value == pytest.approx(expected)  # over the classes there are
    assert math.isnan(found["auc"].value)
    assert found["balanced_accuracy"].low <= expected <= found["balanced_accuracy"].high


def test_a_class_neither_true_nor_called_has_no_f1() -> None:
    y, _, scores = classes(3)
    y = np.where(y == 2, 1, y)
    found = scored(y, y, scores, card(3))
    assert math.isnan(found["f1"].value)
    assert found["accuracy"].value == 1


@pytest.mark.parametrize("only", [0, 1])
def test_one_side_alone_leaves_the_other_undefined(only: int) -> None:
    y = np.full(20, only)
    scores = np.tile([0.4, 0.6], (20, 1))
    found = scored(y, np.ones(20, dtype=int), scores, card(2))
    there, missing = ("sensitivity", "specificity") if only else ("specificity", "sensitivity")
    assert found[there].value == float(only)
    for name in (missing, "auc"):
        assert all(math.isnan(v) for v in (found[name].value, found[name].low, found[name].high))


def test_a_finding_absent_everywhere_makes_its_means_nan() -> None:
    y, predicted, scores = findings()
    y[:, 1] = np.where(y[:, 1] == 1, 0, y[:, 1])
    found = scored(y, predicted, scores, card(4, task="multi_label", normal=None))
    assert math.isnan(found["sensitivity"].value)
    assert math.isnan(found["auc"].value)
    assert math.isnan(found["balanced_accuracy"].value)
    assert 0 < found["specificity"].value < 1


def test_a_finding_that_nobody_labelled_makes_its_means_nan() -> None:
    y, predicted, scores = findings()
    y[:, 1] = -1
    found = scored(y, predicted, scores, card(4, task="multi_label", normal=None))
    for name in ("sensitivity", "specificity", "balanced_accuracy", "auc", "f1"):
        assert math.isnan(found[name].value), name
    assert 0 <= found["accuracy"].value <= 1


def test_an_image_without_any_label_counts_nowhere() -> None:
    y, predicted, scores = findings()
    y[:5] = -1
    of = card(4, task="multi_label", normal=None)
    whole = scored(y, predicted, scores, of)
    rest = scored(y[5:], predicted[5:], scores[5:], of)
    for name in NAMES:
        assert whole[name].value == pytest.approx(rest[name].value), name


def test_a_nan_repeat_is_left_out_and_the_value_stays_inside() -> None:
    y, predicted, scores = classes(2)
    weights = resamples(N, None, replicates=50)
    weights[:5, y == 1] = 0  # resamples that missed a class altogether
    found = scored(y, predicted, scores, card(2), weights)
    assert found["auc"].low <= found["auc"].value <= found["auc"].high
    assert found["auc"].low > 0.5


# --- flips ---------------------------------------------------------------------------------------


def test_flips_of_classes_by_hand() -> None:
    #              attacked and ill: 3, of them 2 called healthy; attacked and healthy: 2, 1 flipped
    y = np.array([1, 2, 1, 0, 0, 1])
    before = np.array([1, 2, 1, 0, 0, 0])
    after = np.array([0, 0, 2, 1, 0, 0])
    attacked = before == y
    found = flips(y, before, after, card(3), attacked=attacked, clusters=None)
    assert found["flips_to_normal"].value == pytest.approx(2 / 3)
    assert found["flips_to_disease"].value == pytest.approx(1 / 2)


def test_flips_need_a_healthy_class_and_someone_to_flip() -> None:
    y = np.array([1, 2])
    attacked = np.ones(2, dtype=bool)
    for of in (card(3, normal=None), card(3)):
        found = flips(y, y, y, of, attacked=attacked, clusters=None)
        assert math.isnan(found["flips_to_disease"].value)
    assert found["flips_to_normal"].value == 0


def test_flips_of_findings_by_hand() -> None:
    y = np.array([[1, 0], [1, 1], [0, 0], [-1, 0], [0, 1]])
    before = np.array([[1, 0], [1, 0], [0, 0], [1, 0], [0, 1]])
    after = np.array([[0, 0], [1, 1], [1, 0], [0, 0], [0, 0]])
    attacked = np.array([True, True, True, True, False])
    found = flips(
        y, before, after, card(2, task="multi_label", normal=None), attacked=attacked, clusters=None
    )
    # rightly called present before: images 0 and 1 (4 was not attacked); hidden in image 0 alone
    assert found["flips_to_normal"].value == pytest.approx(1 / 2)
    # rightly called absent: images 0, 2, 3; planted in image 2. In 1 it was missed, so not planted
    assert found["flips_to_disease"].value == pytest.approx(1 / 3)


def test_intervals_are_by_patient_where_patients_are_known() -> None:
    y, predicted, scores = classes(2)
    of = card(2)
    p = Predictions.of(y, predicted, scores.astype(float), of)
    right = predicted == y
    patients = np.where(right, "a", "b").astype(np.str_)  # the outcome is the patient
    owners = np.char.add(patients, (np.arange(N) % 6).astype(np.str_))
    alone = score(p, of, clusters=None, weights=resamples(N, None))
    grouped = score(p, of, clusters=owners, weights=resamples(N, owners))
    for name in ("accuracy", "balanced_accuracy", "f1"):
        width = grouped[name].high - grouped[name].low
        assert width > 1.3 * (alone[name].high - alone[name].low), name
        assert grouped[name].value == pytest.approx(alone[name].value)
