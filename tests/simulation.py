"""How often 95 % intervals hold the truth, by simulation: `python -m tests.simulation` prints it.

Each scenario draws data whose true value is known and asks the function that records use for its
interval. Images of one patient are alike: `icc` is the correlation of two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from robustbench_med.cards import DatasetCard
from robustbench_med.metrics import classification
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resamples

Rng = np.random.Generator
Floats = NDArray[np.float64]
Owners = NDArray[np.str_]


class Scenario(NamedTuple):
    """A way to draw data: `intervals(rng)` returns an estimate of each of `truths`, by name."""

    truths: dict[str, float]
    intervals: Callable[[Rng], dict[str, Estimate]]
    runs: int


def coverage(scenario: Scenario, *, runs: int | None = None, seed: int = 0) -> dict[str, float]:
    """Return the share of intervals that hold the truth; an undefined one does not."""
    rng = np.random.default_rng(seed)
    count = runs or scenario.runs
    held = dict.fromkeys(scenario.truths, 0)
    for _ in range(count):
        intervals = scenario.intervals(rng)
        for name, truth in scenario.truths.items():
            held[name] += intervals[name].low - 1e-12 <= truth <= intervals[name].high + 1e-12
    return {name: hits / count for name, hits in held.items()}


def _single_scenario(
    name: str, truth: float, interval: Callable[[Rng], Estimate], runs: int
) -> Scenario:
    return Scenario({name: truth}, lambda rng: {name: interval(rng)}, runs)


@cache
def _every(n: int) -> list[Estimate]:
    return [intervals.wilson(k, n) for k in range(n + 1)]


def wilson_coverage(p: float, n: int) -> float:
    """Return the exact coverage of the interval of a share: a sum over all outcomes."""
    held = [scenario.low <= p <= scenario.high for scenario in _every(n)]
    return float(scipy_stats.binom.pmf(np.arange(n + 1), n, p)[held].sum())


def patients(rng: Rng, count: int, sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the patient of each image, `count` patients with one of `sizes` images each."""
    return np.repeat(np.arange(count), rng.choice(sizes, count))


def fractions(p: float, *, count: int, icc: float, sizes: tuple[int, ...]) -> Scenario:
    """Right or wrong, patients with one of `sizes` images each."""
    name = f"share {p}, {count} patients, icc {icc}"
    return _fractions(name, p, icc, lambda rng: patients(rng, count, sizes))


def unequal(p: float, *, name: str, icc: float, sizes: tuple[int, ...]) -> Scenario:
    """Right or wrong, a patient of each of `sizes`."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return _fractions(f"share {p}, {name}, icc {icc}", p, icc, lambda rng: owner)


def _fractions(
    name: str, p: float, icc: float, owners: Callable[[Rng], NDArray[np.int64]]
) -> Scenario:
    """Right or wrong, beta-binomial: `icc` is the correlation of two images of a patient."""

    def interval(rng: Rng) -> Estimate:
        owner = owners(rng)
        total = 1 / icc - 1 if icc else 1e9
        each = rng.beta(p * total, (1 - p) * total, owner.max() + 1)
        right = rng.random(len(owner)) < each[owner]
        return intervals.cluster_mean(right.astype(float), owner.astype(np.str_))

    return _single_scenario(name, p, interval, 2000)


CARD = {"name": "d", "title": "d", "modality": "m", "channels": 1, "size": (8, 8)}


def _card(k: int) -> DatasetCard:
    names = tuple(f"c{i}" for i in range(k))
    return DatasetCard.model_validate({**CARD, "task": "single_label", "classes": names})


def _predictions(
    rng: Rng, owner: NDArray[np.int64], prior: tuple[float, ...], skill: float, icc: float
) -> tuple[NDArray[np.int64], Floats]:
    """Return labels, constant in a patient, and logits: skill on the true class plus noise."""
    label = rng.choice(len(prior), owner.max() + 1, p=prior)[owner]
    own_interval = rng.normal(size=(owner.max() + 1, len(prior)))[owner]
    noise = np.sqrt(icc) * own_interval + np.sqrt(1 - icc) * rng.normal(size=own_interval.shape)
    return label, noise + skill * np.eye(len(prior))[label]


@cache
def _truths(prior: tuple[float, ...], skill: float) -> dict[str, float]:
    rng = np.random.default_rng(1)
    label, logits = _predictions(rng, np.arange(400_000), prior, skill, 0.0)
    k = len(prior)
    called = logits.argmax(1)
    recalls = [(called[label == j] == j).mean() for j in range(k)]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    areas = []
    for j in range(k) if k > 2 else [1]:
        ill, well = scores[label == j, j], scores[label != j, j]
        below = np.searchsorted(np.sort(well), ill)
        areas.append(below.mean() / len(well))
    return {"balanced_accuracy": float(np.mean(recalls)), "auc": float(np.mean(areas))}


def metrics(
    *,
    prior: tuple[float, ...],
    skill: float,
    count: int,
    icc: float = 0.5,
    sizes: tuple[int, ...] = (2, 3, 4),
) -> Scenario:
    """Metrics of classification, by patient, through the function that records use."""
    card = _card(len(prior))
    truths = _truths(prior, skill)
    titles = {
        name: f"{name} {truth:.3f}, {len(prior)} classes, {count} patients"
        for name, truth in truths.items()
    }

    def intervals(rng: Rng) -> dict[str, Estimate]:
        owner = patients(rng, count, sizes)
        label, logits = _predictions(rng, owner, prior, skill, icc)
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        intervals = classification.Predictions.of(label, logits.argmax(1), scores, card)
        names = owner.astype(np.str_)
        weights = resamples(len(owner), names, seed=int(rng.integers(2**31)))
        scored = classification.score(intervals, card, clusters=names, weights=weights)
        return {title: scored[name] for name, title in titles.items()}

    return Scenario({titles[name]: truth for name, truth in truths.items()}, intervals, 300)


def dice(mean: float, *, count: int, spread: float, icc: float = 0.5, per: int = 1) -> Scenario:
    """Mean Dice of images, beta-distributed: `spread` is the standard deviation of an image's."""
    total = mean * (1 - mean) / spread**2 - 1
    between = (total + 1) / icc - 1  # of a patient's own mean: a share `icc` of the variance
    within = (total + 1 - icc) / (1 - icc) - 1  # of an image about it, so that variances add up

    def interval(rng: Rng) -> Estimate:
        owner = np.repeat(np.arange(count), per)
        own_interval = rng.beta(mean * between, (1 - mean) * between, count)[owner]
        values = rng.beta(own_interval * within, (1 - own_interval) * within)
        weights = resamples(len(owner), owner.astype(np.str_), seed=int(rng.integers(2**31)))
        return intervals.bootstrap(float(values.mean()), lambda w: (w @ values) / w.sum(1), weights)

    return _single_scenario(f"Dice {mean} ± {spread}, {count} patients", mean, interval, 1000)


def median(*, count: int) -> Scenario:
    """Median of distances, exponential, one image a patient."""

    def interval(rng: Rng) -> Estimate:
        weights = resamples(count, None, seed=int(rng.integers(2**31)))
        return intervals.median(rng.exponential(size=count), weights)

    return _single_scenario(f"median distance, {count} images", float(np.log(2)), interval, 1000)


FRACTIONS = (0.05, 0.3, 0.5, 0.9, 0.98)
CLUSTERED = tuple(
    fractions(p, count=count, icc=icc, sizes=tuple(range(1, 9)))
    for count in (12, 40, 100)
    for icc in (0.0, 0.3, 0.7)
    for p in FRACTIONS
)
MASKS = tuple(
    dice(mean, count=count, spread=spread)
    for count in (4, 6, 12, 53)
    for mean, spread in ((0.1, 0.1), (0.5, 0.2), (0.8, 0.1), (0.95, 0.03), (0.97, 0.06))
)
# the cohorts of the committed records: 53 patients with 64 images, 120 images; and a small one
COHORTS = ((21, (2, 3, 4)), (53, (1, 1, 1, 1, 2)), (120, (1,)))
UNEQUAL = tuple(
    unequal(p, name=name, icc=icc, sizes=sizes)
    for name, sizes in {
        "30 patients, one with half of the images": (29,) + (1,) * 29,
        "10 patients, one with 100 of 118 images": (100,) + (2,) * 9,
        "30 patients of 1 to 120 images": tuple(round(120 ** (i / 29)) for i in range(30)),
    }.items()
    for icc in (0.0, 0.3, 0.7)
    for p in FRACTIONS
)
MEDIANS = tuple(median(count=count) for count in (12, 30, 80))


def main() -> None:
    """Print the coverage of every scenario, tab-separated."""
    for n in (30, 100, 300):
        for p in FRACTIONS:
            print(f"share {p}, {n} images\t{wilson_coverage(p, n):.3f}", flush=True)
    measured = (
        metrics(prior=prior, skill=skill, count=count, sizes=sizes)
        for count, sizes in COHORTS
        for prior in ((0.5, 0.5), (0.4, 0.3, 0.3))
        for skill in (-2.0, 0.5, 1.5, 3.0)
    )
    for scenario in (*CLUSTERED, *UNEQUAL, *MASKS, *measured, *MEDIANS):
        for name, held in coverage(scenario).items():
            print(f"{name}\t{held:.3f}", flush=True)


if __name__ == "__main__":
    main()
