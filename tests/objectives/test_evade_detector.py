"""EvadeDetector: the verdict on outputs made by hand, for each loss, and what may climb it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.evade_detector import EvadeDetector, EvasionLoss
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding
from robustbench_med.objectives.pixels import with_loss
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from tests.toys import generic_victim, grey_images, problem_of

# truth 0: called right and passing, right and rejected, wrong and rejected, wrong and passing
LOGITS = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 0.5]])
SUSPICION = torch.tensor([-1.0, 2.0, 4.0, -0.25])
Y = torch.zeros(4, dtype=torch.long)
GOAL = torch.tensor([-2.0, -1.0, 3.0, 0.5])  # margin, and for two classes the log-odds too
LOSSES: dict[EvasionLoss, list[float]] = {
    "joint": [-2.0, -1.0 - 2.0, 3.0 - 4.0, 0.5],
    "selective": [-2.0, -1.0, -4.0, 0.25],
    "goal": [-2.0, -1.0, 3.0, 0.5],
    "suspicion": [1.0, -2.0, -4.0, 0.25],
}


@pytest.mark.parametrize("loss", LOSSES)
def test_verdict_on_outputs_made_by_hand(loss: EvasionLoss) -> None:
    verdict = EvadeDetector(Untargeted(), loss)(Output(LOGITS, SUSPICION), Y)
    torch.testing.assert_close(verdict.loss, torch.tensor(LOSSES[loss]))
    torch.testing.assert_close(verdict.harm, torch.tensor([-2.0, -2.0, -4.0, 0.25]))
    assert verdict.is_final.tolist() == [False, False, False, True]
    assert verdict.success.tolist() == [False, False, False, True]


def test_weight_counts_the_suspicion_above_0_only() -> None:
    verdict = EvadeDetector(Untargeted(), weight=0.5)(Output(LOGITS, SUSPICION), Y)
    torch.testing.assert_close(verdict.loss, torch.tensor([-2.0, -2.0, 1.0, 0.5]))


def test_margins_go_no_further_than_the_suspicion_allows() -> None:
    objective = EvadeDetector(Untargeted())
    output = Output(LOGITS, SUSPICION)
    margins = objective.margins(output, Y)
    assert margins[:, 0].tolist() == [-torch.inf] * 4
    torch.testing.assert_close(margins[:, 1], objective(output, Y).harm)
    assert ((margins > 0).any(1) == objective(output, Y).is_final).all()


def test_margins_of_findings() -> None:
    logits, y = torch.tensor([[1.0, -1.0], [-1.0, 3.0]]), torch.tensor([[1, 0], [1, -1]])
    objective = EvadeDetector(AnyFinding())
    output = Output(logits, torch.tensor([-5.0, 0.5]))
    expected = torch.tensor([[-1.0, -1.0], [-0.5, -torch.inf]])
    torch.testing.assert_close(objective.margins(output, y), expected)
    assert objective.applies(y).tolist() == [True, True]


def test_an_image_exactly_at_the_threshold_passes() -> None:
    verdict = EvadeDetector(Untargeted())(Output(LOGITS[2:3], torch.zeros(1)), Y[:1])
    assert verdict.is_final.all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_view_without_detector_lets_all_pass_and_can_be_climbed(loss: EvasionLoss) -> None:
    leaf = LOGITS.clone().requires_grad_(True)
    verdict = EvadeDetector(Untargeted(), loss)(Output(leaf), Y)
    assert verdict.is_final.tolist() == [False, False, True, True]
    torch.testing.assert_close(verdict.harm.detach(), GOAL)
    (g,) = torch.autograd.grad(verdict.loss.sum(), leaf)
    assert torch.isfinite(g).all()
    assert (g[:2] == 0).all() == (loss == "suspicion")


def test_rows_follow_the_goal() -> None:
    objective = EvadeDetector(Untargeted(), "selective", 2.0)
    taken = objective.select(torch.tensor([1])).bind(Y)
    assert (taken.loss, taken.weight) == ("selective", 2.0)
    spread = objective.dlr_scale(Output(torch.tensor([[5.0, 3.0, 1.0]])))
    torch.testing.assert_close(spread, torch.tensor([4.0]))


def guarded_problem() -> Problem:
    victim = generic_victim(3)
    x = grey_images(4)

    def guard(z: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG001
        return z.flatten(1).mean(1) - 0.5

    guarded = replace(victim, guard=guard)
    y = victim(x).logits.argmax(1)
    return problem_of(guarded, x, y, eps=0.05, objective=EvadeDetector(Untargeted()))


@pytest.mark.parametrize("loss", LOSSES)
def test_climbing_names_the_losses_past_a_detector(loss: EvasionLoss) -> None:
    problem = guarded_problem()
    objective = with_loss(problem, loss).objective
    assert isinstance(objective, EvadeDetector)
    assert objective.loss == loss
    endless = replace(problem, objective=LossOverride(objective, use_all_steps=True))
    override = with_loss(endless, "goal").objective
    assert isinstance(override, LossOverride)
    assert override.use_all_steps
    assert isinstance(override.base, EvadeDetector)
    assert override.base.loss == "goal"


def test_climbing_refuses_a_victim_without_detector() -> None:
    victim = generic_victim(3)
    x = grey_images(2)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=0.05)
    with pytest.raises(SpecError, match="expected a victim with a detector for loss 'joint', got"):
        with_loss(problem, "joint")
