"""UAP: the closed form on a linear victim, held-out images, the control, targets, every task."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from attacks.patch import patch
from attacks.universal import uap, uap_gradient
from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Targeted
from robustbench_med.problem import Problem
from robustbench_med.universal import Additive, Universal
from tests.attacks.test_tasks import TASKS, pose, pose_masks
from tests.toys import draws, generic_victim, grey_images, linear_victim, problem_of

FITTED: dict[str, Any] = {"uap": uap, "uap_gradient": uap_gradient}
EPS = {"linf": 0.05, "l2": 0.4}


def one_class(n: int, seed: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return a two-class linear victim and images that it all calls class 0."""
    victim = generic_victim(2, scale=0.1)
    x = grey_images(4 * n, seed=seed)
    x = x[victim(x).logits.argmax(1) == 0][:n]
    return victim, x, torch.zeros(len(x), dtype=torch.long)


def share_done(fitted: Universal, problem: Problem) -> float:
    z = fitted.apply(problem.x, problem.ball, draws(len(problem), seed=9))
    return float(problem.probe(z).is_final.float().mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_kind_finds_the_closed_form(norm: Norm) -> None:
    # all images of one class: the mean margin changes most along its gradient
    victim, x, y = one_class(40, seed=1)
    problem = problem_of(victim, x, y, eps=0.002, norm=norm)
    w = victim.module.w.detach()
    best = problem.ball.steepest((w[1] - w[0]).view(1, 1, 8, 8)) * 0.002
    found = uap_gradient(problem, rng=draws(len(x))).pattern
    torch.testing.assert_close(found, best[0], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("name", "norm"), list(itertools.product(FITTED, ("linf", "l2"))))
def test_fools_held_out_images_far_above_the_control(name: str, norm: Norm) -> None:
    victim, x, y = one_class(60, seed=1)
    _, x_test, y_test = one_class(60, seed=2)
    problem = problem_of(victim, x, y, eps=EPS[norm], norm=norm)
    held_out = problem_of(victim, x_test, y_test, eps=EPS[norm], norm=norm)
    fitted = FITTED[name](problem, rng=draws(len(x)))
    zero = torch.zeros_like(x[:1])
    assert (problem.ball.size(fitted.pattern[None], zero) <= EPS[norm] * 1.0001).all()
    control = fitted.control(held_out.ball, draws(1))
    assert share_done(fitted, held_out) > 0.9
    assert share_done(control, held_out) < 0.5


def test_uap_with_one_image_at_a_time_takes_the_step_of_the_paper() -> None:
    victim, x, y = one_class(1, seed=1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm="l2")
    found = uap(problem, rng=draws(1), epochs=1, overshoot=0.02).pattern[None]
    w = victim.module.w.detach()
    away = w[1] - w[0]
    gap = victim(x).logits.detach() @ torch.tensor([1.0, -1.0])
    step = 1.02 * gap / away.norm() ** 2 * away
    torch.testing.assert_close(found.flatten(), step, atol=1e-6, rtol=1e-4)


def test_uap_stops_at_its_share_and_returns_the_best() -> None:
    victim, x, y = one_class(40, seed=1)
    problem = problem_of(victim, x, y, eps=0.05)
    zero = Additive(torch.zeros_like(x[0]))
    wrong = replace(problem, y=1 - y)  # all done from the start
    assert torch.equal(uap(wrong, rng=draws(40)).pattern, zero.pattern)
    assert problem.counter.backward == 0
    halfway = uap(problem, rng=draws(40), delta=0.8, batch=1, epochs=1)
    assert share_done(halfway, problem) >= share_done(zero, problem)


@pytest.mark.parametrize("name", FITTED)
def test_targeted_drives_most_to_the_target(name: str) -> None:
    victim = linear_victim(3)
    x, x_test = grey_images(60), grey_images(60, seed=2)
    objective = Targeted(1)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=0.05, objective=objective)
    fitted = FITTED[name](problem, rng=draws(60))
    z = fitted.apply(x_test, problem.ball, draws(60))
    called = victim(z).logits.argmax(1)
    assert (called == 1).float().mean() > 0.9
    assert (victim(x_test).logits.argmax(1) == 1).float().mean() < 0.6


@pytest.mark.parametrize(("name", "task"), list(itertools.product((*FITTED, "patch"), TASKS)))
def test_every_task(name: str, task: str) -> None:
    for norm in registry.load("attacks")[name].norms:
        ball = Ball(norm, {"linf": 0.2, "l2": 1.0, "l0": 64.0}[norm])
        problem = replace(pose(**TASKS[task]), ball=ball)
        attack: Any = {**FITTED, "patch": patch}[name]
        fitted = attack(problem, rng=draws(len(problem)), epochs=2, batch=4)
        again = attack(problem, rng=draws(len(problem)), epochs=2, batch=4)
        assert torch.equal(fitted.pattern, again.pattern)
        assert isinstance(fitted, Universal)
        assert torch.isfinite(fitted.pattern).all()
        assert not fitted.pattern.requires_grad
        z = fitted.apply(problem.x, ball, draws(len(problem)))
        assert (ball.size(z, problem.x) <= ball.eps * 1.00001).all()
        assert z.min() >= 0
        assert z.max() <= 1
        nothing = problem.select(torch.zeros(0, dtype=torch.long))
        assert attack(nothing, rng=draws(0)).pattern.shape == fitted.pattern.shape
        one = torch.zeros(1, dtype=torch.long)
        attack(problem.select(one), rng=draws(1), epochs=1)


@pytest.mark.parametrize("name", FITTED)
def test_the_order_of_training_images_changes_nothing(name: str) -> None:
    victim, x, y = one_class(30, seed=1)
    problem = problem_of(victim, x, y, eps=0.03)
    order = torch.randperm(len(x), generator=torch.manual_seed(0))
    rng = draws(len(x))
    a = FITTED[name](problem, rng=rng, epochs=2, batch=8).pattern
    b = FITTED[name](problem.select(order), rng=rng.select(order), epochs=2, batch=8).pattern
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_the_region_of_each_image_is_honoured() -> None:
    victim, x, y = one_class(6, seed=1)
    region = torch.zeros(6, 1, 8, 8, dtype=torch.bool)
    region[:, :, :3] = True
    ball = Ball("linf", 0.1, region=region)
    for attack in FITTED.values():
        fitted = attack(Problem(x, y, ball, Targeted(1), victim), rng=draws(6))
        assert not fitted.pattern[:, 3:].any()
        assert fitted.pattern[:, :3].any()


@pytest.mark.parametrize(
    ("name", "wrong", "rule"),
    [
        ("uap", {"epochs": 0}, "expected epochs > 0, got 0"),
        ("uap", {"delta": 1.0}, r"expected delta in \[0, 1\), got 1.0"),
        ("uap", {"overshoot": -0.1}, "expected overshoot >= 0, got -0.1"),
        ("uap_gradient", {"total_step": 0.0}, "expected total_step > 0, got 0.0"),
        ("uap_gradient", {"momentum": 1.0}, r"expected momentum in \[0, 1\), got 1.0"),
    ],
)
def test_bad_parameters_are_refused(name: str, wrong: dict[str, Any], rule: str) -> None:
    victim, x, y = one_class(3, seed=1)
    with pytest.raises(SpecError, match=rule):
        FITTED[name](problem_of(victim, x, y, eps=0.1), rng=draws(3), **wrong)


@pytest.mark.slow
def test_fools_no_fewer_held_out_images_than_art() -> None:
    victim, x, y = one_class(40, seed=1)
    _, x_test, y_test = one_class(60, seed=2)
    held_out = problem_of(victim, x_test, y_test, eps=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        from art.attacks.evasion import UniversalPerturbation
        from art.estimators.classification import PyTorchClassifier

        estimator = PyTorchClassifier(
            model=victim.module,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=(1, 8, 8),
            nb_classes=2,
            clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        peer = UniversalPerturbation(
            estimator, attacker="deepfool", delta=0.01, max_iter=3, eps=0.02, verbose=False
        )
        peer.generate(x.numpy(), torch.nn.functional.one_hot(y, 2).numpy())
    theirs = Additive(torch.from_numpy(peer.noise[0]).float())
    ours = uap(problem_of(victim, x, y, eps=0.02), rng=draws(40))
    assert share_done(ours, held_out) >= share_done(theirs, held_out)


@pytest.mark.parametrize("name", ["uap_gradient", "patch"])
@pytest.mark.parametrize(
    "task",
    [
        {"k": 3},
        {"k": 1},
        {"k": 3, "ring": True},
        {"k": 3, "axes": 3},
        {"k": 3, "objective": "targeted(mask='shrink', label=1, by=1)"},
    ],
)
def test_masks(name: str, task: dict[str, Any]) -> None:
    card = registry.load("attacks")[name]
    assert "segmentation" in card.tasks
    problem = replace(pose_masks(**task), ball=Ball(*(("l0", 27.0), ("linf", 0.2))[name[0] == "u"]))
    fit = registry.function("attacks", card)
    fitted = fit(problem, rng=draws(len(problem)), epochs=5)
    z = fitted.apply(problem.x, problem.ball, draws(len(problem)))
    assert ((z >= 0) & (z <= 1)).all()
    verdict = problem.probe(z)
    assert (verdict.loss > problem.probe(problem.x).loss).float().mean() > 0.5  # it climbs
    if name == "uap_gradient":
        other = fit(problem, rng=draws(len(problem)), epochs=5, loss="masked")
        assert not torch.equal(other.pattern, fitted.pattern)
        with pytest.raises(SpecError, match="for masks, got 'margin'"):
            fit(problem, rng=draws(len(problem)), loss="margin")
