"""FAB: closed forms, the box, the region, restarts, and the reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.deepfool import deepfool
from attacks.fab import fab
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.victim import Victim
from tests.attacks.test_deepfool import Plain, near, sizes
from tests.toys import (
    Linear,
    distance,
    draws,
    generic_victim,
    grey_images,
    problem_of,
    victim_of,
)

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("k", [2, 5])
def test_is_exact_where_the_victim_is_affine(norm: Norm, k: int) -> None:
    victim = generic_victim(k)
    x = grey_images(8)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    size = sizes(problem, fab(problem, rng=draws(8), steps=6))
    torch.testing.assert_close(size, distance(victim, x, y, norm), rtol=1e-3, atol=0)


def test_l1_fills_one_value_and_then_the_next() -> None:
    w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 2.0, 1.0, -4.0]])
    x = torch.tensor([0.6, 0.5, 0.5, 0.0]).view(1, 1, 2, 2)  # the steepest has no room
    for gap in (1.6, 1.2):  # the second: all room of one value lands on the boundary itself
        victim = victim_of(Linear(w, torch.tensor([0.0, -gap]) - (w @ x.flatten())), size=(2, 2))
        problem = problem_of(victim, x, torch.tensor([0]), eps=torch.inf, norm="l1")
        wanted = 0.4 + (gap - 1.2) / 2
        size = sizes(problem, fab(problem, rng=draws(1), steps=9))
        assert size.item() == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_only_what_is_allowed_changes(norm: Norm) -> None:
    victim, x, y = near(3)
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., 2:6, 2:7] = True
    held = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    held = replace(held, ball=replace(held.ball, region=region))
    z = fab(held, rng=draws(12), steps=12, restarts=2)
    assert not (z != x)[~region.expand_as(x)].any()
    assert torch.isfinite(sizes(held, z)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_is_nearer_than_deepfool(norm: Norm) -> None:
    victim, x, y = near(5)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    ours = sizes(problem, fab(problem, rng=draws(12), steps=20))
    theirs = sizes(problem, deepfool(problem, rng=draws(12)))
    assert (ours <= 1.005 * theirs).all()
    assert ours.mean() < theirs.mean()


def test_l1_crosses_where_its_own_steps_never_do() -> None:
    """A victim that saturates: a value moved by all its room gains next to nothing."""

    class Saturating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weight = torch.linspace(1, 2, 64)
            m = (weight * torch.tanh(20 * (x.flatten(1) - 0.5))).sum(1) - 20
            return torch.stack([torch.zeros_like(m), m], 1)

    x = torch.full((2, 1, 8, 8), 0.5)
    problem = problem_of(
        victim_of(Saturating()), x, torch.zeros(2, dtype=torch.long), eps=torch.inf, norm="l1"
    )
    size = sizes(problem, fab(problem, rng=draws(2), steps=30))
    assert (size < 2.0).all()  # by filling each value to 1 it would take more than 5


def rugged_victim() -> Victim:
    """Return a network of steep units: nearest points by the dozen, most of them poor."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    net.append(nn.Linear(64, 4))
    for i, values in enumerate(net.parameters()):
        draw = torch.randn(values.shape, generator=torch.Generator().manual_seed(i))
        values.data = draw * (12 if i < 2 else 1) / values.shape[-1] ** 0.5
    return victim_of(net)


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_only_help(norm: Norm) -> None:
    victim, x = rugged_victim(), grey_images(12)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    once = sizes(problem, fab(problem, rng=draws(12), steps=12, refine=0))
    many = [
        sizes(problem, fab(problem, rng=draws(12, seed=s), steps=12, refine=0, restarts=4))
        for s in range(2)
    ]
    assert all((size <= once).all() for size in many)
    assert (many[0] < once).any()
    assert not torch.equal(*many)  # its draws count


def test_nothing_to_do_costs_one_pass() -> None:
    victim, x, y = near(2, n=4)
    done = problem_of(victim, x, 1 - y, eps=torch.inf, norm="l2")
    assert torch.equal(fab(done, rng=draws(4)), x)
    assert (done.counter.forward, done.counter.backward) == (4, 4)
    nothing = done.select(torch.zeros(0, dtype=torch.long))
    assert len(fab(nothing, rng=draws(0))) == 0
    some = replace(done, y=torch.cat([y[:2], 1 - y[2:]]))
    z = fab(some, rng=draws(4), steps=4)
    assert some.probe(z).is_final.all()
    assert torch.equal(z[2:], x[2:])


def test_no_slope_gives_the_clean_image_back() -> None:
    level = victim_of(Linear(torch.zeros(2, 64), torch.tensor([1.0, 0.0])))
    x = grey_images(3)
    for norm in NORMS:
        problem = problem_of(level, x, torch.zeros(3, dtype=torch.long), eps=torch.inf, norm=norm)
        assert torch.equal(fab(problem, rng=draws(3), steps=12, restarts=2), x)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"restarts": 0},
        {"candidates": 0},
        {"alpha": 1.0},
        {"extrapolation": 0.9},
        {"backward": 1.0},
        {"refine": -1},
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any]) -> None:
    victim, x, y = near(2, n=2)
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} .*, got"):
        fab(problem_of(victim, x, y, eps=torch.inf, norm="l2"), rng=draws(2), **wrong)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("k", [2, 5])
def test_is_no_farther_than_the_reference(norm: Norm, k: int) -> None:
    victim, x, y = near(k)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    ours = sizes(problem, fab(problem, rng=draws(12), steps=15))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fab_pt = pytest.importorskip("pyautoattack.fab_pt")
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
        # candidates beyond its eps count as failures: none is
        theirs = fab_pt.FABAttack_PT(
            Plain(victim).eval(), norm=name, n_iter=15, eps=1e6, device="cpu"
        ).perturb(x.clone(), y.clone())
    assert torch.isfinite(ours).all()
    assert ours.median() <= 1.02 * sizes(problem, theirs).median()
