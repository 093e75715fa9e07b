"""Objectives on findings: the direction of the BCE, no underflow, unlabelled never counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustbench_med.errors import SpecError
from robustbench_med.objectives.decide import decide
from robustbench_med.objectives.multilabel import AnyFinding, OneFinding
from robustbench_med.types import Output

N = 40


def drawn(k: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    logits = scale * torch.randn(N, k, generator=generator, dtype=torch.float64)
    y = torch.randint(-1, 2, (N, k), generator=generator)
    y[:, 0] = y[:, 0].abs()  # every sample has a labelled finding
    return logits, y


def bce(logits: Tensor, y: Tensor, known: Tensor) -> Tensor:
    each = functional.binary_cross_entropy_with_logits(
        logits, y.clamp_min(0).to(logits), reduction="none"
    )
    return (each * known).sum(1)


def slopes(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("k", [1, 2, 4, 14])
def test_any_finding_climbs_the_summed_bce(k: int) -> None:
    logits, y = drawn(k)
    leaf = logits.requires_grad_(True)
    ours = slopes(AnyFinding()(Output(leaf), y).loss, leaf)
    theirs = slopes(bce(leaf, y, y >= 0), leaf)
    cosine = functional.cosine_similarity(ours, theirs, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-12, rtol=0)
    assert (ours[y < 0] == 0).all()


@pytest.mark.parametrize("index", [0, 3])
def test_one_finding_climbs_its_bce_alone(index: int) -> None:
    logits, y = drawn(4)
    y[:, index] = y[:, index].clamp_min(0)
    leaf = logits.requires_grad_(True)
    ours = slopes(OneFinding(index)(Output(leaf), y).loss, leaf)
    others = [j for j in range(4) if j != index]
    assert (ours[:, others] == 0).all()
    assert torch.equal(ours[:, index] > 0, y[:, index] == 0)


@pytest.mark.parametrize("sure", [20.0, 60.0, 120.0, 300.0])
def test_a_sure_victim_keeps_its_gradient(sure: float) -> None:
    logits = torch.tensor([[sure + 20, -sure - 20, sure]], requires_grad=True)
    y = torch.tensor([[1, 0, 1]])
    assert bce(logits, y, y >= 0) < 1e-8
    verdict = AnyFinding()(Output(logits), y)
    g = slopes(verdict.loss, logits)
    assert torch.isfinite(verdict.loss).all()
    assert torch.isfinite(g).all()
    assert g.abs().max() > 0.5
    assert g[0, 2] < 0  # the least sure finding is pushed across: it is nearest to its threshold


def test_the_loss_has_no_step_where_its_formula_changes() -> None:
    y = torch.tensor([[1]])
    around = torch.tensor([14.999, 15.0, 15.001], dtype=torch.float64)
    losses = torch.stack([AnyFinding()(Output(m.view(1, 1)), y).loss[0] for m in around])
    assert (losses.diff() < 0).all()
    assert losses.diff().abs().max() < 1.1e-3


def test_done_and_harm_by_hand() -> None:
    y = torch.tensor([[1, 0], [1, 0], [1, 0], [-1, 0], [1, -1]])
    logits = torch.tensor([[2.0, -1.0], [-0.5, -1.0], [2.0, 0.5], [-9.0, -1.0], [0.0, 9.0]])
    verdict = AnyFinding()(Output(logits), y)
    # the fourth: its wrong-looking finding is unlabelled; the fifth: a logit of 0 calls "absent"
    assert verdict.is_final.tolist() == [False, True, True, False, True]
    assert verdict.harm.tolist() == [-1.0, 0.5, 0.5, -1.0, 0.0]
    assert decide(logits, "multi_label").tolist() == [[1, 0], [0, 0], [1, 1], [0, 0], [0, 1]]


def test_an_absent_finding_at_exactly_0_is_not_done() -> None:
    verdict = AnyFinding()(Output(torch.zeros(1, 1)), torch.zeros(1, 1, dtype=torch.long))
    assert not verdict.is_final.any()


def test_only_its_own_finding_counts() -> None:
    y = torch.tensor([[1, 0, 0], [1, 0, -1]])
    logits = torch.tensor([[-5.0, -1.0, -1.0], [5.0, 2.0, 3.0]])
    assert OneFinding(1)(Output(logits), y).is_final.tolist() == [False, True]
    assert OneFinding(0)(Output(logits), y).is_final.tolist() == [True, False]
    assert OneFinding(2)(Output(logits), y).is_final.tolist() == [False, False]


def test_whom_an_objective_applies_to() -> None:
    y = torch.tensor([[1, -1], [-1, -1], [-1, 0]])
    assert AnyFinding().applies(y).tolist() == [True, False, True]
    assert OneFinding(0).applies(y).tolist() == [True, False, False]


def test_a_finding_out_of_range_is_refused() -> None:
    y = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(SpecError, match=r"expected a finding index in 0..2, got 3"):
        OneFinding(3)(Output(torch.zeros(2, 3)), y)
    with pytest.raises(SpecError, match=r"expected a finding index in 0..2, got 3"):
        OneFinding(3).applies(y)
    with pytest.raises(SpecError, match=r"expected a finding index in 0..K-1, got -1"):
        OneFinding(-1)


def test_margins_are_positive_on_the_wrong_side() -> None:
    logits, y = drawn(3)
    margins = AnyFinding().margins(Output(logits), y)
    called = logits > 0
    known = y >= 0
    assert torch.equal((margins > 0)[known], (called != (y == 1))[known])
