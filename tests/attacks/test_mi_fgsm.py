"""MI-FGSM follows its paper: momentum of unit-L1 gradients, sign or unit-L2 steps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.mi_fgsm import mi_fgsm
from attacks.pgd import bim
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from tests.toys import draws, generic_victim, grey_images, problem_of, small_victim

STEPS, DECAY = 4, 0.7


def without_early_stop(norm: Norm, eps: float | torch.Tensor = 0.05) -> Problem:
    victim, x = small_victim(3), grey_images(5)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=eps, norm=norm)
    return replace(problem, objective=LossOverride(problem.objective, use_all_steps=True))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.6)])
def test_takes_the_steps_of_the_paper(norm: Norm, eps: float) -> None:
    problem = without_early_stop(norm, eps)
    x, y = problem.x, problem.y
    z, momentum, seen = x, torch.zeros_like(x), []
    for _ in range(STEPS):
        leaf = z.clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(problem.judge(leaf).logits, y, reduction="sum")
        (g,) = torch.autograd.grad(loss, leaf)
        momentum = DECAY * momentum + g / g.abs().sum((1, 2, 3), keepdim=True)
        unit = momentum.sign()
        if norm == "l2":
            unit = momentum / momentum.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        z = (z + eps / STEPS * unit).clamp(0, 1)
        seen.append(z)
    found = mi_fgsm(problem, rng=draws(5), steps=STEPS, decay=DECAY)
    harm = torch.stack([problem.probe(one).harm for one in (x, *seen)])
    expected = torch.stack([x, *seen])[harm.argmax(0), torch.arange(5)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_without_decay_it_is_bim() -> None:
    problem = without_early_stop("linf")
    still = mi_fgsm(problem, rng=draws(5), decay=0.0, total_step=1.25)
    assert torch.equal(still, bim(problem, rng=draws(5)))
    assert not torch.equal(still, mi_fgsm(problem, rng=draws(5), total_step=1.25))


def test_what_may_not_change_adds_nothing_to_the_momentum() -> None:
    problem = without_early_stop("l2", 0.5)
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., :4] = True
    problem = replace(problem, ball=Ball("l2", 0.5, region=region))
    z = mi_fgsm(problem, rng=draws(5))
    assert torch.equal(z[..., 4:], problem.x[..., 4:])
    assert (problem.ball.size(z, problem.x) > 0.499).all()


def test_gradients_too_small_for_float32_still_point() -> None:
    problem = without_early_stop("linf")
    victim = problem.judge
    assert callable(victim)
    faint = replace(problem, judge=lambda z: victim(z)._replace(logits=victim(z).logits * 1e-37))
    found, same = mi_fgsm(faint, rng=draws(5)), mi_fgsm(problem, rng=draws(5))
    assert (found != faint.x).any()
    assert torch.isfinite(found).all()
    assert ((found - same).abs() < 1e-6).float().mean() > 0.9


def test_a_radius_a_sample() -> None:
    eps = torch.linspace(0, 0.1, 5)
    problem = without_early_stop("linf", eps)
    z = mi_fgsm(problem, rng=draws(5))
    alone = [
        mi_fgsm(problem.select(torch.tensor([i])).at(float(eps[i])), rng=draws(1)) for i in range(5)
    ]
    torch.testing.assert_close(z, torch.cat(alone), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"total_step": -1.0}, "expected total_step > 0, got -1.0"),
        ({"decay": -0.5}, "expected decay >= 0, got -0.5"),
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        mi_fgsm(without_early_stop("linf"), rng=draws(5), **wrong)


def test_breaks_as_many_as_torchattacks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    victim = generic_victim(10)
    x = grey_images(60)
    y = victim(x).logits.argmax(1)
    eps = 0.05
    theirs = torchattacks.MIFGSM(victim.module, eps=eps, alpha=eps / 10, steps=10, decay=1.0)
    problem = problem_of(victim, x, y, eps=eps)
    ours = problem.probe(mi_fgsm(problem, rng=draws(60))).is_final
    reference = problem.probe(theirs(x, y).detach()).is_final
    assert 0 < reference.sum() < 60
    assert ours.sum() >= reference.sum()
