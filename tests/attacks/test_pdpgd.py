"""PDPGD: its proximal operators, its weights of goal and distance, and what it changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from attacks.pdpgd import PROXIMAL, pdpgd
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.problem import Problem
from robustbench_med.types import Images, Output
from tests.toys import distance, draws, generic_victim, grey_images, problem_of

N = 6
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


def posed(norm: Norm = "l1", k: int = 3) -> Problem:
    victim = generic_victim(k)
    x = grey_images(N)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm=norm)


def by_program(u: np.ndarray, amount: float, norm: Norm) -> np.ndarray:
    """Return argmin |p - u|^2 / 2 + amount |p| as a smooth program with a bound `t` on the norm."""
    d = len(u)

    def value(v: np.ndarray) -> float:
        return 0.5 * float(((v[:d] - u) ** 2).sum()) + amount * float(v[d:].sum())

    if norm == "l2":
        near = minimize(
            lambda p: 0.5 * ((p - u) ** 2).sum() + amount * np.sqrt((p**2).sum() + 1e-14), u
        )
        return np.asarray(near.x)
    eye, bounds = np.eye(d), np.eye(d) if norm == "l1" else np.ones((d, 1))
    rows = np.block([[-eye, bounds], [eye, bounds]])
    constraint = LinearConstraint(rows, 0, np.inf)
    start = np.concatenate([u, np.abs(u) if norm == "l1" else [np.abs(u).max()]])
    solution = minimize(
        value, start, method="SLSQP", constraints=constraint, options={"ftol": 1e-14}
    )
    return np.asarray(solution.x[:d])


@pytest.mark.parametrize("norm", NORMS)
def test_the_proximal_points_are_those_of_a_program(norm: Norm) -> None:
    u = draws(8).normal(1, 1, 5)
    amount = torch.linspace(0.05, 3.0, 8)  # up to a change that vanishes
    found = PROXIMAL[norm](u, amount)
    for i in range(8):
        expected = by_program(u[i].flatten().double().numpy(), float(amount[i]), norm)
        np.testing.assert_allclose(found[i].flatten(), expected, atol=2e-4)
    assert (found[-1] == 0).all() or norm == "linf"
    assert (PROXIMAL[norm](u, torch.full((8,), 100.0)) == 0).all()


def boxed_l1(problem: Problem) -> torch.Tensor:
    """Return exact L1 distances in the box: the steepest values go to its edge first."""
    w = problem.judge.module.w.detach()  # type: ignore[attr-defined]
    logits, x = problem.outputs(problem.x).logits, problem.x.flatten(1)
    nearest = torch.full((len(x),), torch.inf)
    for j in range(len(w)):
        away = w[j] - w[problem.y]
        gap = logits.gather(1, problem.y[:, None]) - logits[:, j : j + 1]
        room, order = torch.where(away > 0, 1 - x, x), away.abs().argsort(1, descending=True)
        room, slope = room.gather(1, order), away.abs().gather(1, order).clamp_min(1e-9)
        left = (gap - (room * slope).cumsum(1) + room * slope).clamp_min(0)  # before each value
        found = torch.minimum(room, left / slope).sum(1)
        nearest = torch.where(problem.y == j, nearest, nearest.minimum(found))
    return nearest


@pytest.mark.parametrize(("norm", "share"), [("l1", 1.02), ("l2", 1.03), ("linf", 1.01)])
def test_finds_the_distance_of_a_victim_in_general_position(norm: Norm, share: float) -> None:
    problem = posed(norm)
    exact = distance(problem.judge, problem.x, problem.y, norm)  # type: ignore[arg-type]
    exact = boxed_l1(problem) if norm == "l1" else exact
    z = pdpgd(problem, rng=draws(N))
    size = problem.ball.size(z, problem.x)
    assert problem.probe(z).is_final.all()
    assert (size >= 0.999 * exact).all()
    assert (size <= share * exact).all()


def test_a_change_in_l1_is_sparse() -> None:
    problem = posed("l1")
    changed = (pdpgd(problem, rng=draws(N)) != problem.x).flatten(1).sum(1)
    assert (changed <= 16).all()
    dense = (pdpgd(posed("l2"), rng=draws(N)) != problem.x).flatten(1).sum(1)
    assert (dense > 50).all()


def test_logits_of_any_size_are_attacked_alike() -> None:
    problem = posed("l1")
    tiny = replace(problem, judge=lambda z: Output(1e-6 * problem.judge(z).logits))
    sizes = [p.ball.size(pdpgd(p, rng=draws(N), steps=100), p.x).mean() for p in (problem, tiny)]
    assert tiny.probe(pdpgd(tiny, rng=draws(N), steps=100)).is_final.all()
    torch.testing.assert_close(*sizes, rtol=0.1, atol=0)


def test_samples_done_at_the_clean_image_cost_one_pass() -> None:
    problem = posed("l2", k=2)
    wrong = replace(problem, y=1 - problem.y)
    assert torch.equal(pdpgd(wrong, rng=draws(N)), wrong.x)
    assert (wrong.counter.forward, wrong.counter.backward) == (N, N)
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    assert len(pdpgd(nothing, rng=draws(0))) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_only_what_may_change_does_and_passes_are_those_stated(norm: Norm) -> None:
    problem = posed(norm)
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., :5] = True
    z = pdpgd(replace(problem, ball=Ball(norm, torch.inf, region=region)), rng=draws(N), steps=60)
    assert torch.equal(z[..., 5:], problem.x[..., 5:])
    assert problem.probe(z).is_final.all()
    assert problem.counter.backward == 60 * N


def test_a_guide_that_claims_too_much_is_not_believed() -> None:
    problem = posed("l1", k=2)

    def boasting(z: Images) -> Output:  # right slopes, but every class is called wrong
        logits = problem.judge(z).logits
        return Output(logits - 1e3 * torch.nn.functional.one_hot(problem.y[: len(z)], 2))

    assert (problem.y == problem.y[0]).all()  # so that rows need no order
    z = pdpgd(replace(problem, guide=boasting), rng=draws(N), steps=100)
    changed = (z != problem.x).flatten(1).any(1)
    assert problem.probe(z).is_final[changed].all()
