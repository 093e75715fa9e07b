"""DeepFool: closed forms, the box, the region, and the peers."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.deepfool import deepfool
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.victim import Victim
from tests.toys import (
    Linear,
    distance,
    draws,
    generic_victim,
    grey_images,
    problem_of,
    small_victim,
    victim_of,
)

NORMS: tuple[Norm, ...] = ("l2", "linf")


class Plain(nn.Module):
    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.victim, self.module = victim, victim.module

    def forward(self, x: Tensor) -> Tensor:
        return self.victim(x).logits


def near(k: int, n: int = 12) -> tuple[Victim, Tensor, Tensor]:
    """Return a small curved victim whose boundary lies within the box."""
    victim = small_victim(k)
    x = grey_images(n)
    victim = victim.at(-0.97 * victim(x).logits.detach().mean(0))
    return victim, x, victim(x).logits.argmax(1)


def sizes(problem: Problem, z: Tensor) -> Tensor:
    size = problem.ball.size(z, problem.x)
    return torch.where(problem.probe(z).is_final, size, torch.inf)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("k", [2, 3, 10])
def test_is_exact_where_the_victim_is_affine(norm: Norm, k: int) -> None:
    victim = generic_victim(k)
    x = grey_images(16)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    size = sizes(problem, deepfool(problem, rng=draws(16)))
    nearest = distance(victim, x, y, norm)
    torch.testing.assert_close(size, nearest, rtol=5e-4, atol=0)
    # one step crosses: the slopes of the clean image, a look beyond, and one to walk back
    count = 16 * (k - 1)
    assert problem.counter.backward == count
    assert problem.counter.forward == 16 * (3 + 1)  # and the one of `sizes`
    paper = sizes(problem, deepfool(problem, rng=draws(16), refine=0))
    torch.testing.assert_close(paper, nearest * 1.02, rtol=1e-3, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_is_exact_where_the_box_is_in_the_way(norm: Norm) -> None:
    w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 2.0, 1.0, -1.0]])
    x = torch.tensor([0.95, 0.5, 0.5, 0.0]).view(1, 1, 2, 2)  # the last has no room
    gap = 0.8
    victim = victim_of(Linear(w, torch.tensor([0.0, -gap]) - (w @ x.flatten())), size=(2, 2))
    problem = problem_of(victim, x, torch.tensor([0]), eps=torch.inf, norm=norm)
    # the first value stops at 1 after 0.05; the others make up for the rest of the gap
    rest = gap - 3 * 0.05
    wanted = rest / 3 if norm == "linf" else (0.05**2 + rest**2 / 5) ** 0.5
    size = sizes(problem, deepfool(problem, rng=draws(1))).item()
    # the way back is a line: it takes the overshoot off the stopped value too
    assert wanted * 0.9999 <= size <= wanted * 1.006


def test_does_not_stall_on_the_boundary() -> None:
    """A margin that flattens toward the boundary: plain Newton steps stay on the near side."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            m = x.flatten(1).sum(1) - 3.0  # the boundary is at m = 0
            bent = torch.where(m < 0, m - m.square(), m)  # concave: steps fall short
            return torch.stack([torch.zeros_like(m), bent], 1)

    victim = victim_of(Flat(), size=(2, 2))
    x = torch.full((3, 1, 2, 2), 0.4)
    x[1], x[2] = 0.7, 0.75  # the last lies on the boundary itself
    problem = problem_of(victim, x, torch.zeros(3, dtype=torch.long), eps=torch.inf, norm="l2")
    z = deepfool(problem, rng=draws(3), steps=8)
    wanted = (3.0 - x.flatten(1).sum(1)).abs() / 2
    torch.testing.assert_close(sizes(problem, z), wanted, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_only_what_is_allowed_changes(norm: Norm) -> None:
    victim, x, y = near(3)
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., 2:6, 2:7] = True
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    free = sizes(problem, deepfool(problem, rng=draws(12)))
    held = replace(problem, ball=replace(problem.ball, region=region))
    z = deepfool(held, rng=draws(12))
    assert not (z != x)[~region.expand_as(x)].any()
    size = sizes(held, z)
    assert torch.isfinite(size).any()
    assert (size >= free * 0.999).all()


def test_few_candidates_are_fewer_passes() -> None:
    victim, x, y = near(10)
    problem = problem_of(victim, x, y, eps=torch.inf, norm="l2")
    all_ways = sizes(problem, deepfool(problem, rng=draws(12)))
    spent, problem.counter.backward = problem.counter.backward, 0
    one = sizes(problem, deepfool(problem, rng=draws(12), candidates=1))
    assert problem.counter.backward < spent / 3
    assert one.median() >= all_ways.median() * 0.999


def test_without_a_slope_the_clean_image_is_returned() -> None:
    victim, x, y = near(2, n=4)
    problem = problem_of(victim, x, 1 - y, eps=torch.inf, norm="l2")  # done before it starts
    assert torch.equal(deepfool(problem, rng=draws(4)), x)
    assert problem.counter.backward == 4
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    assert len(deepfool(nothing, rng=draws(0))) == 0

    level = victim_of(Linear(torch.zeros(2, 64), torch.tensor([1.0, 0.0])))  # no slope anywhere
    hopeless = problem_of(level, x, torch.zeros(4, dtype=torch.long), eps=torch.inf, norm="l2")
    assert torch.equal(deepfool(hopeless, rng=draws(4)), x)
    assert hopeless.counter.backward == 4  # and it leaves at once


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"overshoot": 0.0}, {"candidates": -1}, {"refine": -1}]
)
def test_bad_parameters_are_refused(wrong: dict[str, Any]) -> None:
    victim, x, y = near(2, n=2)
    rule = ">= 0" if "refine" in wrong else "> 0"
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} {rule}, got"):
        deepfool(problem_of(victim, x, y, eps=torch.inf, norm="l2"), rng=draws(2), **wrong)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("k", [2, 5])
def test_is_no_farther_than_foolbox(norm: Norm, k: int) -> None:
    victim, x, y = near(k)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    ours = sizes(problem, deepfool(problem, rng=draws(12)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        name = {"l2": "L2DeepFoolAttack", "linf": "LinfDeepFoolAttack"}[norm]
        model = foolbox.PyTorchModel(Plain(victim).eval(), bounds=(0, 1))
        rule = foolbox.criteria.Misclassification(y)
        theirs = sizes(problem, getattr(foolbox.attacks, name)().run(model, x, rule))
    assert torch.isfinite(ours).all()
    assert ours.median() <= 1.02 * theirs.median()


def test_is_no_farther_than_torchattacks() -> None:
    victim, x, y = near(3)
    problem = problem_of(victim, x, y, eps=torch.inf, norm="l2")
    ours = sizes(problem, deepfool(problem, rng=draws(12)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks

        theirs = sizes(problem, torchattacks.DeepFool(Plain(victim).eval())(x, y))
    assert ours.median() <= 1.02 * theirs.median()
