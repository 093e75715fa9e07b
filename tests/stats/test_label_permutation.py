"""Subgroups permuted among patients: against all permutations, and with planted faults."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from robustbench_med.stats.label_permutation import two_sided_p
from tests import simulation_subgroups
from tests.simulation_subgroups import rates


def _studentised(scores: np.ndarray, inside: np.ndarray, number: np.ndarray) -> float:
    """Return the difference over its cluster-robust standard error, image by image."""
    weights = np.where(inside, 1 / inside.sum(), -1 / (~inside).sum())
    centred = scores - np.where(inside, scores[inside].mean(), scores[~inside].mean())
    variance = 0.0
    for side in (inside, ~inside):
        own = np.unique(number[side])
        sums = np.array([(weights * centred)[side & (number == p)].sum() for p in own])
        variance += len(own) / (len(own) - 1) * (sums**2).sum()
    return float((weights * scores).sum() / np.sqrt(variance))


def test_it_is_the_share_of_all_permutations_of_patients() -> None:
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(9), [1, 2, 3, 1, 2, 3, 1, 2, 3])
    scores = rng.random(len(number))
    inside = number < 4
    observed = abs(_studentised(scores, inside, number))
    each = [
        abs(_studentised(scores, np.isin(number, some), number)) >= observed - 1e-9
        for some in combinations(range(9), 4)
    ]
    assert len(each) == comb(9, 4)
    (p,) = two_sided_p(scores[:, None], inside, number, draws=20_000)
    assert p == pytest.approx(np.mean(each), abs=0.012)


def test_images_of_one_patient_on_both_sides_are_permuted_within_it() -> None:
    # the patient decides the score, and each has an image on both sides: nothing can differ
    number = np.repeat(np.arange(12), 2)
    inside = np.tile([True, False], 12)
    scores = np.repeat(np.linspace(0, 1, 12), 2)
    assert two_sided_p(scores[:, None], inside, number) == pytest.approx([1.0])
    # every image inside is worse than the other of its patient, by little against the scatter
    worse = scores - 0.01 * inside
    assert two_sided_p(worse[:, None], inside, number)[0] < 0.01
    # as if images were patients of their own, this is not seen
    assert two_sided_p(worse[:, None], inside, np.arange(24))[0] > 0.5


def test_each_rung_has_its_own_p_value() -> None:
    number = np.arange(20)
    inside = number < 10
    scores = np.stack([inside, np.ones(20), number % 2], axis=1).astype(float)
    p = two_sided_p(scores, inside, number)
    assert p[0] < 0.001
    assert p[1:].tolist() == [1.0, 1.0]


def test_subgroups_of_clustered_patients_are_rarely_told_apart_by_chance() -> None:
    found = rates(30, (0.7, 0.7), icc=0.5, runs=20)
    assert found.scores > 0.85
    assert found.differences > 0.8
    assert found.false <= 0.2  # of honest tests 0.05; of images taken for patients 0.4


@pytest.mark.slow
def test_patients_who_are_left_out_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: each image is taken for a patient of its own."""

    def careless(scores: np.ndarray, member: np.ndarray, number: np.ndarray) -> np.ndarray:
        return two_sided_p(scores, member, np.arange(len(number)), draws=199)

    monkeypatch.setattr(simulation_subgroups, "two_sided_p", careless)
    monkeypatch.setattr(simulation_subgroups, "partial", lambda function, draws: careless)
    assert rates(40, (0.7, 0.7), icc=0.5, runs=60).false > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("means", [(0.5, 0.5), (0.6, 0.8)])
def test_intervals_and_error_of_subgroups(means: tuple[float, float], masks: bool) -> None:
    found = rates(100, means, icc=0.3, masks=masks, runs=600)
    assert 0.93 <= found.scores <= 0.97
    assert 0.925 <= found.differences <= 0.975
    assert found.false <= 0.07  # 0.05 and two standard errors
