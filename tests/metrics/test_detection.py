"""Scores of a detector against scikit-learn, and halves that share no patient."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from robustbench_med.errors import DataError
from robustbench_med.metrics.detection import _areas, _tprs, detection, split_twins
from robustbench_med.stats import intervals
from robustbench_med.stats.patients import resamples


def scores(*, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    clean, attacked = rng.normal(0, 1, 300), rng.normal(1.5, 1, 200)
    return (clean.round(), attacked.round()) if ties else (clean, attacked)


@pytest.mark.parametrize("ties", [False, True])
def test_values_are_those_of_scikit_learn(ties: bool) -> None:
    clean, attacked = scores(ties=ties)
    truth = np.repeat([0, 1], [300, 200])
    both = np.concatenate([clean, attacked])
    found = detection(clean, attacked, threshold=1.0)
    assert found["auroc"].value == pytest.approx(sk.roc_auc_score(truth, both))
    for level, name in ((0.01, "tpr_at_1"), (0.05, "tpr_at_5")):
        best = max((attacked >= t).mean() for t in [*both, 99.0] if (clean >= t).mean() <= level)
        assert found[name].value == pytest.approx(best)
    assert found["detected"].value == pytest.approx((attacked > 1).mean())
    assert found["false_alarms"].value == pytest.approx(1000 * (clean > 1).mean())
    alarms = intervals.wilson(int((clean > 1).sum()), 300)
    assert found["false_alarms"].low == pytest.approx(1000 * alarms.low)
    assert all(one.low <= one.value <= one.high for one in found.values())
    assert all(one.low < one.high for one in found.values())


@pytest.mark.parametrize("ties", [False, True])
def test_resamples_are_scored_as_scikit_learn_scores_weights(ties: bool) -> None:
    clean, attacked = scores(ties=ties)
    both, truth = np.concatenate([clean, attacked]), np.arange(500) >= 300
    weights = resamples(500, None, replicates=20)
    areas, rates = _areas(both, truth, weights), _tprs(both, truth, 0.05, weights)
    for w, area, rate in zip(weights, areas, rates, strict=True):
        assert area == pytest.approx(sk.roc_auc_score(truth, both, sample_weight=w))
        drawn = np.repeat(np.arange(500), w.astype(int))
        fpr, tpr, _ = sk.roc_curve(truth[drawn], both[drawn], drop_intermediate=False)
        assert rate == pytest.approx(tpr[fpr <= 0.05].max())


def test_patients_who_repeat_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    clean = np.repeat(rng.normal(0, 1, 30), 10)
    attacked = np.repeat(rng.normal(1, 1, 30), 10)
    names = np.repeat([f"p{i}" for i in range(60)], 10)
    alone = detection(clean, attacked, threshold=0.5)
    known = detection(clean, attacked, patients=(names[:300], names[300:]), threshold=0.5)
    for name, one in alone.items():
        assert known[name].value == one.value
        assert known[name].high - known[name].low > 1.5 * (one.high - one.low)


def test_a_side_without_images_is_undefined() -> None:
    found = detection(np.arange(4.0), np.zeros(0))
    for name in ("auroc", "tpr_at_1", "detected"):
        assert np.isnan(found[name].value)
    assert found["false_alarms"].value == 750
    assert np.isnan(detection(np.zeros(0), np.arange(4.0))["false_alarms"].value)


def test_a_patient_on_both_sides_is_refused() -> None:
    names = np.array(["a", "b"])
    with pytest.raises(DataError, match="expected no patient among both .*, got 1: split them"):
        detection(np.zeros(2), np.ones(2), patients=(names, np.array(["b", "c"])))


def test_halves_share_no_patient_and_go_by_name() -> None:
    ids = np.array([f"i{i}" for i in range(40)])
    patients = np.array([f"p{i // 3}" for i in range(40)])
    first, second = split_twins(ids, patients, seed=3)
    assert sorted([*first, *second]) == list(range(40))
    assert not set(patients[first]) & set(patients[second])
    assert abs(len(set(patients[first])) - len(set(patients[second]))) <= 1
    order = np.random.default_rng(0).permutation(40)
    moved, _ = split_twins(ids[order], patients[order], seed=3)
    assert set(ids[order][moved]) == set(ids[first])
    assert set(ids[split_twins(ids, patients, seed=4)[0]]) != set(ids[first])
    # a twin planted under its patient's name follows the patient
    for row in (first[0], second[0]):
        planted = np.append(patients, patients[row])
        a, b = split_twins(np.append(ids, "twin"), planted, seed=3)
        assert set(a) - {40} == set(first)
        assert (40 in a) == (row in first) != (40 in b)


def test_without_patients_each_image_is_its_own() -> None:
    first, second = split_twins(np.array(["a", "b", "c"]))
    assert (len(first), len(second)) == (1, 2)
    with pytest.raises(DataError, match="expected at least two patients to split, got 1"):
        split_twins(np.array(["a", "b"]), np.array(["p", "p"]))


def test_a_rate_finer_than_one_clean_image_is_undefined() -> None:
    attacked = np.full(10, 2.0)
    found = [detection(np.linspace(0, 1, n), attacked) for n in (19, 20, 99, 100)]
    assert [np.isnan(one["tpr_at_5"].value) for one in found] == [True, False, False, False]
    assert [np.isnan(one["tpr_at_1"].value) for one in found] == [True, True, True, False]
