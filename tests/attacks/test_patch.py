"""Patch: the closed form where it never moves, held-out images, targets, the budget of values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.patch import patch
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Targeted
from robustbench_med.problem import Problem
from robustbench_med.universal import Patch
from tests.toys import draws, generic_victim, grey_images, problem_of, victim_of


class Bright(nn.Module):
    """Class 1 where the brightest 3 x 3 neighbourhood is bright, wherever it lies."""

    def forward(self, x: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 3, 1)
        top = 10 * (mean.flatten(1).amax(1) - 0.8)
        return torch.stack([-top, top], 1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        m = x.flatten(1).mean(1)
        return torch.stack([-m, m], 1)


def bright(n: int, seed: int, eps: float = 25.0, **more: Any) -> Problem:  # noqa: ANN401
    x = grey_images(n, side=12, seed=seed)
    victim = victim_of(Bright(), size=(12, 12))
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=eps, norm="l0", **more)


def share_done(fitted: Patch, problem: Problem) -> float:
    z = fitted.apply(problem.x, problem.ball, draws(len(problem), seed=9))
    return float(problem.probe(z).is_final.float().mean())


def test_a_patch_that_stays_is_the_sign_of_the_gradient() -> None:
    victim = generic_victim(2, scale=0.1)
    x = grey_images(30)
    problem = problem_of(
        victim, x, victim(x).logits.argmax(1), eps=16.0, norm="l0", objective=Targeted(1)
    )
    found = patch(
        problem, rng=draws(30), scale=[1.0, 1.0], rotation=0.0, position="corner", clip=1e9
    )
    rows: Any = victim.module.w
    w = rows.detach()
    slope = (w[1] - w[0]).view(8, 8)[:4, :4]
    torch.testing.assert_close(found.pattern[0], (slope > 0).float(), atol=1e-5, rtol=0)


def test_fools_held_out_images_wherever_it_lies_and_its_control_does_not() -> None:
    fitted = patch(bright(40, seed=1), rng=draws(40))
    held_out = bright(40, seed=2)
    assert fitted.pattern.shape == (1, 5, 5)
    assert fitted.pattern.min() >= 0
    assert fitted.pattern.max() <= 1
    assert share_done(fitted, held_out) > 0.95
    start = Patch(torch.rand(1, 5, 5, generator=torch.manual_seed(0)), (0.8, 1.0), 20.0)
    assert share_done(start, held_out) < 0.2
    z = fitted.apply(held_out.x, held_out.ball, draws(40))
    assert (held_out.ball.size(z, held_out.x) <= 25).all()


def test_targeted_patch_reaches_its_class() -> None:
    fitted = patch(bright(40, seed=1, objective=Targeted(1)), rng=draws(40))
    assert share_done(fitted, bright(40, seed=2, objective=Targeted(1))) > 0.95


@pytest.mark.parametrize(
    ("shape", "eps", "side"),
    [((1, 8, 8), 16.0, 4), ((3, 8, 8), 47.0, 3), ((1, 6, 6, 6), 125.0, 5), ((1, 6, 9), 1e9, 6)],
)
def test_the_patch_is_the_largest_square_of_eps_values(
    shape: tuple[int, ...], eps: float, side: int
) -> None:
    victim = victim_of(Mean(), channels=shape[0], size=shape[1:])
    x = torch.full((2, *shape), 0.5)
    problem = problem_of(victim, x, torch.tensor([1, 1]), eps=eps, norm="l0")
    found = patch(problem, rng=draws(2), epochs=1)
    assert found.pattern.shape == (shape[0], *(side,) * (len(shape) - 1))


@pytest.mark.parametrize(("channels", "side"), [((1,), 5), ((0, 2), 3), (None, 2)])
def test_channels_that_may_not_change_cost_the_patch_nothing(
    channels: tuple[int, ...] | None, side: int
) -> None:
    victim = victim_of(Mean(), channels=4, size=(8, 8))
    x = torch.full((2, 4, 8, 8), 0.5)
    problem = problem_of(victim, x, torch.tensor([1, 1]), eps=25.0, norm="l0")
    problem = replace(problem, ball=replace(problem.ball, channels=channels))
    found = patch(problem, rng=draws(2), epochs=1, scale=[1.0, 1.0], rotation=0.0)
    assert found.pattern.shape == (4, side, side)
    z = found.apply(x, problem.ball, draws(2))
    assert (problem.ball.size(z, x) == len(channels or range(4)) * side**2).all()


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"epochs": 0}, "expected epochs > 0, got 0"),
        ({"momentum": 1.0}, r"expected momentum in \[0, 1\), got 1.0"),
        ({"scale": [0.0, 1.0]}, r"expected scale \[least, greatest\] in \(0, 1\], got"),
        ({"scale": [1.0]}, r"expected scale \[least, greatest\] in \(0, 1\], got"),
        ({"rotation": 200.0}, "expected rotation in 0..180 degrees, got 200.0"),
        ({"position": "left"}, "expected position in random, centre, corner, got 'left'"),
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(SpecError, match=rule):
        patch(bright(2, seed=1), rng=draws(2), **wrong)


def test_a_budget_of_no_pixel_and_another_norm_are_refused() -> None:
    with pytest.raises(
        SpecError, match="expected eps >= 1 .one pixel of every channel that may change., got 0.5"
    ):
        patch(bright(2, seed=1, eps=0.5), rng=draws(2))
    victim = generic_victim(2)
    x = grey_images(2)
    problem = problem_of(victim, x, torch.tensor([0, 1]), eps=0.1)
    with pytest.raises(SpecError, match="expected norm l0 .a number of values., got linf"):
        patch(problem, rng=draws(2))
