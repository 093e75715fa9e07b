"""APGD follows algorithm 1: an independent loop of one image, peers, and every small K."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from attacks.apgd import apgd, apgd_targeted
from attacks.pgd import pgd
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Targeted, Untargeted
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from tests.toys import (
    clear_images,
    distance,
    draws,
    grey_images,
    linear_victim,
    problem_of,
    small_victim,
    victim_of,
)

EPS: dict[Norm, float] = {"linf": 0.06, "l2": 0.35}


class Waves(torch.nn.Module):
    """A victim whose loss oscillates along every path: steps must be halved on it."""

    def __init__(self, k: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(k)
        self.w = torch.nn.Parameter(torch.randn(64, 64, generator=generator))
        self.v = torch.nn.Parameter(torch.randn(64, k, generator=generator) / 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.sin(3 * x.flatten(1) @ self.w) @ self.v
        return found


def waves(norm: Norm, k: int = 4, n: int = 6) -> Problem:
    victim, x = victim_of(Waves(k)), grey_images(n)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=EPS[norm], norm=norm)


def by_hand(problem: Problem, start: Tensor, steps: int) -> tuple[list[Tensor], int]:
    """Return the iterates of algorithm 1 on one image, cross-entropy written out, and halvings."""
    x, ball, eps = problem.x, problem.ball, float(problem.ball.eps)
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(one * steps, 9)) for one in p]

    def f(z: Tensor) -> tuple[float, Tensor]:
        leaf = z.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(problem.judge(leaf).logits, problem.y)
        (g,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), g

    def unit(g: Tensor) -> Tensor:
        return g.sign() if ball.norm == "linf" else g / g.norm()

    eta, z, before, halvings = 2 * eps, start, start, 0
    iterates, losses = [start], [f(start)[0]]
    top, best = losses[0], start
    top_mark, eta_mark = top, eta
    for k in range(1, steps + 1):
        ahead = ball.project(z + eta * unit(f(z)[1]), x)
        a = 1.0 if k == 1 else 0.75
        z, before = ball.project(z + a * (ahead - z) + (1 - a) * (z - before), x), z
        iterates.append(z)
        losses.append(f(z)[0])
        if losses[-1] > top:
            top, best = losses[-1], z
        if k in w[1:] and k < steps:
            first = w[w.index(k) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(first, k))
            stuck = eta == eta_mark and top == top_mark
            top_mark, eta_mark = top, eta
            if rises < 0.75 * (k - first) or stuck:
                eta, z, halvings = eta / 2, best, halvings + 1
                losses[-1] = top
    return iterates, halvings


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_takes_the_steps_of_algorithm_1(norm: Norm) -> None:
    problem, steps = waves(norm), 30
    # in double precision: on waves, rounding takes another turn after a few steps
    precise = Waves(4).double()
    objective = LossOverride(problem.objective, use_all_steps=True)
    problem = replace(
        problem, objective=objective, judge=lambda z: Output(precise(z)), x=problem.x.double()
    )
    seen: list[Tensor] = []
    judge = problem.judge

    def watched(z: Tensor) -> Output:
        seen.append(z.detach().clone())
        return judge(z)

    apgd(replace(problem, judge=watched), rng=draws(6), steps=steps)
    assert len(seen) == steps + 1
    halved = 0
    for i in range(6):
        alone = problem.select(torch.tensor([i]))
        iterates, halvings = by_hand(alone, seen[0][i : i + 1], steps)
        halved += halvings
        ours = torch.cat([z[i : i + 1] for z in seen])
        # a restart shows no image of its own, and both compute the image after it
        torch.testing.assert_close(ours, torch.cat(iterates), atol=1e-9, rtol=0)
    assert halved > 6


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_more_loss_than_pgd_of_equal_steps(loss: str, norm: Norm) -> None:
    problem = waves(norm, n=24).at(EPS[norm] / 12)
    problem = replace(problem, objective=LossOverride(problem.objective, use_all_steps=True))
    ours = problem.probe(apgd(problem, rng=draws(24), steps=50, loss=loss)).harm
    theirs = problem.probe(pgd(problem, rng=draws(24), steps=50, total_step=2.5)).harm
    assert ours.mean() > theirs.mean()


@pytest.mark.parametrize("k", [2, 3, 4, 10])
def test_the_targeted_loss_has_a_slope_toward_every_way(k: int) -> None:
    victim, x = small_victim(k), grey_images(8)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=0.1)
    ways = problem.margins(x).sort(1, descending=True).indices
    for n in range(k - 1):
        g, _ = replace(
            problem, objective=LossOverride(Untargeted(), "toward", ways[:, n])
        ).gradient(x)
        assert (g.flatten(1).norm(dim=1) > 1e-4).all(), n


@pytest.mark.parametrize("loss", ["dlr", "toward"])
def test_the_ratio_toward_a_target_ranked_third_has_a_slope(
    loss: Literal["dlr", "toward"],
) -> None:
    victim, x = small_victim(5), grey_images(8)
    third = int(victim(x[:1]).logits.argsort(1, descending=True)[0, 2])
    objective = LossOverride(
        Targeted(third), loss, torch.zeros(1, dtype=torch.long) if loss == "toward" else None
    )
    y = victim(x[:1]).logits.argmax(1)
    g, _ = problem_of(victim, x[:1], y, eps=0.1, objective=objective).gradient(x[:1])
    assert g.norm() > 1e-4


def test_targeted_goes_to_the_ways_in_turn_and_no_further_than_there_are() -> None:
    victim = linear_victim(3)
    x = clear_images(victim, 8)
    y = victim(x).logits.argmax(1)
    near = distance(victim, x, y, "linf")
    problem = problem_of(victim, x, y, eps=near * 0.9)
    apgd_targeted(problem, rng=draws(8), steps=7, targets=9)
    assert problem.counter.backward == 8 * 2 * 7  # two ways of K = 3, not nine
    problem = problem_of(victim, x, y, eps=near * 1.05)
    apgd_targeted(problem, rng=draws(8), steps=50)
    assert problem.counter.backward < 8 * 50  # all fall toward the first


def test_a_target_that_needs_its_turn_is_reached() -> None:
    class Trap(torch.nn.Module):
        """The likeliest wrong class asks for black and cannot win; the second asks for white."""

        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1)
            return torch.stack([0 * mean, 0.005 - mean / 10, 10 * mean - 5.5], 1)

    victim, x = victim_of(Trap()), torch.full((3, 1, 8, 8), 0.5)
    y = torch.zeros(3, dtype=torch.long)
    problem = problem_of(victim, x, y, eps=0.06)
    assert not problem.probe(apgd_targeted(problem, rng=draws(3), targets=1)).is_final.any()
    assert problem.probe(apgd_targeted(problem, rng=draws(3), targets=2)).is_final.all()


def test_unlabelled_findings_are_no_targets() -> None:
    victim, x = small_victim(4), grey_images(4)
    y = (victim(x).logits > 0).long()
    y[:2, 1:] = -1  # one way for the first two samples, four for the others
    problem = problem_of(victim, x, y, eps=1e-6, objective=AnyFinding())
    z = apgd_targeted(problem, rng=draws(4), steps=5)
    assert problem.counter.backward == 5 * (2 * 1 + 2 * 4)
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("attack", [apgd, apgd_targeted])
def test_a_radius_a_sample(attack: Callable[..., Tensor]) -> None:
    eps = torch.linspace(0, 0.05, 6)
    problem = waves("linf").at(eps)
    z = attack(problem, rng=draws(6), steps=20)
    one = torch.tensor([4])
    alone = attack(problem.select(one).at(float(eps[4])), rng=draws(6).select(one), steps=20)
    torch.testing.assert_close(z[one], alone, atol=1e-5, rtol=0)
    assert (problem.ball.size(z, problem.x) <= eps + 1e-6).all()


def test_nan_losses_do_not_spread() -> None:
    problem = waves("linf")
    judge = problem.judge

    def broken(z: Tensor) -> Output:
        logits = judge(z).logits
        return Output(torch.where(torch.arange(len(z))[:, None] == 0, logits * torch.nan, logits))

    z = apgd(replace(problem, judge=broken), rng=draws(6), steps=10)
    assert torch.isfinite(z).all()


@pytest.mark.parametrize(
    ("attack", "wrong", "message"),
    [
        (apgd, {"steps": 0}, "expected steps > 0, got 0"),
        (apgd, {"restarts": -1}, "expected restarts > 0, got -1"),
        (
            apgd,
            {"loss": "ce"},
            "expected loss in cross_entropy, masked, .*, margin, dlr, .*, got 'ce'",
        ),
        (apgd_targeted, {"targets": 0}, "expected targets > 0, got 0"),
    ],
)
def test_bad_parameters_are_refused(
    attack: Callable[..., Tensor], wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        attack(waves("linf"), rng=draws(6), **wrong)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_breaks_as_many_as_the_reference(norm: Norm) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyautoattack.autopgd_base import APGDAttack
    problem = waves(norm, k=10, n=60).at(EPS[norm] / 12)
    module = Waves(10)
    kind = {"linf": "Linf", "l2": "L2"}[norm]
    theirs = APGDAttack(
        module, n_iter=50, norm=kind, n_restarts=1, eps=EPS[norm] / 12, seed=0, device="cpu"
    ).perturb(problem.x, problem.y)
    reference = problem.probe(theirs).is_final.sum()
    ours = problem.probe(apgd(problem, rng=draws(60), steps=50)).is_final.sum()
    assert 0 < reference < 60
    assert ours >= reference - 1  # their starts are not ours
