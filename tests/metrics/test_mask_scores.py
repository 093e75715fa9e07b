"""Means of mask metrics over images and regions, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from robustbench_med.metrics.segmentation import Regions, mask_metrics, score_masks
from robustbench_med.stats import UNDEFINED, intervals
from robustbench_med.stats.patients import resamples

PARTS: Regions = {"a": (1,), "b": (2,)}


def test_a_score_is_the_mean_over_images_of_the_mean_over_regions() -> None:
    found = {
        "dice": np.array([[1.0, 0.0], [0.5, 0.7], [0.2, 0.4]]),
        "lesion_miss": np.array([[np.nan, 0.5], [np.nan, np.nan], [0.0, 1.0]]),
        "false_alarm": np.full((3, 2), np.nan),
        "pixel_accuracy": np.array([[0.9], [0.8], [np.nan]]),
    }
    score = score_masks(found, regions=PARTS, weights=resamples(3, None))
    values = {name: each.value for name, each in score.items()}
    expected = {
        "dice": (0.5 + 0.6 + 0.3) / 3, "dice[a]": 1.7 / 3, "dice[b]": 1.1 / 3,
        "lesion_miss": 0.5, "lesion_miss[a]": 0.0, "lesion_miss[b]": 0.75,
        "false_alarm": np.nan, "false_alarm[a]": np.nan, "false_alarm[b]": np.nan,
        "pixel_accuracy": 0.85,
    }  # fmt: skip
    assert values == pytest.approx(expected, nan_ok=True)
    assert list(score)[:4] == list(found)
    assert score["false_alarm"] == UNDEFINED
    # resamples without the only lesions are left out, not counted as 0; two images are two patients
    w = resamples(3, None)[:, [0, 2]]
    repeats = (w @ [0.5, 1.0])[w.any(1)] / w.sum(1)[w.any(1)]
    assert score["lesion_miss[b]"] == intervals.interval(0.75, repeats, n_patients=2)


def test_intervals_are_those_of_the_resampled_means() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((40, 2))
    values[rng.random((40, 2)) < 0.3] = np.nan
    values[0] = np.nan
    weights = resamples(40, None, replicates=200)
    score = score_masks({"hd95": values}, regions=PARTS, weights=weights)
    for name, column in {"hd95[a]": values[:, 0], "hd95[b]": values[:, 1]}.items():
        drawn = [np.nanmean(np.repeat(column, w.astype(int))) for w in weights]
        count = int(np.isfinite(column).sum())
        half = scipy_stats.t.ppf(0.975, count - 1) * np.std(drawn) * np.sqrt(count / (count - 1))
        found = score[name].value - score[name].low, score[name].high - score[name].value
        assert found == pytest.approx((half, half))


def test_intervals_widen_where_patients_repeat() -> None:
    rng = np.random.default_rng(1)
    owners = np.repeat([f"p{i}" for i in range(12)], 10)
    dice = np.repeat(rng.random((12, 1)), 10, axis=0)
    width = {}
    for name, clusters in {"images": None, "patients": owners}.items():
        weights = resamples(120, clusters)
        score = score_masks({"dice": dice}, regions={"a": (1,)}, weights=weights)["dice"]
        width[name] = score.high - score.low
    assert width["patients"] / width["images"] == pytest.approx(np.sqrt(10), rel=0.15)


def test_without_images_every_score_is_undefined() -> None:
    nobody = np.zeros((0, 4, 4), dtype=np.int64)
    found = mask_metrics(
        nobody.astype(np.uint8), nobody, regions=PARTS, spacing=None, tolerance=1.0
    )
    assert {v.shape for v in found.values()} == {(0, 2), (0, 1)}
    score = score_masks(found, regions=PARTS, weights=resamples(0, None))
    assert len(score) == 8 + 7 * 2
    assert set(map(str, score.values())) == {str(UNDEFINED)}
