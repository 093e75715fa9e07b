"""Objectives on one label: the direction of cross-entropy, no underflow, the rules of done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustbench_med.errors import SpecError
from robustbench_med.objective import Objective
from robustbench_med.objectives import make
from robustbench_med.objectives.classification import Targeted, Untargeted, two_sided
from robustbench_med.objectives.decide import decide, probabilities
from robustbench_med.types import Output


def logits_of(k: int, n: int = 40, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    return scale * torch.randn(n, k, generator=generator, dtype=torch.float64)


def slopes(loss_of: object, logits: Tensor) -> Tensor:
    assert callable(loss_of)
    leaf = logits.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(loss_of(leaf).sum(), leaf)
    gradient: Tensor = g
    return gradient


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(two_sided(logits), y, reduction="none")


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_untargeted_climbs_the_cross_entropy(k: int) -> None:
    logits = logits_of(k)
    y = torch.arange(len(logits)) % max(k, 2)
    ours = slopes(lambda out: Untargeted()(Output(out), y).loss, logits)
    theirs = slopes(lambda out: cross_entropy(out, y), logits)
    cosine = functional.cosine_similarity(ours, theirs, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-12, rtol=0)
    # a monotone map of the cross-entropy: both order candidates of a sample alike
    order = Untargeted()(Output(logits), torch.zeros_like(y)).loss.argsort()
    assert torch.equal(order, cross_entropy(logits, torch.zeros_like(y)).argsort())


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_targeted_descends_the_cross_entropy_of_its_target(k: int) -> None:
    logits, target = logits_of(k), max(k, 2) - 1
    goal = torch.full((len(logits),), target)
    ours = slopes(lambda out: Targeted(target)(Output(out), torch.zeros_like(goal)).loss, logits)
    theirs = -slopes(lambda out: cross_entropy(out, goal), logits)
    cosine = functional.cosine_similarity(ours, theirs, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3, 10])
@pytest.mark.parametrize("objective", [Untargeted(), Targeted(1)])
def test_a_sure_victim_keeps_its_gradient(k: int, objective: Objective) -> None:
    y = torch.zeros(1, dtype=torch.long)
    logits = torch.zeros(1, k)
    logits[0, 0] = -300.0 if k == 1 else 300.0  # class 0 by e^300: float32 cross-entropy is 0
    assert cross_entropy(logits, y) == 0
    g = slopes(lambda out: objective(Output(out), y).loss, logits)
    assert torch.isfinite(g).all()
    assert g.abs().max() > 0.05
    verdict = objective(Output(logits), y)
    assert torch.isfinite(verdict.loss).all()
    assert not verdict.is_final.any()


@pytest.mark.parametrize("k", [2, 3, 10])
def test_untargeted_is_done_where_the_argmax_is_wrong(k: int) -> None:
    logits = logits_of(k)
    y = torch.arange(len(logits)) % k
    verdict = Untargeted()(Output(logits), y)
    assert torch.equal(verdict.is_final, logits.argmax(1) != y)
    assert torch.equal(verdict.is_final, verdict.harm > 0)
    for i in range(5):
        others = [float(logits[i, j]) for j in range(k) if j != int(y[i])]
        assert float(verdict.harm[i]) == pytest.approx(max(others) - float(logits[i, y[i]]))


@pytest.mark.parametrize("k", [2, 3, 10])
def test_targeted_is_done_where_the_argmax_is_the_target(k: int) -> None:
    logits = logits_of(k)
    y = torch.zeros(len(logits), dtype=torch.long)
    verdict = Targeted(1)(Output(logits), y)
    assert torch.equal(verdict.is_final, logits.argmax(1) == 1)
    assert torch.equal(verdict.is_final, verdict.harm > 0)
    assert verdict.is_final.any()
    assert not verdict.is_final.all()


def test_a_tie_is_decided_for_the_first_class_everywhere() -> None:
    output = Output(torch.zeros(3, 3))
    y = torch.tensor([0, 1, 2])
    verdict = Untargeted()(output, y)
    assert verdict.is_final.tolist() == [False, True, True]
    assert verdict.harm.tolist() == [0, 0, 0]
    assert decide(output.logits, "single_label").tolist() == [0, 0, 0]
    assert Targeted(0)(output, y).is_final.all()
    assert not Targeted(1)(output, y).is_final.any()


def test_one_logit_is_the_pair_of_zero_and_itself() -> None:
    single_logit = Output(torch.tensor([[2.0], [-1.0], [0.0]]))
    two = Output(torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.0, 0.0]]))
    y = torch.tensor([1, 1, 0])
    for objective in (Untargeted(), Targeted(0)):
        for a, b in zip(objective(single_logit, y), objective(two, y), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(objective.margins(single_logit, y), objective.margins(two, y))
    assert decide(single_logit.logits, "single_label").tolist() == [1, 0, 0]
    assert Untargeted()(single_logit, y).is_final.tolist() == [False, True, False]


def test_margins_leave_out_the_truth() -> None:
    logits = logits_of(4)
    y = torch.arange(len(logits)) % 4
    margins = Untargeted().margins(Output(logits), y)
    assert (margins.gather(1, y[:, None]) == -torch.inf).all()
    torch.testing.assert_close(margins.amax(1), Untargeted()(Output(logits), y).harm)
    assert Targeted(1).margins(Output(logits), y).shape == (len(y), 1)


def test_whom_an_objective_applies_to() -> None:
    y = torch.tensor([0, 1, 2, -1])
    assert Untargeted().applies(y).tolist() == [True, True, True, False]
    assert Targeted(1).applies(y).tolist() == [True, False, True, False]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_target_out_of_range_is_refused(k: int) -> None:
    classes = max(k, 2)
    with pytest.raises(SpecError, match=rf"expected a target class in 0..{classes - 1}, got 7"):
        Targeted(7)(Output(torch.zeros(2, k)), torch.zeros(2, dtype=torch.long))
    with pytest.raises(SpecError, match=r"expected a target class in 0..K-1, got -1"):
        Targeted(-1)


def test_probabilities_keep_the_rank_of_saturated_scores() -> None:
    logits = torch.tensor([[0.0, 20.0], [0.0, 25.0]])
    p = probabilities(logits, "single_label")[:, 1]
    assert p[0] < p[1] < 1
    assert probabilities(torch.tensor([[0.0]]), "single_label").tolist() == [[0.5, 0.5]]
    assert probabilities(torch.tensor([[0.0, 0.0]]), "multi_label").tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("nonsense", "single_label", r"for single_label data \(targeted, untargeted\), got"),
        ("nonsense", "multi_label", r"for multi_label data \(finding, untargeted\), got"),
        ("finding(index=0)", "single_label", "expected an objective for single_label data"),
        ("targeted(target=0)", "multi_label", "expected an objective for multi_label data"),
        ("targeted", "single_label", "objective .*: .*target"),
        ("targeted(aim=1)", "single_label", "objective .*: .*(aim|target)"),
        ("untargeted(target=1)", "single_label", "expected untargeted, got"),
        ("finding", "multi_label", "objective .*: .*index"),
        ("finding(index=-2)", "multi_label", "expected a finding index in 0..K-1, got -2"),
        ("targeted(target=-1)", "single_label", "expected a target class in 0..K-1, got -1"),
        ("targeted(target=open)", "single_label", "literal"),
        ("targeted(1)", "single_label", "keyword"),
    ],
)
def test_what_make_refuses(text: str, task: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make(text, task)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_make_knows_what_it_says() -> None:
    parameters = {"targeted": "(target=1)", "finding": "(index=1)"}
    known = (("untargeted", "single_label"), ("targeted", "single_label"))
    for name, task in (*known, ("untargeted", "multi_label"), ("finding", "multi_label")):
        assert isinstance(make(name + parameters.get(name, ""), task), Objective)  # type: ignore[arg-type]
