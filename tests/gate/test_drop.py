"""Drops: against McNemar in statsmodels, closed forms, and simulation of what is promised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.power import TTestPower

from robustbench_med.gate.drop import drop_of
from robustbench_med.stats.paired_tests import (
    LEVEL,
    POWER,
    fewest_changes,
    holm,
    mcnemar,
    mcnemar_images,
    mcnemar_power,
    mcnemar_smallest,
    one_sided_p,
    signs_one_sided,
)

TRIALS = 1500
t_power = TTestPower()
MARGIN = 3 * math.sqrt(LEVEL * (1 - LEVEL) / TRIALS)


def pairs(n: int, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores before and now of which so many are lost and gained."""
    before = np.r_[np.ones(n - gained), np.zeros(gained)]
    now = np.r_[np.zeros(lost), np.ones(n - lost)]
    return before, now


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (8, 2), (16, 2), (30, 11), (3, 3), (0, 0)])
def test_mcnemar_is_half_of_the_two_sided_test_of_statsmodels(lost: int, gained: int) -> None:
    both = reference([[10, lost], [gained, 10]], exact=True).pvalue
    if lost > gained:
        assert mcnemar(lost, gained) == pytest.approx(both / 2)
    else:
        assert mcnemar(lost, gained) >= 0.5
    found = drop_of(*pairs(64, lost, gained))
    assert (found.lost, found.gained, found.n, found.patients) == (lost, gained, 64, 64)
    assert found.p == pytest.approx(mcnemar(lost, gained))
    assert found.size == pytest.approx((lost - gained) / 64)


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (8, 2), (10, 3), (25, 14)])
def test_flipping_signs_of_single_images_is_mcnemar(lost: int, gained: int) -> None:
    fell = np.r_[np.ones(lost), -np.ones(gained), np.zeros(30)]
    tolerance = 1e-12 if lost + gained <= 14 else 0.01  # beyond, flips are drawn
    assert signs_one_sided(fell) == pytest.approx(mcnemar(lost, gained), abs=tolerance)


def test_flipping_signs_by_hand() -> None:
    # |sums| of 3, 2, 1: as large as 3 + 2 - 1 = 4 are 4 and 6, two ways of eight
    assert signs_one_sided(np.array([3.0, 2.0, -1.0])) == pytest.approx(2 / 8)
    assert signs_one_sided(np.zeros(4)) == 1.0


@pytest.mark.parametrize(("n", "lost", "gained"), [(12, 0.4, 0.1), (20, 0.3, 0.0), (25, 0.2, 0.05)])
def test_power_is_the_sum_over_all_tables(n: int, lost: float, gained: float) -> None:
    """Every table there can be, its probability, and statsmodels' verdict on it."""
    total = 0.0
    for b, c in itertools.product(range(n + 1), repeat=2):
        if b + c <= n and b > c:
            p = reference([[0, b], [c, 0]], exact=True).pvalue / 2
            if p <= LEVEL:
                stay = 1 - lost - gained
                total += scipy_stats.multinomial.pmf([b, c, n - b - c], n, [lost, gained, stay])
    assert mcnemar_power(n, lost, gained) == pytest.approx(total, abs=1e-6)


def test_images_needed_have_the_power_and_one_fewer_has_not() -> None:
    for lost, gained in [(0.25, 0.03), (0.1, 0.0), (0.06, 0.02)]:
        n = mcnemar_images(lost, gained)
        assert n is not None
        assert mcnemar_power(n, lost, gained) >= POWER
        assert mcnemar_power(n - 1, lost, gained) < POWER
    assert mcnemar_images(0.1, 0.1) is None
    assert mcnemar_images(0.1, 0.1 - 1e-9) is None  # more than ten million
    many = mcnemar_images(0.01, 0.005)  # a few thousand: Connor's formula nearly holds
    a, b = scipy_stats.norm.ppf([1 - LEVEL, POWER])
    drop, changed = 0.005, 0.015
    closed = (a * math.sqrt(changed) + b * math.sqrt(changed - drop**2)) ** 2 / drop**2
    assert many == pytest.approx(closed, rel=0.1)  # the exact test is the stricter
    assert mcnemar_images(0.001, 0.0005) == pytest.approx(closed * 10, rel=0.01)  # beyond 20,000


def test_the_smallest_drop_is_where_the_power_is_reached() -> None:
    found = mcnemar_smallest(64.0, 0.03)
    assert mcnemar_power(64, found + 0.03, 0.03) == pytest.approx(POWER, abs=1e-6)
    assert math.isnan(mcnemar_smallest(4.0, 0.0))  # 4 of 4 lost: p = 1/16
    assert not math.isnan(mcnemar_smallest(5.0, 0.0))
    assert mcnemar_power(5, 0.0, 0.0) == 0.0


def test_dice_needs_about_what_the_t_test_of_statsmodels_needs() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 1, 40)
    now = before - rng.normal(0.03, 0.1, 40)
    found = drop_of(before, now)
    effect = found.size / float(np.std(before - now, ddof=1))
    assert found.needed is not None
    assert found.needed == pytest.approx(
        t_power.solve_power(effect, None, LEVEL, POWER, "larger"), abs=1
    )
    smallest = found.smallest / float(np.std(before - now, ddof=1))
    assert t_power.power(smallest, 40, LEVEL, alternative="larger") == pytest.approx(
        POWER, abs=0.01
    )
    assert found.half == pytest.approx(4 * 40 - 4, abs=1)


def test_no_number_of_images_is_named_below_what_can_show_anything() -> None:
    """A drop that is sure takes as many patients as a coin takes throws to be believed."""
    before = np.full(20, 0.9)
    now = before - np.linspace(0.55, 0.56, 20)
    for level in (0.05, 0.05 / 6):
        found = drop_of(before, now, level=level)
        assert found.needed == fewest_changes(level)
        owned = drop_of(before, now, np.repeat(np.arange(10), 2).astype(str), level=level)
        assert owned.needed == 2 * fewest_changes(level)
    assert [fewest_changes(level) for level in (0.5, 0.05, 1 / 32, 0.01)] == [1, 5, 5, 7]
    binary = drop_of(*pairs(40, 40, 0), np.repeat(np.arange(20), 2).astype(str))
    assert binary.needed is not None
    assert binary.needed >= 10


@pytest.mark.parametrize("kind", ["binary", "dice"])
def test_so_few_patients_that_nothing_shows_are_said_to_show_nothing(kind: str) -> None:
    owners = np.repeat(np.arange(4), 10).astype(str)
    before = np.ones(40)
    lost = np.zeros(40) if kind == "binary" else np.linspace(0.1, 0.4, 40)
    found = drop_of(before, lost, owners)
    assert found.p == 1 / 16
    assert math.isnan(found.smallest)
    assert (found.needed, found.half) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "effect"), [(8, 2.0), (12, 0.9), (20, 0.5)])
def test_the_patients_named_for_dice_have_about_the_power(patients: int, effect: float) -> None:
    rng = np.random.default_rng(4)
    for level in (LEVEL, LEVEL / 6):
        fell = rng.normal(0, 1, patients)
        fell = (fell - fell.mean()) / fell.std(ddof=1) + effect
        found = drop_of(0.9 + np.zeros(patients), 0.9 - 0.05 * fell, level=level)
        assert found.needed is not None
        assert found.needed >= fewest_changes(level)
        nothing = np.zeros(found.needed)
        drawn = rng.normal(effect, 1, (400, found.needed))
        power = np.mean([one_sided_p(nothing, -one) <= level for one in drawn])
        assert power == pytest.approx(POWER, abs=0.08) or power > POWER
        fewer = np.mean([one_sided_p(nothing[1:], -one[1:]) <= level for one in drawn])
        if found.needed > fewest_changes(level):
            assert fewer < POWER + 0.08


def test_patients_count_where_images_hang_together() -> None:
    before, now = pairs(60, 12, 0)
    alone = drop_of(before, now)
    owners = np.array([f"p{i // 6}" for i in range(60)])  # all 12 lost are of two patients
    together = drop_of(before, now, owners)
    assert alone.p < 0.001
    assert together.p == 0.25
    assert together.patients == 10
    assert together.smallest > 2 * alone.smallest
    assert together.needed is not None
    assert alone.needed is not None
    assert together.needed > 4 * alone.needed


def test_four_patients_can_show_no_drop() -> None:
    before = np.full(4, 0.9)
    found = drop_of(before, before - np.array([0.5, 0.6, 0.7, 0.8]))
    assert found.p == 1 / 16
    assert math.isnan(found.smallest)
    assert found.half is None


def test_nothing_changed_and_nothing_there() -> None:
    same = drop_of(np.ones(30), np.ones(30))
    assert (same.p, same.needed, same.size) == (1.0, None, 0.0)
    assert same.smallest == pytest.approx(mcnemar_smallest(30.0, 0.0))
    empty = drop_of(np.zeros(0), np.zeros(0))
    assert empty.p == 1.0
    assert math.isnan(empty.before)
    assert math.isnan(drop_of(np.array([0.3, 0.4]), np.array([0.3, 0.4])).smallest)


def test_holm_by_hand() -> None:
    # 0.01 * 3, 0.02 * 2, 0.04 * 1: rising
    assert holm(np.array([0.04, 0.01, 0.02])) == pytest.approx([0.04, 0.03, 0.04])
    assert holm(np.array([])).tolist() == []


def unchanged(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores before and now, and patients, that differ by nothing but chance."""
    patients, each = {"independent": (64, 1), "patients": (16, 4), "dice": (12, 1)}[kind]
    owners = np.repeat(np.arange(patients), each).astype(str)
    both = np.empty((2, patients * each))
    hard = np.repeat(rng.normal(0, 1.5, patients), each)
    for i in range(2):  # a patient's images share a shift of their own, each time
        shift = np.repeat(rng.normal(0, 1.0, patients), each)
        if kind == "dice":
            both[i] = scipy_stats.norm.cdf(1 + hard + shift)
        else:
            both[i] = rng.normal(0, 1, patients * each) + hard + shift < 0.5
    return both[0], both[1], owners


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "patients", "dice"])
def test_an_unchanged_model_fails_in_at_most_5_percent(kind: str) -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(TRIALS):
        before, now, owners = unchanged(kind, rng)
        alarms += one_sided_p(before, now, owners) <= LEVEL
    assert alarms / TRIALS <= LEVEL + MARGIN
    assert alarms / TRIALS > 0.01  # a test that never fails has no power either


def simulated(n: int, lost: float, gained: float) -> float:
    """Return how often a drop is called on `n` images."""
    rng = np.random.default_rng(2)
    counts = rng.multinomial(n, [lost, gained, 1 - lost - gained], 4000)
    return float(np.mean([one_sided_p(*pairs(n, b, c)) <= LEVEL for b, c, _ in counts.tolist()]))


@pytest.mark.slow
def test_the_power_promised_is_the_power_there_is() -> None:
    found = drop_of(*pairs(64, 12, 2))
    assert found.needed is not None
    assert simulated(found.needed, 12 / 64, 2 / 64) == pytest.approx(POWER, abs=0.025)
    assert simulated(64, found.smallest + 2 / 64, 2 / 64) == pytest.approx(POWER, abs=0.025)
    assert found.half is not None
    half = found.smallest / 2
    assert simulated(found.half, half + 2 / 64, 2 / 64) == pytest.approx(POWER, abs=0.025)


@pytest.mark.slow
def test_the_power_of_patients_is_about_what_is_promised() -> None:
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(40), 3).astype(str)

    def drawn(drop: float) -> tuple[np.ndarray, np.ndarray]:
        lost = rng.random(120) < np.repeat(rng.beta(0.5, 0.5 * (1 - drop) / drop, 40), 3)
        return np.ones(120), 1 - lost.astype(float)

    drops = [drop_of(*drawn(0.12), owners) for _ in range(25)]
    promised = float(np.median([one.smallest for one in drops]))
    called = np.mean([one_sided_p(*drawn(promised), owners) <= LEVEL for _ in range(400)])
    assert called == pytest.approx(POWER, abs=0.12)
