"""How often 95 % intervals hold the truth, by simulation: `python -m tests.simulation`.

Each scenario draws data whose true value is known and asks the function that records use for its
interval. Patients are drawn as studies have them: `SIZES` images each, outcomes of one patient
alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from robustbench_med import stats
from robustbench_med.bench.record import Estimate
from robustbench_med.cards import DatasetCard
from robustbench_med.metrics import classification

Rng = np.random.Generator
Floats = NDArray[np.float64]
Owners = NDArray[np.str_]


class Scenario(NamedTuple):
    """A way to draw data: `interval(rng)` returns an estimate of `truth`."""

    name: str
    truth: float
    interval: Callable[[Rng], Estimate]
    runs: int


def coverage(scenario: Scenario, *, runs: int | None = None, seed: int = 0) -> float:
    """Return the share of intervals that hold the truth; an undefined one does not."""
    rng = np.random.default_rng(seed)
    count = runs or scenario.runs
    found = (scenario.interval(rng) for _ in range(count))
    return sum(one.low - 1e-12 <= scenario.truth <= one.high + 1e-12 for one in found) / count


def wilson_coverage(p: float, n: int) -> float:
    """Return the exact coverage of the interval of a share: a sum over all outcomes."""
    outcomes = np.arange(n + 1)
    held = [(e := stats.wilson(int(k), n)).low <= p <= e.high for k in outcomes]
    return float(scipy_stats.binom.pmf(outcomes, n, p)[held].sum())


def patients(rng: Rng, count: int, sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the patient of each image, `count` patients with one of `sizes` images each."""
    return np.repeat(np.arange(count), rng.choice(sizes, count))


def shares(p: float, *, count: int, icc: float, sizes: tuple[int, ...]) -> Scenario:
    """Right or wrong, beta-binomial: `icc` is the correlation of two images of a patient."""

    def interval(rng: Rng) -> Estimate:
        owner = patients(rng, count, sizes)
        total = 1 / icc - 1 if icc else 1e9
        each = rng.beta(p * total, (1 - p) * total, count)
        right = rng.random(len(owner)) < each[owner]
        return stats.cluster_mean(right.astype(float), owner.astype(np.str_))

    return Scenario(f"share {p}, {count} patients, icc {icc}", p, interval, 2000)


CARD = {"name": "d", "title": "d", "modality": "m", "channels": 1, "size": (8, 8)}


def _card(k: int) -> DatasetCard:
    names = tuple(f"c{i}" for i in range(k))
    return DatasetCard.model_validate({**CARD, "task": "single_label", "classes": names})


def _predictions(
    rng: Rng, owner: NDArray[np.int64], prior: tuple[float, ...], skill: float, icc: float
) -> tuple[NDArray[np.int64], Floats]:
    """Return labels, constant in a patient, and logits: skill on the true class plus noise."""
    label = rng.choice(len(prior), owner.max() + 1, p=prior)[owner]
    own = rng.normal(size=(owner.max() + 1, len(prior)))[owner]
    noise = np.sqrt(icc) * own + np.sqrt(1 - icc) * rng.normal(size=own.shape)
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


def metric(
    name: str,
    *,
    prior: tuple[float, ...],
    skill: float,
    count: int,
    icc: float = 0.5,
    sizes: tuple[int, ...] = (2, 3, 4),
) -> Scenario:
    """A metric of classification, by patient, through the function that records use."""
    card = _card(len(prior))

    def interval(rng: Rng) -> Estimate:
        owner = patients(rng, count, sizes)
        label, logits = _predictions(rng, owner, prior, skill, icc)
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        found = classification.Predictions.of(label, logits.argmax(1), scores, card)
        names = owner.astype(np.str_)
        weights = stats.resamples(len(owner), names, seed=int(rng.integers(2**31)))
        return classification.score(found, card, clusters=names, weights=weights)[name]

    truth = _truths(prior, skill)[name]
    return Scenario(f"{name} {truth:.2f}, K={len(prior)}, {count} patients", truth, interval, 500)


def dice(mean: float, *, count: int, spread: float, icc: float = 0.5, per: int = 3) -> Scenario:
    """Mean Dice of images, by patient: beta-distributed, two levels of spread."""
    total = mean * (1 - mean) / spread**2 - 1
    between = total / icc + (1 / icc - 1)  # so that the images of a patient correlate by icc

    def interval(rng: Rng) -> Estimate:
        owner = np.repeat(np.arange(count), per)
        own = rng.beta(mean * between, (1 - mean) * between, count)[owner]
        inner = between / (1 - icc)
        values = rng.beta(own * inner, (1 - own) * inner) if icc < 1 else own
        weights = stats.resamples(len(owner), owner.astype(np.str_), seed=int(rng.integers(2**31)))
        return stats.bootstrap(float(values.mean()), lambda w: (w @ values) / w.sum(1), weights)

    return Scenario(f"Dice {mean}, {count} patients", mean, interval, 1000)
