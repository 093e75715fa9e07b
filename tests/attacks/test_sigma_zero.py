"""sigma-zero: the gradient of its loss, its passes, and the values it changes."""

from __future__ import annotations

import torch

from attacks import sigma_zero as module
from attacks.sigma_zero import sigma_zero
from robustbench_med.problem import Problem
from tests.toys import distance, draws, generic_victim, grey_images, problem_of

N = 6


def posed() -> Problem:
    victim = generic_victim(3)
    x = grey_images(N)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm="l0")


def test_the_gradient_is_that_of_the_loss_of_the_paper() -> None:
    """Autograd on the margin that is missing plus the mean of delta^2 / (delta^2 + sigma)."""
    problem = posed()
    delta = 0.05 * draws(N).normal(1, 8, 8)
    # the goal of the last image is reached: its margin counts no longer
    delta[-1] = (1 - problem.x[-1] - problem.x[-1]) * (problem.gradient(problem.x)[0][-1] > 0)
    leaf = delta.clone().requires_grad_(True)
    harm = problem.objective(problem.judge(problem.x + leaf), problem.y).harm
    count = (leaf.square() / (leaf.square() + 1e-3)).flatten(1).mean(1)
    (expected,) = torch.autograd.grad(((-harm).clamp_min(0) + count).sum(), leaf)
    expected = expected / expected.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    leaf = delta.clone().requires_grad_(True)
    harm = problem.objective(problem.judge(problem.x + leaf), problem.y).harm
    (g,) = torch.autograd.grad(harm.sum(), leaf)
    found = module._loss_gradient(g, delta, harm.detach() > 0, 1e-3)
    torch.testing.assert_close(found, expected)


def test_fewer_values_than_a_greedy_start_and_no_more_passes_than_stated() -> None:
    problem = posed()
    nearest = distance(problem.judge, problem.x, problem.y, "l0")  # type: ignore[arg-type]
    z = sigma_zero(problem, rng=draws(N), steps=100)
    size = problem.ball.size(z, problem.x)
    assert problem.probe(z).is_final.all()
    assert (size >= nearest).all()
    assert (size <= nearest + 1).all()
    assert problem.counter.backward <= (100 + 3) * N


def test_a_success_on_the_way_is_kept_and_one_value_is_enough() -> None:
    problem = posed()
    few = sigma_zero(problem, rng=draws(N), steps=5)
    assert torch.equal(few[~problem.probe(few).is_final], problem.x[~problem.probe(few).is_final])
    before = problem.counter.backward
    wrong = problem_of(
        problem.judge,  # type: ignore[arg-type]
        problem.x,
        (problem.y + 1) % 3,
        eps=torch.inf,
        norm="l0",
    )
    assert torch.equal(sigma_zero(wrong, rng=draws(N), steps=50), problem.x)
    assert wrong.counter.backward == N  # one look is enough
    assert problem.counter.backward == before
