"""Carlini and Wagner: closed forms, the peers' faults, and the peers themselves."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.carlini_wagner import carlini_wagner
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from robustbench_med.victim import Victim
from tests.toys import (
    Linear,
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    problem_of,
    victim_of,
)

NORMS: tuple[Norm, ...] = ("l2", "linf", "l0")


def trained_victim(k: int = 3) -> Victim:
    """Return a smooth network whose boundaries are curved and near."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()
        )
        module.append(nn.Linear(32, k))
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(3)
    return victim_of(module)


def posed(victim: Victim, x: Tensor, norm: Norm = "l2") -> Problem:
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm=norm)


def attacked(problem: Problem, **parameters: Any) -> Tensor:  # noqa: ANN401
    return carlini_wagner(problem, rng=draws(len(problem)), **parameters)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_distance_does_not_depend_on_the_scale_of_the_logits(norm: Norm, scale: float) -> None:
    victim = generic_victim(3, scale=scale)
    x = grey_images(6)
    problem = posed(victim, x, norm)
    z = attacked(problem)
    nearest = distance(victim, x, problem.y, norm)
    assert problem.probe(z).is_final.all()
    assert (problem.ball.size(z, x) <= nearest * 1.02 + (norm == "l0")).all()


@pytest.mark.parametrize("norm", NORMS)
def test_confidence_is_reached_at_its_distance(norm: Norm) -> None:
    victim = linear_victim(2, scale=1.0)
    x = grey_images(6)
    problem = posed(victim, x, norm)
    z = attacked(problem, confidence=0.5)
    assert (problem.probe(z).harm >= 0.5).all()
    if norm != "l0":  # the margin is linear: the distance grows in proportion
        gap = -problem.probe(x).harm
        nearest = distance(victim, x, problem.y, norm) * (gap + 0.5) / gap
        torch.testing.assert_close(problem.ball.size(z, x), nearest, rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_change_from_the_edge_of_the_grey_range_costs_no_more(norm: Norm) -> None:
    """Every pixel is exactly 0 or 1, and the class changes only by leaving it."""
    x = (grey_images(6) > 0.5).float()
    w = torch.stack([x[0].flatten() - 0.5, 0.5 - x[0].flatten()])  # x[0] is as far as can be
    victim = victim_of(Linear(w, torch.tensor([0.0, 28.0])))
    problem = posed(victim, x[:1], norm)
    z = attacked(problem)
    assert problem.probe(z).is_final.all()
    nearest = distance(victim, x[:1], problem.y, norm)
    assert (problem.ball.size(z, x[:1]) <= nearest * 1.02 + (norm == "l0")).all()


def test_negative_logits_are_attacked() -> None:
    """A margin clipped at 0 has no gradient where every logit is far below it."""
    victim = generic_victim(3)
    assert isinstance(victim.module, Linear)
    below = victim_of(Linear(victim.module.w.detach(), torch.full((3,), -1e3)))
    x = grey_images(6)
    sizes = [
        problem.ball.size(attacked(problem), x) for problem in (posed(victim, x), posed(below, x))
    ]
    torch.testing.assert_close(*sizes, rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_an_unbreakable_sample_keeps_its_clean_image(norm: Norm) -> None:
    w = torch.zeros(2, 64)
    w[0, :32], w[1, :32] = 1e-3, -1e-3
    victim = victim_of(Linear(w, torch.tensor([100.0, 0.0])))
    x = grey_images(4)
    problem = posed(victim, x, norm)
    assert torch.equal(attacked(problem), x)


@pytest.mark.parametrize("norm", NORMS)
def test_done_samples_stay_and_leave_at_once(norm: Norm) -> None:
    victim = linear_victim(2)
    x = grey_images(4)
    problem = posed(victim, x, norm)
    wrong = replace(problem, y=1 - problem.y)
    assert torch.equal(attacked(wrong), x)
    assert wrong.counter.backward == len(x)
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    assert len(attacked(nothing)) == 0


@pytest.mark.parametrize("norm", NORMS)
def test_only_what_may_change_does(norm: Norm) -> None:
    victim = generic_victim(2, scale=1.0)
    x = grey_images(6)
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., :4] = True
    problem = replace(posed(victim, x), ball=Ball(norm, torch.inf, region=region))
    z = attacked(problem)
    assert problem.probe(z).is_final.any()
    assert torch.equal(z[~region.expand_as(z)], x[~region.expand_as(x)])


@pytest.mark.parametrize("norm", NORMS)
def test_costs_at_most_what_the_card_says(norm: Norm) -> None:
    victim = trained_victim()
    problem = posed(victim, grey_images(16), norm)
    z = attacked(problem, steps=10, searches=4)
    assert problem.probe(z).is_final.all()
    assert problem.counter.backward <= (10 * 4 + 1 + 2) * len(z)  # two ways are linearised


def test_more_effort_is_no_farther() -> None:
    problem = posed(trained_victim(), grey_images(16))
    short, long = (
        problem.ball.size(attacked(problem, steps=steps, searches=searches), problem.x)
        for steps, searches in ((5, 2), (40, 9))
    )
    assert (long <= short * 1.02).all()
    assert long.mean() < short.mean()


@pytest.mark.parametrize("norm", NORMS)
def test_a_coarse_guide_decides_nothing(norm: Norm) -> None:
    """A guide that calls everything a success is confirmed by the judge."""
    victim = linear_victim(2)

    x = grey_images(12)
    x = x[victim(x).logits.argmax(1) == 0]
    problem = posed(victim, x, norm)

    def eager(z: Tensor) -> Output:
        return Output(victim(z).logits + torch.tensor([-100.0, 0.0]))

    assert len(x) > 2
    assert (eager(x).logits.argmax(1) == 1).all()
    z = attacked(replace(problem, guide=eager))
    assert problem.probe(z).is_final.all()
    assert (z != x).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"searches": -1}, "expected searches > 0, got -1"),
        ({"lr": 0.0}, "expected lr > 0, got 0.0"),
        ({"confidence": -1.0}, "expected confidence >= 0, got -1.0"),
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(SpecError, match=rule):
        attacked(posed(linear_victim(2), grey_images(2)), **wrong)


@pytest.mark.slow
def test_no_farther_than_foolbox() -> None:
    problem = posed(trained_victim(), grey_images(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        import foolbox

        model = foolbox.PyTorchModel(problem.judge.module, bounds=(0, 1), device="cpu")  # type: ignore[attr-defined]
        peer = foolbox.attacks.L2CarliniWagnerAttack(steps=200)
        theirs = peer(model, problem.x, problem.y, epsilons=None)[1]
    ours = attacked(problem)
    assert problem.probe(ours).is_final.all()
    sizes = [problem.ball.size(z, problem.x).median() for z in (ours, theirs)]
    assert sizes[0] <= 1.02 * sizes[1]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_farther_than_art(norm: Norm) -> None:
    problem = posed(trained_victim(), grey_images(8), norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        from art.attacks.evasion import CarliniL2Method, CarliniLInfMethod
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            model=problem.judge.module,  # type: ignore[attr-defined]
            loss=nn.CrossEntropyLoss(),
            input_shape=(1, 8, 8),
            nb_classes=3,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        kind = CarliniL2Method if norm == "l2" else CarliniLInfMethod
        theirs = torch.from_numpy(
            kind(estimator, batch_size=8, verbose=False).generate(
                problem.x.numpy(), problem.y.numpy()
            )
        )
    ours = attacked(problem)
    done = problem.probe(theirs).is_final
    assert problem.probe(ours).is_final.all()
    size = [problem.ball.size(z, problem.x) for z in (ours, theirs)]
    assert size[0].median() <= 1.02 * size[1].masked_fill(~done, torch.inf).median()
