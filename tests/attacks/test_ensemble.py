"""The ensemble: every small K, only robust samples, never weaker than a member."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks import ensemble as ensemble_module
from attacks.apgd import apgd, apgd_targeted
from attacks.ensemble import ensemble
from attacks.square import square
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from tests.attacks.test_apgd import Waves
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

LIGHT: dict[str, Any] = {"steps": 20, "queries": 50, "targets": 3}
RADII: dict[Norm, float] = {"linf": 0.0025, "l2": 0.014}


def waves(norm: Norm, k: int, n: int = 40) -> Problem:
    victim, x = victim_of(Waves(k)), grey_images(n)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=RADII[norm], norm=norm)


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_is_at_least_as_strong_as_each_member_on_the_same_draws(norm: Norm, k: int) -> None:
    problem = waves(norm, k)
    members = {
        "cross_entropy": partial(apgd, steps=20),
        "dlr": partial(apgd, steps=20, loss="dlr"),
        "targeted": partial(apgd_targeted, steps=20, targets=3),
        "square": partial(square, queries=50),
    }
    alone = {
        name: problem.probe(attack(problem, rng=draws(40).fork(name))).is_final
        for name, attack in members.items()
    }
    assert all(0 < broken.sum() < 40 for broken in alone.values())
    for growth in (1.15, torch.inf):
        z = ensemble(problem, rng=draws(40), growth=growth, **LIGHT)
        ours = problem.probe(z).is_final
        for name, broken in alone.items():
            assert not (broken & ~ours).any(), (name, growth)


def test_every_member_sees_only_robust_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = waves("linf", 10)
    seen: list[tuple[str, int, int]] = []

    def watched(name: str, attack: Callable[..., Images]) -> Callable[..., Images]:
        def call(posed: Problem, *, rng: Draws, **parameters: int | str) -> Images:
            z = attack(posed, rng=rng, **parameters)
            seen.append((name, len(posed), int(posed.probe(z).is_final.sum())))
            return z

        return call

    for name, attack in (("apgd", apgd), ("apgd_targeted", apgd_targeted), ("square", square)):
        monkeypatch.setattr(ensemble_module, name, watched(name, attack))
    ensemble(problem, rng=draws(40), growth=torch.inf, **LIGHT)
    assert [name for name, _, _ in seen] == 2 * ["apgd", "apgd", "apgd_targeted", "square"]
    for (_, before, fell), (_, after, _) in zip(seen, seen[1:], strict=False):
        assert after <= before - fell  # FAB, between two of them, may break more
    assert seen[0][1] == 40
    assert seen[-1][1] < 30


def test_what_is_out_of_reach_costs_a_scout_only() -> None:
    victim = linear_victim(3)
    x = clear_images(victim, 8)
    y = victim(x).logits.argmax(1)
    near = distance(victim, x, y, "linf")
    cost = {}
    for share in (0.5, 0.9):
        problem = problem_of(victim, x, y, eps=near * share)
        assert not problem.probe(ensemble(problem, rng=draws(8), **LIGHT)).is_final.any()
        cost[share] = problem.counter.backward
    assert cost[0.5] < cost[0.9] / 3
    everything = problem_of(victim, x, y, eps=near * 0.5)
    ensemble(everything, rng=draws(8), growth=torch.inf, **LIGHT)
    assert everything.counter.backward == cost[0.9]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_passes_stay_below_the_card(norm: Norm) -> None:
    from robustbench_med import registry

    card = registry.find("attacks", "ensemble")
    problem = waves(norm, 10).at(1e-6)
    ensemble(problem, rng=draws(40), growth=torch.inf, **LIGHT)
    bound = registry.passes(card, {**card.parameters, **LIGHT}) * len(problem)
    assert bound / 2 < problem.counter.forward < bound
    assert problem.counter.backward < bound


class Rounded(torch.nn.Module):
    """A victim behind a rounding of its input: no gradient, and none is needed."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module((x * 50).round() / 50 + 0 * x)
        return found


def test_a_victim_without_useful_gradients_falls_to_the_queries() -> None:
    victim = victim_of(Rounded(linear_victim(3).module))
    x = grey_images(30)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=0.06)
    effort = {"steps": 5, "queries": 200}
    alone = problem.probe(square(problem, rng=draws(30).fork("square"), queries=200)).is_final
    blind = problem.probe(apgd(problem, rng=draws(30).fork("cross_entropy"), steps=5)).is_final
    scouted, ours = (
        problem.probe(ensemble(problem, rng=draws(30), growth=growth, **effort)).is_final
        for growth in (1.15, torch.inf)
    )
    assert alone.sum() > blind.sum() + 5
    assert scouted.sum() > blind.sum() + 5
    assert not (alone & ~ours).any()  # a scout of 40 queries may misjudge an image


@pytest.mark.parametrize("k", [2, 3, 4])
def test_runs_where_the_reference_raises(k: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyautoattack import AutoAttack

        victim = small_victim(k)
        x = grey_images(4)
        y = victim(x).logits.argmax(1)
        peer = AutoAttack(victim.module, norm="Linf", eps=1e-4, seed=0)
        peer.apgd.n_iter = peer.apgd_targeted.n_iter = 2
        with pytest.raises(IndexError):
            peer.run_standard_evaluation(x, y)
    z = ensemble(problem_of(victim, x, y, eps=1e-4), rng=draws(4), **LIGHT)
    assert z.shape == x.shape


def test_a_sample_wrong_from_the_start_keeps_its_clean_image() -> None:
    problem = waves("linf", 4, n=6)
    wrong = replace(problem, y=(problem.y + 1) % 4, counter=Counter())
    assert torch.equal(ensemble(wrong, rng=draws(6), **LIGHT), wrong.x)
    assert wrong.counter.backward == 0


def test_nothing_in_nothing_out() -> None:
    nothing = waves("linf", 3).select(torch.zeros(0, dtype=torch.long))
    assert len(ensemble(nothing, rng=draws(0), **LIGHT)) == 0


def test_a_radius_a_sample_and_findings_without_labels() -> None:
    victim, x = small_victim(4), grey_images(6)
    y = (victim(x).logits > 0).long()
    y[:3, 1:] = -1
    eps = torch.linspace(0.0, 0.2, 6)
    problem = problem_of(victim, x, y, eps=eps, objective=AnyFinding())
    z = ensemble(problem, rng=draws(6), **LIGHT)
    assert torch.isfinite(z).all()
    assert (problem.ball.size(z, x) <= eps + 1e-6).all()
    one = torch.tensor([4])
    alone = ensemble(problem.select(one).at(float(eps[4])), rng=draws(6).select(one), **LIGHT)
    torch.testing.assert_close(z[one], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "expected steps > 0, got 0"),
        ({"queries": 0}, "expected queries > 0, got 0"),
        ({"targets": -1}, "expected targets > 0, got -1"),
        ({"growth": 0.5}, "expected growth >= 1, got 0.5"),
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ensemble(waves("linf", 3), rng=draws(40), **wrong)


def test_an_ensemble_that_never_ends_runs_its_members_in_full() -> None:
    """As a transfer attack must: no sample is ever done, yet scouts that came near count."""
    victim = small_victim(3)
    x = grey_images(8)
    posed = problem_of(victim, x, victim(x).logits.argmax(1), eps=0.5)
    endless = replace(posed, objective=LossOverride(posed.objective, use_all_steps=True))
    ensemble(endless, rng=draws(8), steps=10, queries=10, targets=2)
    scouts = 2 + 2 + 2 * 2  # gradients of the scouts of APGD, its second loss, its two targets
    assert posed.probe(x + 0).is_final.sum() == 0
    assert endless.counter.backward > 8 * 3 * scouts
