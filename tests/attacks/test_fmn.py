"""FMN: every norm is projected, the radius closes in, and foolbox finds nothing nearer."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import fmn as module
from attacks.fmn import fmn
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError
from robustbench_med.models.load import load_victim
from robustbench_med.problem import Problem
from robustbench_med.search import Nearest
from robustbench_med.types import Images, Output
from robustbench_med.victim import Victim, frozen
from tests.toys import (
    Linear,
    clear_images,
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    problem_of,
    victim_of,
)

NORMS: tuple[Norm, ...] = ("l0", "l1", "l2", "linf")


def posed(norm: Norm, *, k: int = 3, n: int = 6) -> Problem:
    """Return images that no single value breaks, far from every boundary."""
    victim = generic_victim(k)
    x = grey_images(40 * n)
    far = distance(victim, x, victim(x).logits.argmax(1), "l0").argsort(descending=True)
    x = x[far[:n]]
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm=norm)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])  # in L0 it moves by whole values
def test_the_radius_closes_in_on_the_boundary(norm: Norm) -> None:
    # an attack that does not project (foolbox's L2) wanders far from what it found
    problem, sizes = posed(norm), []

    def watched(z: Images) -> Output:
        assert isinstance(problem.judge, Victim)
        if z.requires_grad and len(z) == len(problem):
            sizes.append(problem.ball.size(z.detach(), problem.x))
        return problem.judge(z)

    z = fmn(replace(problem, judge=watched), rng=draws(6), steps=60)
    size, last = problem.ball.size(z, problem.x), torch.stack(sizes[40:60])
    assert len(last) == 20
    assert ((last - size).abs() <= 0.05 * size).all()


@pytest.mark.parametrize("norm", NORMS)
def test_every_step_is_projected_on_its_radius(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, project = [], Ball.project

    def watched(ball: Ball, z: Images, x: Images) -> Images:
        found = project(ball, z, x)
        calls.append((torch.as_tensor(ball.eps), ball.size(found, x), ball.size(z, x)))
        return found

    monkeypatch.setattr(Ball, "project", watched)
    fmn(posed(norm), rng=draws(6), steps=20)
    assert len(calls) == 20
    assert all((size <= eps * (1 + 1e-5)).all() for eps, size, _ in calls)
    assert any((before > eps * 1.1).any() for eps, _, before in calls)  # it had work to do


@pytest.mark.parametrize("norm", NORMS)
def test_successes_are_confirmed_when_judged_one_by_one(norm: Norm) -> None:
    problem = posed(norm, n=12)
    z = fmn(problem, rng=draws(12), steps=50)
    one = [problem.select(torch.tensor([i])).probe(z[i : i + 1]).is_final for i in range(12)]
    assert torch.cat(one).all()


def test_an_exact_tie_at_the_clean_image_is_crossed() -> None:
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    victim = victim_of(Linear(w, torch.zeros(2)), size=(1, 2))
    x = torch.full((1, 1, 1, 2), 0.5)
    for norm in NORMS:
        problem = problem_of(victim, x, torch.tensor([0]), eps=torch.inf, norm=norm)
        assert not problem.probe(x).is_final.any()  # the first class wins a tie
        z = fmn(problem, rng=draws(1), steps=20)
        assert problem.probe(z).is_final.all()


def test_samples_done_at_the_clean_image_cost_one_pass() -> None:
    problem = posed("l2", k=2)
    wrong = replace(problem, y=1 - problem.y)
    assert torch.equal(fmn(wrong, rng=draws(6)), wrong.x)
    assert (wrong.counter.forward, wrong.counter.backward) == (12, 6)  # one to know their ways
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    assert len(fmn(nothing, rng=draws(0))) == 0


def test_a_sample_that_one_value_fools_leaves() -> None:
    victim = linear_victim(2)
    x = clear_images(victim, 8)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm="l0")
    assert (distance(victim, x, problem.y, "l0") == 1).all()
    z = fmn(problem, rng=draws(8), steps=100)
    assert (problem.ball.size(z, x) == 1).sum() >= 6
    assert problem.counter.backward < 60 * 8


def test_values_that_do_not_matter_are_restored() -> None:
    problem = posed("l0", k=2)
    g, _ = problem.gradient(problem.x)
    z = torch.where(g > 0, 1.0, 0.0)  # everything to the edge: a success that changes all 64
    nearest = Nearest(problem)
    nearest.keep(z, problem.probe(z).is_final)
    assert (nearest.size == 64).all()
    module.restore(problem, nearest, torch.zeros(6))
    assert isinstance(problem.judge, Victim)
    exact = distance(problem.judge, problem.x, problem.y, "l0")
    assert torch.equal(nearest.size, exact)  # on a linear victim that is the optimum


@pytest.mark.parametrize("norm", NORMS)
def test_only_what_may_change_does(norm: Norm) -> None:
    problem = posed(norm)
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., :5] = True
    z = fmn(replace(problem, ball=Ball(norm, torch.inf, region=region)), rng=draws(6), steps=50)
    assert torch.equal(z[..., 5:], problem.x[..., 5:])
    assert problem.probe(z).is_final.all()


def test_a_guide_that_claims_too_much_is_not_believed() -> None:
    problem = posed("l2", k=2)

    def boasting(z: Images) -> Output:  # right slopes, but every class is called wrong
        logits = problem.judge(z).logits
        return Output(logits - 1e3 * torch.nn.functional.one_hot(problem.y[: len(z)], 2))

    assert problem.objective(boasting(problem.x), problem.y).is_final.all()
    assert (problem.y == problem.y[0]).all()  # so that rows need no order
    z = fmn(replace(problem, guide=boasting), rng=draws(6), steps=100)
    assert problem.probe(z).is_final.all()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"alpha": 0.0}, {"gamma": -1.0}])
def test_bad_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} > 0, got"):
        fmn(posed("l2"), rng=draws(6), **wrong)


def foolbox_sizes(victim: Victim, x: Tensor, y: Tensor, norm: Norm, steps: int) -> Tensor:
    """Return the norms foolbox's FMN needs; inf where it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox

        class Logits(nn.Module):
            def forward(self, z: Tensor) -> Tensor:
                return victim(z).logits

        model = foolbox.PyTorchModel(Logits().eval(), bounds=(0, 1), device="cpu")
        name = {"l0": "L0", "l1": "L1", "l2": "L2", "linf": "LInf"}[norm]
        attack = getattr(foolbox.attacks, f"{name}FMNAttack")(steps=steps)
        _, z, done = attack(model, x, foolbox.criteria.Misclassification(y), epsilons=None)
    return Ball(norm, torch.inf).size(z, x).masked_fill(~done, torch.inf)


def chest(n: int) -> tuple[Victim, Tensor, Tensor]:
    data = load_dataset("phantom_chest")
    victim = load_victim("chest_resnet", data.card).victim
    batch = data.batch("test", n=4 * n)
    right = (victim.logits(batch.x).argmax(1) == batch.y).nonzero()[:n, 0]
    return victim, batch.x[right], batch.y[right]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "steps"), [(6, 30), pytest.param(16, 100, marks=pytest.mark.slow)])
def test_no_farther_than_foolbox(norm: Norm, n: int, steps: int) -> None:
    victim, x, y = chest(n)
    with frozen(victim.module):
        problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
        z = fmn(problem, rng=draws(n), steps=steps)
        size = problem.ball.size(z, x).masked_fill(~problem.probe(z).is_final, torch.inf)
        theirs = foolbox_sizes(victim, x, y, norm, steps)
    assert size.isinf().sum() <= theirs.isinf().sum()
    assert size.median() <= 1.02 * theirs.median()
