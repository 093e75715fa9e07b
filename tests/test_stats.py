"""Intervals equal the reference and keep their coverage, clustered or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from robustbench_med import stats


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 1), (7, 29), (81, 263)])
def test_wilson_is_that_of_statsmodels(successes: int, n: int) -> None:
    found = stats.wilson(successes, n)
    low, high = proportion_confint(successes, n, alpha=0.05, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.value == successes / n
    assert found.low <= found.value <= found.high


def test_wilson_by_the_table() -> None:
    # Newcombe, Statistics in Medicine 1998, table I, method 3 (score, no continuity correction)
    for (successes, n), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        found = stats.wilson(successes, n)
        assert (found.low, found.high) == pytest.approx(expected, abs=6e-5)


def test_of_nothing_is_nan() -> None:
    for found in (stats.wilson(0, 0), stats.cluster_mean(np.zeros(0), None)):
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    nobody = stats.cluster_mean(np.zeros(0), np.zeros(0, dtype=np.str_))
    assert math.isnan(nobody.value)


def test_resamples_draw_whole_patients() -> None:
    owners = np.array(["b", "a", "b", "c", "a", "b"])
    weights = stats.resamples(6, owners, replicates=200)
    assert weights.shape == (200, 6)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 0], weights[:, 5])
    assert np.array_equal(weights[:, 1], weights[:, 4])
    drawn = weights[:, [0, 1, 3]]
    assert (drawn.sum(1) == 3).all()  # as many patients as there are
    assert drawn.mean(0) == pytest.approx(np.ones(3), abs=0.2)


def test_resamples_are_seeded_and_of_single_images_without_patients() -> None:
    a, b = stats.resamples(9, None, seed=1), stats.resamples(9, None, seed=1)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, stats.resamples(9, None, seed=2))
    assert (a.sum(1) == 9).all()
    assert a.shape == (stats.REPLICATES, 9)


def test_resamples_of_no_images_are_empty() -> None:
    assert stats.resamples(0, None, replicates=5).shape == (5, 0)


def test_percentile_leaves_nan_out_and_holds_its_value() -> None:
    repeats = np.append(np.linspace(0, 1, 1001), [np.nan, np.inf])
    found = stats.percentile(0.5, repeats)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert stats.percentile(1.5, repeats).high == 1.5
    assert math.isnan(stats.percentile(float("nan"), repeats).low)
    assert math.isnan(stats.percentile(0.5, np.array([np.nan])).value)


def _coverage(truth: float, draw: object, runs: int) -> float:
    assert callable(draw)
    inside = 0
    for _ in range(runs):
        values, owners = draw()
        found = stats.cluster_mean(values, owners)
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    return inside / runs


@pytest.mark.parametrize("truth", [0.3, 0.8])
@pytest.mark.parametrize("spread", [0.0, 0.15, 0.45])
def test_coverage_by_patient(truth: float, spread: float) -> None:
    """`spread` is the correlation within a patient: beta-binomial outcomes, 40 patients."""
    rng = np.random.default_rng(int(100 * truth + 1000 * spread))
    sizes = np.tile([2, 3, 4, 7], 10)
    owners = np.repeat(np.arange(len(sizes)), sizes).astype(np.str_)

    def draw() -> tuple[NDArray[np.float64], NDArray[np.str_]]:
        total = 1 / spread - 1 if spread else 1e6
        each = rng.beta(truth * total, (1 - truth) * total, len(sizes))
        return (rng.random(len(owners)) < np.repeat(each, sizes)).astype(float), owners

    assert 0.92 <= _coverage(truth, draw, 600) <= 0.99


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.9])
def test_coverage_of_independent_images(truth: float) -> None:
    rng = np.random.default_rng(int(100 * truth))

    def draw() -> tuple[NDArray[np.float64], None]:
        return (rng.random(80) < truth).astype(float), None

    assert 0.92 <= _coverage(truth, draw, 600) <= 0.99


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_patients_who_all_agree_do_not_make_a_point(value: float) -> None:
    owners = np.repeat([f"p{i}" for i in range(10)], 5)
    found = stats.cluster_mean(np.full(50, value), owners)
    alone = stats.wilson(int(50 * value), 50)
    assert found.value == value
    # the images of a patient are worth one: wider than 50 independent images would be
    assert found.high - found.low > 2 * (alone.high - alone.low)
    assert 0 <= found.low <= found.high <= 1


def test_one_patient_says_little() -> None:
    found = stats.cluster_mean(np.array([1.0, 0.0, 1.0, 1.0]), np.full(4, "p"))
    assert found.high - found.low > 0.9


def test_design_effect() -> None:
    owners = np.repeat([f"p{i}" for i in range(20)], 4)
    same = np.repeat(np.tile([0.0, 1.0], 10), 4)
    assert stats.design_effect(same, owners) == pytest.approx(4 * 20 / 19)
    against = np.tile([0.0, 1.0], 40)  # half of every patient: less than by chance, floored at 1
    assert stats.design_effect(against, owners) == 1.0


def test_the_median_of_distances_may_be_infinite() -> None:
    values = np.array([0.1, 0.2, 0.3, np.inf, np.inf])
    weights = stats.resamples(5, None)
    found = stats.median(values, weights)
    assert found.value == 0.3
    assert found.low <= 0.2
    assert found.high == np.inf
    assert stats.median(np.array([1.0, 2.0, 3.0, 4.0]), stats.resamples(4, None)).value == 2.0
    assert np.isnan(stats.median(np.array([]), np.zeros((3, 0))).value)


def test_the_interval_of_a_median_covers() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        values = generator.exponential(size=80)
        found = stats.median(values, stats.resamples(80, None, seed=i, replicates=300))
        hits += found.low <= np.log(2) <= found.high
    assert 0.9 <= hits / 200 <= 0.99
