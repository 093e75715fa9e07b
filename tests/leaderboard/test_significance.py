"""Ties: the tests against references, what shares a place, and how often a tie is split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from leaderboard.boards.significance import ALPHA, ImageScores, pairs, places
from robustbench_med.stats.paired_tests import holm, two_sided_p

Values = NDArray[Any]


def rows_of(values: Values, patients: int | None = None) -> list[ImageScores]:
    """Return rows of one rung from `(k, n)` scores; images go round the patients in turn."""
    n = values.shape[1]
    owner = None if patients is None else np.array([f"p{i % patients}" for i in range(n)])
    return [ImageScores(pd.DataFrame(row[:, None]), owner) for row in values]


@pytest.mark.parametrize(("won", "lost", "tied"), [(6, 0, 9), (9, 3, 40), (5, 5, 2), (0, 0, 7)])
def test_right_or_wrong_without_patients_is_the_exact_test_of_mcnemar(
    won: int, lost: int, tied: int
) -> None:
    difference = np.repeat([1.0, -1.0, 0.0], [won, lost, tied])[:, None]
    expected = mcnemar([[tied, won], [lost, 0]], exact=True).pvalue
    assert two_sided_p(difference, None)[0] == pytest.approx(expected)
    # ids that never repeat are no clusters
    assert two_sided_p(difference, np.arange(len(difference)))[0] == pytest.approx(expected)


def test_signs_are_mcnemar_where_each_patient_has_one_image() -> None:
    # a Dice of 0 or 0.5 is no truth value, so the bootstrap runs: all 2^11 patterns, then draws
    few = np.repeat([0.5, -0.5], [9, 2])[:, None]
    assert two_sided_p(few, None)[0] == pytest.approx(binomtest(2, 11).pvalue)
    many = np.repeat([0.5, -0.5], [20, 10])[:, None]
    assert two_sided_p(many, None)[0] == pytest.approx(binomtest(10, 30).pvalue, abs=0.01)


def test_a_patient_counts_once_however_many_images() -> None:
    # ten images of two patients, all better: two patterns of four are as far out
    assert two_sided_p(np.ones((10, 1)), np.arange(10) % 2)[0] == 0.5
    assert two_sided_p(np.ones((10, 1)), None)[0] < 0.01


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(0).random((4, 15)) ** 3
    for own, corrected in zip(p, holm(p), strict=True):
        assert corrected == pytest.approx(multipletests(own, method="holm")[1])
    assert holm(np.ones((3, 0))).shape == (3, 0)


def test_every_pair_is_corrected_and_mirrored() -> None:
    values = np.repeat([[1] * 40, [1] * 30 + [0] * 10, [0] * 40], 1, axis=0).astype(bool)
    found = pairs(rows_of(values))
    raw = [2 * 0.5**10, 2 * 0.5**40, 2 * 0.5**30]  # 0-1, 0-2, 1-2
    expected = multipletests(raw, method="holm")[1]
    assert found.p[0][np.triu_indices(3, 1)] == pytest.approx(expected)
    assert (found.p[0] == found.p[0].T).all()
    assert (found.gain[0] == -found.gain[0].T).all()
    assert found.gain[0, 0, 1] == 0.25
    assert found.beats[0].tolist() == [[False, True, True], [False, False, True], [False] * 3]


def test_only_shared_images_are_compared() -> None:
    one = ImageScores(pd.DataFrame({0: [True] * 8}, index=list("abcdefgh")), None)
    other = ImageScores(pd.DataFrame({0: [False] * 8}, index=list("xyhgfedc")), None)
    found = pairs([one, other])
    assert found.p[0, 0, 1] == 2 * 0.5**6
    assert found.gain[0, 0, 1] == 1
    stranger = ImageScores(pd.DataFrame({0: [False] * 2}, index=list("qr")), None)
    assert pairs([one, stranger]).p[0, 0, 1] == 1


def test_a_chain_shares_a_place_until_a_line_parts_it() -> None:
    # the first beats the third; the second is told apart from neither; all three beat the fourth
    n = np.arange(60)
    values = np.array([n < 48, n < 42, n < 36, n < 4])
    found = pairs(rows_of(values))
    assert found.beats[0, 0].tolist() == [False, False, True, True]
    assert places(values.mean(axis=1)[None], found).tolist() == [[1, 1, 1, 4]]
    shuffled = [2, 0, 3, 1]
    found = pairs(rows_of(values[shuffled]))
    assert places(values[shuffled].mean(axis=1)[None], found).tolist() == [[1, 1, 4, 1]]


def test_nobody_and_one_alone() -> None:
    assert pairs([]).p.shape == (0, 0, 0)
    alone = pairs(rows_of(np.ones((1, 5), dtype=bool)))
    assert places(np.ones((1, 1)), alone).tolist() == [[1]]


def _equal(kind: str, rng: np.random.Generator) -> tuple[Values, int | None]:
    """Return scores `(5, n)` of five models that are equally good, and the number of patients."""
    patients, each, k = 20, 3, 5
    hard = rng.normal(0, 1, (1, patients, 1))  # a patient is hard for all models
    if kind == "independent":
        return rng.normal(0, 1, (k, 60)) + rng.normal(0, 1, 60) > 0, None
    own = rng.normal(0, 1, (k, patients, 1))  # and for one model more than for another
    mixed = hard + own + 0.5 * rng.normal(0, 1, (k, patients, each))
    if kind == "patients":
        return (mixed > 0).transpose(0, 2, 1).reshape(k, -1), patients
    dice = 1 / (1 + np.exp(-mixed.mean(axis=2)))
    if kind == "dice":
        return dice, None
    # of one mean, but the models differ in how far they scatter around it
    spread = np.linspace(0.2, 1.0, k)[:, None]
    return 0.5 + 0.5 * spread * (2 * rng.beta(2, 2, (k, patients)) - 1), None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "patients", "dice", "scatter"])
def test_equal_models_are_split_on_at_most_5_percent_of_boards(kind: str) -> None:
    runs = 500
    split = 0
    rng = np.random.default_rng(1)
    for _ in range(runs):
        values, patients = _equal(kind, rng)
        found = pairs(rows_of(values, patients))
        split += bool((places(values.mean(axis=1)[None], found) > 1).any() or found.beats.any())
    rate, error = split / runs, np.sqrt(ALPHA * (1 - ALPHA) / runs)
    print(f"{kind}: a tie is split on {100 * rate:.1f} % of {runs} boards of five equal models")
    assert rate <= ALPHA + 2 * error


@pytest.mark.slow
def test_the_percentile_bootstrap_would_split_too_often() -> None:
    # why the signs are drawn: 12 images a board, one pair, at the level of Holm's first of ten
    rng, level, runs = np.random.default_rng(2), ALPHA / 10, 2000
    drawn = rng.multinomial(12, np.full(12, 1 / 12), 2000)
    wrong = {"percentile": 0, "signs": 0}
    for _ in range(runs):
        difference = rng.normal(0, 1, 12)
        low, high = np.quantile(drawn @ difference, [level / 2, 1 - level / 2])
        wrong["percentile"] += not low <= 0 <= high
        wrong["signs"] += two_sided_p(difference[:, None], None)[0] <= level
    print({name: count / runs for name, count in wrong.items()}, "at a level of", level)
    assert wrong["percentile"] > 3 * level * runs
    assert wrong["signs"] <= (level + 2 * np.sqrt(level / runs)) * runs


@pytest.mark.slow
def test_models_that_differ_are_told_apart() -> None:
    rng, told = np.random.default_rng(3), 0
    for _ in range(50):
        hard = rng.normal(0, 1, 200)
        values = np.array([hard + rng.normal(0, 0.5, 200) > cut for cut in (-1.0, 0.0, 1.0)])
        told += places(values.mean(axis=1)[None], pairs(rows_of(values))).tolist() == [[1, 2, 3]]
    assert told >= 48
