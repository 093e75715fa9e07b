"""Intervals hold the truth as often as they say: 95 of 100, give or take what the runs can tell.

`python -m tests.simulation` measures more of the same; docs/statistics.md shows what came out.
"""

from __future__ import annotations

import numpy as np
import pytest

from robustbench_med.stats import Estimate, intervals, patients
from tests import simulation
from tests.simulation import coverage

COVERAGE = (0.93, 0.97)


@pytest.mark.parametrize("n", [30, 100, 300])
def test_shares_of_independent_images(n: int) -> None:
    """Exact, no simulation. A discrete share cannot hold 95 % at each p; it does on average."""
    held = [simulation.wilson_coverage(p, n) for p in np.linspace(0.02, 0.98, 49)]
    assert COVERAGE[0] < float(np.mean(held)) < COVERAGE[1]
    assert min(held) > 0.90
    for p in simulation.FRACTIONS:
        assert simulation.wilson_coverage(p, n) > 0.925


@pytest.mark.slow
@pytest.mark.parametrize("icc", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("count", [12, 40, 100])
def test_shares_by_patient(count: int, icc: float) -> None:
    held: list[float] = []
    for p in simulation.FRACTIONS:
        scenario = simulation.fractions(p, count=count, icc=icc, sizes=tuple(range(1, 9)))
        held += coverage(scenario, runs=500).values()
    # independent images counted by patient: the design effect is at least 1, so somewhat too wide
    assert 0.935 < float(np.mean(held)) < (0.97 if icc else 0.99)
    assert min(held) > 0.91


@pytest.mark.slow
def test_leaving_patients_out_is_seen() -> None:
    """The planted fault: as if images were independent. The simulation must tell."""
    honest = simulation.fractions(0.5, count=40, icc=0.7, sizes=tuple(range(1, 9)))
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        owner = simulation.patients(rng, 40, tuple(range(1, 9)))
        each = rng.beta(0.5 * 3 / 7, 0.5 * 3 / 7, 40)
        right = rng.random(len(owner)) < each[owner]
        covered = intervals.wilson(int(right.sum()), len(owner))
        held += covered.low <= 0.5 <= covered.high
    assert held / 300 < 0.75
    (fraction,) = coverage(honest, runs=300).values()
    assert fraction > COVERAGE[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 12, 53])
@pytest.mark.parametrize(("mean", "spread"), [(0.1, 0.1), (0.5, 0.2), (0.8, 0.1), (0.95, 0.03)])
def test_mean_dice(mean: float, spread: float, count: int) -> None:
    (held,) = coverage(simulation.dice(mean, count=count, spread=spread), runs=500).values()
    assert 0.92 < held < 0.98


@pytest.mark.slow
def test_mean_dice_of_several_images_a_patient() -> None:
    (held,) = coverage(simulation.dice(0.8, count=20, spread=0.1, per=3), runs=500).values()
    assert 0.92 < held < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("prior", [(0.5, 0.5), (0.4, 0.3, 0.3)])
@pytest.mark.parametrize("skill", [-2.0, 1.5, 3.0])
def test_balanced_accuracy_and_auc(prior: tuple[float, ...], skill: float) -> None:
    """The cohort of the shipped phantoms: 53 patients of 1 or 2 images; from near 0 to near 1."""
    scenario = simulation.metrics(prior=prior, skill=skill, count=53, sizes=(1, 1, 1, 1, 2))
    for name, held in coverage(scenario, runs=150).items():
        assert 0.90 < held <= 0.995, name


ONE_LARGE = [(29,) + (1,) * 29, (100,) + (2,) * 9]


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [*ONE_LARGE, tuple(round(120 ** (i / 29)) for i in range(30))])
def test_patients_of_very_unequal_size(sizes: tuple[int, ...], p: float) -> None:
    (held,) = coverage(simulation.unequal(p, name="", icc=0.5, sizes=sizes), runs=500).values()
    assert held > 0.88


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ONE_LARGE)
def test_counting_a_large_patient_as_one_of_many_is_seen(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: each patient with the rarer outcome counts as one, whatever its size."""
    monkeypatch.setattr(patients, "effective_patients", lambda sizes: float(len(sizes)))
    (held,) = coverage(simulation.unequal(0.5, name="", icc=0.5, sizes=sizes), runs=500).values()
    assert held < 0.88


def test_the_percentile_interval_is_seen_to_fail() -> None:
    """The planted fault: what four images gave before, a percentile interval."""

    def percentile(
        value: float, repeats: np.ndarray[tuple[int], np.dtype[np.float64]], **_: object
    ) -> Estimate:
        low, high = np.quantile(repeats, [0.025, 0.975])
        return Estimate(value=value, low=float(low), high=float(high))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "interval", percentile)
        (held,) = coverage(simulation.dice(0.8, count=4, spread=0.1), runs=200).values()
    assert held < 0.88
