"""The operating point is the best of all thresholds, and the offset applies it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_med.cards import DatasetCard, Task
from robustbench_med.models.operating_point import probability, youden
from robustbench_med.objectives.decide import decide, probabilities
from tests.bench.toys import card_of

N = 80


def card(k: int, task: Task = "single_label") -> DatasetCard:
    return card_of(torch.zeros(1, 1, 8, 8), k, task=task, normal=None)


def drawn(k: int, seed: int, shift: float = 1.5) -> tuple[Tensor, Tensor]:
    """Return logits that lean to one side, with ties, and truth they tell something of."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (N,), generator=generator)
    # quarters are exact in float32
    score = (y * 1.5 + torch.randn(N, generator=generator) + shift).mul(4).round().div(4)
    if k == 1:
        return score[:, None], y
    base = torch.randn(N, generator=generator).round()
    return torch.stack([base, base + score], 1), y


def index(called: np.ndarray, y: np.ndarray) -> float:
    """Return Youden's J = sensitivity + specificity - 1."""
    return float(called[y == 1].mean() + (1 - called[y == 0]).mean() - 1)


def best(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the largest J over every threshold there is."""
    cuts = [*np.unique(scores) - 1e-6, np.inf]
    return max(index((scores > cut).astype(int), y) for cut in cuts)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_youden_is_the_best_of_all_thresholds(k: int, seed: int, shift: float) -> None:
    logits, y = drawn(k, seed, shift)
    offset = youden(logits, y, card(2))
    assert offset is not None
    assert offset.shape == (k,)
    called = decide(logits + offset, "single_label")
    scores = (logits[:, -1] - (logits[:, 0] if k == 2 else 0)).numpy()
    assert index(called, y.numpy()) == pytest.approx(best(scores, y.numpy()))


@pytest.mark.parametrize("seed", range(6))
def test_every_finding_has_the_best_of_its_thresholds(seed: int) -> None:
    columns = [drawn(1, seed + 10 * j, shift=j - 1.0) for j in range(3)]
    logits = torch.cat([c[0] for c in columns], 1)
    y = torch.stack([c[1] for c in columns], 1)
    y[torch.rand(y.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = -1
    offset = youden(logits, y, card(3, "multi_label"))
    assert offset is not None
    called = decide(logits + offset, "multi_label")
    for j in range(3):
        known = (y[:, j] >= 0).numpy()
        truth = y[known, j].numpy()
        expected = best(logits[known, j].numpy(), truth)
        assert index(called[known, j], truth) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2])
def test_deciding_with_the_offset_is_thresholding_the_probability(k: int) -> None:
    logits, y = drawn(k, 3)
    offset = youden(logits, y, card(2))
    assert offset is not None
    (threshold,) = probability(offset, card(2))
    assert 0.5 < threshold < 1
    p = probabilities(logits, "single_label")[:, 1]
    assert ((p > threshold).astype(int) == decide(logits + offset, "single_label")).all()


def test_findings_are_thresholded_each_by_its_own_probability() -> None:
    logits = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    y = (logits + torch.tensor([1.0, 0.0, -1.0]) > 0).long()
    offset = youden(logits, y, card(3, "multi_label"))
    thresholds = np.array(probability(offset, card(3, "multi_label")))
    assert thresholds.shape == (3,)
    called = (probabilities(logits, "multi_label") > thresholds).astype(int)
    assert offset is not None
    assert (called == decide(logits + offset, "multi_label")).all()
    assert (called == y.numpy()).all()


def test_three_classes_have_no_threshold() -> None:
    assert youden(torch.zeros(4, 3), torch.arange(4) % 3, card(3)) is None
    assert probability(None, card(3)) == ()


@pytest.mark.parametrize("only", [0, 1, -1])
def test_one_class_alone_keeps_the_models_own_threshold(only: int) -> None:
    offset = youden(drawn(2, 0)[0], torch.full((N,), only), card(2))
    assert offset is not None
    assert offset.tolist() == [0, 0]


def test_uninformative_scores_keep_the_models_own_threshold() -> None:
    y = torch.arange(N) % 2
    offset = youden(torch.ones(N, 1), y, card(2))
    assert offset is not None
    assert offset.tolist() == [0]
    worse = youden(-(y[:, None] * 2.0 - 1), y, card(2))  # the wrong way round
    assert worse is not None
    assert worse.tolist() == [0]


def test_the_threshold_lies_half_way() -> None:
    logits = torch.tensor([[0.0], [1.0], [2.0], [6.0]])
    offset = youden(logits, torch.tensor([0, 0, 1, 1]), card(2))
    assert offset is not None
    assert offset.tolist() == [-1.5]


def test_unlabelled_images_choose_nothing() -> None:
    logits, y = drawn(2, 1)
    unlabelled = torch.cat([y, torch.full((3,), -1)])
    extra = torch.cat([logits, torch.tensor([[0.0, 9.0]] * 3)])
    a, b = youden(logits, y, card(2)), youden(extra, unlabelled, card(2))
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)
