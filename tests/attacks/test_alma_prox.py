"""ALMA prox meets the closed-form distance of masks, and its parts meet independent references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from attacks.alma_prox import alma_prox, penalty, penalty_slope, proximal_linf
from robustbench_med.errors import SpecError
from robustbench_med.objectives.segmentation import Damage, TargetMask
from robustbench_med.problem import Problem
from tests.attacks.test_optimum import SIDE, noisy
from tests.toys import draws, mask_card, masks_called, pixel_distances, pixel_victim, problem_of


def least_radius(away: Tensor, y: Tensor) -> float:
    """Return the radius at which the Dice first falls below 0.5; every pixel is alone."""
    for eps in away.flatten().sort().values:
        called = torch.where(away <= eps, 1 - y, y)
        both = ((called == 1) & (y == 1)).sum()
        if 2 * both / ((called == 1).sum() + (y == 1).sum()) < 0.5:
            return float(eps)
    raise AssertionError("no radius spoils the mask")


def damaged(n: int = 4) -> tuple[Problem, Tensor]:
    victim, x = pixel_victim(2, size=(SIDE, SIDE)), noisy(n, 1)
    y, away = masks_called(victim, x), pixel_distances(victim, x).amax(1)
    least = torch.tensor([least_radius(*pair) for pair in zip(away, y, strict=True)])
    return problem_of(victim, x, y, eps=torch.inf, objective=Damage(mask_card())), least


def test_finds_the_least_radius_that_spoils_a_mask() -> None:
    problem, least = damaged()
    z = alma_prox(problem, rng=draws(4), steps=150, lr=0.01)
    ratio = problem.ball.size(z, problem.x) / least
    assert problem.probe(z).success.all()
    assert ((ratio > 0.999) & (ratio < 1.06)).all()


def test_a_success_beyond_the_ball_is_not_returned() -> None:
    problem, least = damaged()
    share = torch.tensor([0.9, 1.1, 0.9, 1.1])
    z = alma_prox(problem.at(share * least), rng=draws(4), steps=150, lr=0.01)
    assert problem.probe(z).success.tolist() == [False, True, False, True]
    assert torch.equal(z[::2], problem.x[::2])


def test_draws_a_target_whose_class_is_the_last_of_three() -> None:
    """There the ratio of logits is constant and has no gradient."""
    victim, x = pixel_victim(3, size=(SIDE, SIDE)), noisy(5, 3)
    y = masks_called(victim, x)
    objective = TargetMask(mask_card(3, channels=3), mask="disc", label=1, size=0.6)
    wanted = pixel_distances(victim, x).gather(1, objective.target(y)[:, None])
    problem = problem_of(victim, x, y, eps=torch.inf, objective=objective)
    z = alma_prox(problem, rng=draws(5), steps=200, lr=0.01)
    assert problem.probe(z).success.all()
    assert (problem.ball.size(z, x) <= wanted.flatten(1).amax(1)).all()


def test_only_the_region_that_may_change_changes() -> None:
    problem, _ = damaged(2)
    region = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    region[..., : SIDE - 1] = True
    held = replace(problem, ball=replace(problem.ball, region=region))
    z = alma_prox(held, rng=draws(2), steps=150, lr=0.01)
    assert held.probe(z).success.all()
    assert torch.equal(z[..., SIDE - 1], problem.x[..., SIDE - 1])


def test_the_proximal_step_is_that_of_a_search_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 3, 3, generator=generator)
    delta = torch.randn(4, 1, 3, 3, generator=generator)
    metric = 0.5 + torch.rand(4, 1, 3, 3, generator=generator)
    rate = torch.tensor([0.0, 0.1, 1.0, 100.0])
    p = proximal_linf(delta, rate, metric, x)
    assert ((x + p >= 0) & (x + p <= 1)).all()
    for i in range(4):
        boxed = (x[i] + delta[i]).clamp(0, 1) - x[i]

        def objective(t: float, i: int = i, boxed: Tensor = boxed) -> float:
            q = boxed.clamp(-t, t)
            return float(rate[i] * t + (metric[i] * (q - delta[i]).square()).sum() / 2)

        best = minimize_scalar(objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
        torch.testing.assert_close(p[i], boxed.clamp(-best.x, best.x), atol=1e-4, rtol=0)
    assert p[3].abs().max() < 1e-8  # where the norm costs most, nothing changes


def test_the_next_multiplier_is_the_slope_of_the_penalty() -> None:
    y = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    rho, mu = torch.tensor([0.01, 2.0])[:, None], torch.tensor([0.5, 1.0])[:, None]
    (slope,) = torch.autograd.grad(penalty(y, rho, mu).sum(), y)
    torch.testing.assert_close(slope, penalty_slope(y.detach(), rho, mu).sum(0))
    assert (penalty(y, rho, mu).diff(dim=1) > 0).all()


def test_a_fraction_out_of_range_is_refused() -> None:
    problem, _ = damaged(1)
    with pytest.raises(SpecError, match="expected 0 < fraction <= 1, got 0.0"):
        alma_prox(problem, rng=draws(1), fraction=0.0)
