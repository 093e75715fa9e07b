"""Intervals equal the reference and keep their coverage, clustered or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.optimize import brentq
from statsmodels.stats.proportion import proportion_confint

from robustbench_med.stats import intervals
from robustbench_med.stats.patients import (
    REPLICATES,
    design_effect,
    rarer_patients,
    resampled_patients,
    resamples,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 1), (7, 29), (81, 263)])
def test_wilson_is_that_of_statsmodels(successes: int, n: int) -> None:
    found = intervals.wilson(successes, n)
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
        found = intervals.wilson(successes, n)
        assert (found.low, found.high) == pytest.approx(expected, abs=6e-5)


def test_of_nothing_is_nan() -> None:
    for found in (intervals.wilson(0, 0), intervals.cluster_mean(np.zeros(0), None)):
        assert math.isnan(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    nobody = intervals.cluster_mean(np.zeros(0), np.zeros(0, dtype=np.str_))
    assert math.isnan(nobody.value)


def test_resamples_draw_whole_patients() -> None:
    owners = np.array(["b", "a", "b", "c", "a", "b"])
    weights = resamples(6, owners, replicates=200)
    assert weights.shape == (200, 6)
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, 0], weights[:, 5])
    assert np.array_equal(weights[:, 1], weights[:, 4])
    drawn = weights[:, [0, 1, 3]]
    assert (drawn.sum(1) == 3).all()  # as many patients as there are
    assert drawn.mean(0) == pytest.approx(np.ones(3), abs=0.2)


def test_resamples_are_seeded_and_of_single_images_without_patients() -> None:
    a, b = resamples(9, None, seed=1), resamples(9, None, seed=1)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, resamples(9, None, seed=2))
    assert (a.sum(1) == 9).all()
    assert a.shape == (REPLICATES, 9)


def test_resamples_of_no_images_are_empty() -> None:
    assert resamples(0, None, replicates=5).shape == (5, 0)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
@pytest.mark.parametrize(("value", "patients"), [(0.7, 5), (0.97, 12), (0.02, 60)])
def test_an_interval_solves_the_equation_of_the_score(
    value: float, patients: int, bounds: tuple[float, float]
) -> None:
    """Its ends are the values that lie t standard errors, taken there, from the one measured."""
    repeats = value + np.array([-0.03, 0.03, np.nan, np.inf])
    found = intervals.interval(value, repeats, n_patients=patients, bounds=bounds)
    low, high = bounds
    variance = 0.03**2 * patients / (patients - 1)
    images = (value - low) * (high - value) / variance
    t = float(scipy_stats.t.ppf(0.975, patients - 1))

    def beyond(p: float) -> float:
        return (p - value) ** 2 - t**2 * (p - low) * (high - p) / images

    assert found.low == pytest.approx(brentq(beyond, low, value))
    assert found.high == pytest.approx(brentq(beyond, value, high))


def test_without_an_upper_bound_it_is_the_t_interval() -> None:
    repeats = np.array([24.0, 26.0])
    found = intervals.interval(25.0, repeats, n_patients=11, bounds=(0.0, np.inf))
    half = float(scipy_stats.t.ppf(0.975, 10)) * math.sqrt(1.1)
    assert (found.low, found.high) == pytest.approx((25 - half, 25 + half))
    assert intervals.interval(0.5, repeats, n_patients=3, bounds=(0.0, np.inf)).low == 0.0


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_value_that_no_resample_moves_is_no_point(value: float) -> None:
    found = intervals.interval(value, np.full(9, value), n_patients=20)
    t = float(scipy_stats.t.ppf(0.975, 19))
    middle = (value + t * t / 40) / (1 + t * t / 20)
    half = t * math.sqrt(value * (1 - value) / 20 + t * t / 1600) / (1 + t * t / 20)
    assert found.low == pytest.approx(max(middle - half, 0.0), abs=1e-12)
    assert found.high == pytest.approx(min(middle + half, 1.0))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_value_at_a_bound_that_resamples_leave_is_no_error(value: float) -> None:
    """As the share found at 1 % false alarms may be: 0, and more in some resamples."""
    found = intervals.interval(value, np.array([value, 0.5]), n_patients=20)
    assert found == intervals.interval(value, np.full(2, value), n_patients=20)


def test_one_patient_leaves_everything_open() -> None:
    found = intervals.interval(0.9, np.full(9, 0.9), n_patients=1)
    assert (found.low, found.high) == (0.0, 1.0)


def test_of_nothing_an_interval_is_undefined() -> None:
    assert math.isnan(intervals.interval(float("nan"), np.ones(3), n_patients=5).low)
    assert math.isnan(intervals.interval(0.5, np.array([np.nan]), n_patients=5).value)


def test_patients_are_counted_by_how_they_are_drawn() -> None:
    owners = np.array(["b", "a", "b", "c", "a", "b"])
    weights = resamples(6, owners, replicates=200)
    assert resampled_patients(weights) == pytest.approx(6**2 / (3**2 + 2**2 + 1))
    two = np.array([1, 0, 1, 1, 0, 0], dtype=bool)
    assert resampled_patients(weights, two) == pytest.approx(3**2 / (2**2 + 1))
    assert resampled_patients(resamples(300, None)) == pytest.approx(300)
    found = intervals.bootstrap(
        0.5, lambda w: w[:, 0] / w.sum(1), weights, among=np.array([1, 0, 0, 0, 0, 1], dtype=bool)
    )
    assert (found.low, found.high) == (0.0, 1.0)  # both images are of one patient


def _coverage(truth: float, draw: object, runs: int) -> float:
    assert callable(draw)
    inside = 0
    for _ in range(runs):
        values, owners = draw()
        found = intervals.cluster_mean(values, owners)
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
    found = intervals.cluster_mean(np.full(50, value), owners)
    alone = intervals.wilson(int(50 * value), 50)
    assert found.value == value
    # the images of a patient are worth one: wider than 50 independent images would be
    assert found.high - found.low > 2 * (alone.high - alone.low)
    assert 0 <= found.low <= found.high <= 1


def test_one_patient_says_nothing() -> None:
    found = intervals.cluster_mean(np.repeat([0.0, 1.0], 500), np.full(1000, "p"))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_one_patient_with_nearly_all_images_says_little() -> None:
    values = np.r_[np.repeat([0.0, 1.0], 500), np.ones(5), np.zeros(5)]
    found = intervals.cluster_mean(values, np.r_[np.full(1000, "p"), np.arange(10).astype(str)])
    assert found.high - found.low > 0.9


def test_design_effect() -> None:
    sizes = np.full(20, 4)
    same = np.tile([0.0, 4.0], 10)
    assert design_effect(same, sizes) == pytest.approx(4 * 20 / 19)
    against = np.full(20, 2.0)  # half of every patient: less than by chance
    assert design_effect(against, sizes) == pytest.approx(1 + 3 / 20**2)
    # a single patient says nothing of how alike the images of the others are: all alike
    alone = np.eye(20)[0]
    assert design_effect(alone, sizes) == pytest.approx(4)
    # with the rarer outcome: a patient of 8 images and one of 2, together worth 100 / 68
    sizes, right = np.repeat([8, 2], 10), np.eye(20)[[0, 19]].sum(0)
    alike = (10 * 64 + 10 * 4) / 100
    found = 20 / 19 * ((right - 0.02 * sizes) ** 2).sum() / (0.02 * 0.98 * 100)
    assert design_effect(right, sizes) == pytest.approx(found + (alike - found) * (68 / 100) ** 2)


def test_the_median_of_distances_may_be_infinite() -> None:
    values = np.array([0.1, 0.2, 0.3, np.inf, np.inf])
    weights = resamples(5, None)
    found = intervals.median(values, weights)
    assert found.value == 0.3
    assert found.low <= 0.2
    assert found.high == np.inf
    assert intervals.median(np.array([1.0, 2.0, 3.0, 4.0]), resamples(4, None)).value == 2.0
    assert np.isnan(intervals.median(np.array([]), np.zeros((3, 0))).value)


def test_the_interval_of_a_median_covers() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        values = generator.exponential(size=80)
        found = intervals.median(values, resamples(80, None, seed=i, replicates=300))
        hits += found.low <= np.log(2) <= found.high
    assert 0.9 <= hits / 200 <= 0.99


def test_few_patients_whose_failures_are_one_patients_get_the_interval_of_shares() -> None:
    # all distance from 1 is one patient's: the variance is that of patients right or wrong
    few = np.array([1.0] * 14 + [0.3])
    repeats = (weights := resamples(15, None)) @ few / weights.sum(axis=1)
    mean = float(few.mean())
    narrow = intervals.interval(mean, repeats, n_patients=15)
    wide = intervals.interval(mean, repeats, n_patients=15, rarer=rarer_patients(few, None))
    binomial = intervals._score_bounds(mean, 15.0, intervals._t_quantile(14))
    assert wide.low == pytest.approx(binomial[0], rel=0.05)
    assert wide.low < narrow.low
    # of thirty alike nothing changes
    many = np.linspace(0.4, 0.6, 30)
    assert rarer_patients(many, None) > 29
