"""APGD-L1: the projection against a quadratic program, algorithm 1 by hand, and the reference."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from attacks.apgd_l1 import apgd_l1, project_in_box
from robustbench_med.ball import Ball
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.segmentation import Damage
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from tests.attacks.test_apgd import Waves
from tests.toys import (
    draws,
    grey_images,
    mask_card,
    masks_called,
    pixel_distances,
    pixel_victim,
    problem_of,
    victim_of,
)


def changes(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Return images of which a third of the values is 0 or 1, and large and small changes."""
    generator = torch.Generator().manual_seed(3)
    x = (1.5 * torch.rand(n, 1, 1, d, generator=generator) - 0.25).clamp(0, 1)
    scale = torch.tensor([0.1, 0.5, 3.0])[torch.arange(n) % 3].view(-1, 1, 1, 1)
    return scale * torch.randn(x.shape, generator=generator), x


def by_quadratic_program(u: np.ndarray, x: np.ndarray, eps: float) -> np.ndarray:
    """Return argmin |p - q - u| over 0 <= p <= 1 - x, 0 <= q <= x, sum(p + q) <= eps."""
    d = len(u)

    def value(pq: np.ndarray) -> tuple[float, np.ndarray]:
        rest = pq[:d] - pq[d:] - u
        return 0.5 * float(rest @ rest), np.concatenate([rest, -rest])

    solution = minimize(
        value,
        np.zeros(2 * d),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
        constraints=LinearConstraint(np.ones(2 * d), -np.inf, eps),
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solution.success
    found: np.ndarray = solution.x[:d] - solution.x[d:]
    return found


def test_the_projection_is_the_solution_of_the_quadratic_program() -> None:
    u, x = changes(18, 7)
    eps = torch.tensor([0.05, 0.4, 1.0, 2.5, 0.0, 100.0]).repeat(3)
    found = project_in_box(u, x, eps)
    for i in range(18):
        expected = by_quadratic_program(
            u[i].flatten().double().numpy(), x[i].flatten().double().numpy(), float(eps[i])
        )
        np.testing.assert_allclose(found[i].flatten(), expected, atol=2e-5)


def test_the_projection_uses_the_whole_radius_where_clipping_does_not() -> None:
    u, x = changes(30, 200)
    found, clipped = project_in_box(u, x, 4.0), Ball("l1", 4.0).project(x + u, x) - x
    large = torch.arange(30) % 3 > 0  # the small changes need no projection
    size = found.flatten(1).abs().sum(1)
    torch.testing.assert_close(size[large], torch.full((20,), 4.0))
    assert (clipped.flatten(1).abs().sum(1)[large] < 3.9).any()
    near, far = ((z - u).flatten(1).norm(dim=1) for z in (found, clipped))
    assert (near <= far + 1e-6).all()
    assert ((x + found >= 0) & (x + found <= 1 + 1e-6)).all()
    torch.testing.assert_close(project_in_box(found, x, 4.0), found)
    inside = (x + u).clamp(0, 1) - x
    torch.testing.assert_close(project_in_box(inside, x, torch.inf), inside)


def waves(eps: float, n: int = 6, k: int = 4) -> Problem:
    victim, x = victim_of(Waves(k)), grey_images(n)
    x[:, :, :2], x[:, :, -1] = 0, 1  # the box matters
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=eps, norm="l1")


def projected(z: Tensor, x: Tensor, eps: float) -> Tensor:
    """Return the projection of one image, by bisection for the amount that all values shrink."""
    u = z - x
    low, high = 0.0, float(u.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        cut = (x + u.sign() * (u.abs() - middle).clamp_min(0)).clamp(0, 1) - x
        low, high = (middle, high) if float(cut.abs().sum()) > eps else (low, middle)
    inside = u.clamp(-x, 1 - x)
    if float(inside.abs().sum()) <= eps:
        return x + inside
    return x + (u.sign() * (u.abs() - high).clamp_min(0)).clamp(-x, 1 - x)


def by_hand(problem: Problem, start: Tensor, steps: int) -> list[Tensor]:
    """Return the iterates of algorithm 1 on one image, cross-entropy written out."""
    x, eps, seen = problem.x, float(problem.ball.eps), []

    def f(z: Tensor) -> tuple[float, Tensor]:
        seen.append(z)
        leaf = z.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(problem.judge(leaf).logits, problem.y)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]

    z = start
    for factor, share in ((3, 0.3), (2, 0.3), (1, 0.4)):
        z, count = projected(z, x, factor * eps), round(share * steps)
        every, eta, best, top = max(int(0.04 * count), 1), factor * eps, z, -math.inf
        changed, sparse = int((z != x).sum()), int((z != x).sum()) / 1.5
        for k in range(count):
            loss, g = f(z)
            if loss > top:
                best, top, slope = z, loss, g
            if k and k % every == 0:
                now = int((best != x).sum())
                if now < 0.95 * changed:
                    eta, z, g = factor * eps, best, slope
                else:
                    eta = max(eta / 1.5, factor * eps / 10)
                changed, sparse = now, now / 1.5
            g = torch.where((z <= 0) & (g < 0) | (z >= 1) & (g > 0), 0.0, g)
            chosen = g.abs().flatten().topk(max(int(sparse), 1)).indices
            step = torch.zeros_like(g).flatten()
            step[chosen] = g.flatten()[chosen].sign()
            z = projected(z + eta * step.view_as(g) / step.abs().sum(), x, factor * eps)
        if factor > 1:
            z = best
    return seen


def test_takes_the_steps_of_algorithm_1() -> None:
    precise = Waves(4).double()
    problem = waves(0.6)
    problem = replace(
        problem,
        objective=LossOverride(problem.objective, use_all_steps=True),
        judge=lambda z: Output(precise(z)),
        x=problem.x.double(),
    )
    seen: list[Tensor] = []
    judge = problem.judge

    def watched(z: Tensor) -> Output:
        seen.append(z.detach().clone())
        return judge(z)

    apgd_l1(replace(problem, judge=watched), rng=draws(6), steps=60)
    assert len(seen) == 60 + 1
    for i in range(6):
        alone = problem.select(torch.tensor([i]))
        # the first iterate lies in the widest ball already
        iterates = by_hand(alone, seen[0][i : i + 1], 60)
        ours = torch.cat([z[i : i + 1] for z in seen[:-1]])
        torch.testing.assert_close(ours, torch.cat(iterates), atol=1e-6, rtol=0)


@pytest.mark.parametrize("wide", [True, False])
def test_the_steps_are_those_stated(wide: bool) -> None:
    problem = waves(1e-4)
    for steps in (1, 2, 7, 30):
        before = problem.counter.backward
        z = apgd_l1(problem, rng=draws(6), steps=steps, wide=wide)
        assert problem.counter.backward - before <= steps * 6
        assert (problem.ball.size(z, problem.x) <= 1.001e-4).all()
    assert problem.counter.backward - before == 30 * 6


def test_breaks_as_many_as_the_reference() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyautoattack.autopgd_base import APGDAttack
    problem = waves(0.08, n=60, k=10)
    theirs = APGDAttack(
        Waves(10),
        n_iter=30,
        norm="L1",
        n_restarts=1,
        eps=0.08,
        seed=0,
        use_largereps=True,
        device="cpu",
    ).perturb(problem.x, problem.y)
    reference = problem.probe(theirs).is_final.sum()
    ours = problem.probe(apgd_l1(problem, rng=draws(60), steps=30)).is_final.sum()
    assert 5 < reference < 55
    assert ours >= reference - 1  # their starts are not ours


@pytest.mark.parametrize("k", [1, 2])
def test_masks_fall_pixel_by_pixel_as_far_as_the_radius_reaches(k: int) -> None:
    """The radius is the sum of the distances of the pixels that can flip at once."""
    victim = pixel_victim(k, size=(6, 6))
    x = 0.5 + 0.1 * (grey_images(5, side=6) - 0.5)
    y = masks_called(victim, x)
    away = pixel_distances(victim, x).amax(1).flatten(1).sort(1).values
    posed = problem_of(victim, x, y, eps=0.9 * away[:, 0], norm="l1", objective=Damage(mask_card()))
    assert torch.equal(masks_called(victim, apgd_l1(posed, rng=draws(5), steps=20)), y)
    few = posed.at(away[:, :12].sum(1))
    z = apgd_l1(few, rng=draws(5), steps=100, loss="masked")
    flipped = (masks_called(victim, z) != y).flatten(1).sum(1)
    assert (flipped <= 12).all()
    assert (flipped >= 6).all()
