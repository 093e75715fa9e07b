"""Medians and areas under the curve do not depend on how many resamples are looked at together."""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_med.metrics.classification import Predictions, auc_repeats
from robustbench_med.stats import intervals, patients
from robustbench_med.stats.patients import few_at_a_time, resamples


@pytest.mark.parametrize("known", [True, False])
def test_values_are_equal_to_the_last_bit(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    rng = np.random.default_rng(0)
    n = 200
    owners = rng.integers(0, 40, n).astype(np.str_) if known else None
    weights = resamples(n, owners, replicates=300)
    values = np.where(rng.random(n) < 0.3, np.inf, rng.random(n))
    truth, scores = rng.random((n, 1)) < 0.4, rng.random((n, 1)).round(1)
    predictions = Predictions(truth, scores > 0.5, np.ones((n, 1), np.bool_), scores)
    results = []
    for at_once in (1, 7 * n, 2**40):
        monkeypatch.setattr(patients, "_AT_ONCE", at_once)
        assert np.array_equal(np.concatenate(list(few_at_a_time(weights))), weights)
        median = intervals.median(values, weights)
        area = auc_repeats(predictions, 0, weights)
        results.append([median.value, median.low, median.high, *area.tolist()])
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 303


def test_no_resample_is_lost_where_there_are_no_images() -> None:
    weights = resamples(0, None, replicates=5)
    assert [piece.shape for piece in few_at_a_time(weights)] == [(5, 0)]
