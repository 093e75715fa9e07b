"""Shifts: each family is the identity at 0, has its derivative, and obeys its searches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from attacks.shifts.bias_field import bias_field, bias_field_family
from attacks.shifts.search import SEARCHES, search_shift
from attacks.shifts.splines import basis, spline
from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.measurements import measure
from robustbench_med.errors import SpecError
from robustbench_med.objectives.segmentation import Damage
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.shift import Family, Shifted
from tests.toys import Linear, draws, mask_card, small_mask_victim, small_victim, victim_of

CHANNELS = {"stain": 3}  # families that need so many
# the corruptions of MedMNIST-C need the name of one, see test_corruptions
SHIFTS = sorted(
    n
    for n, card in registry.load("attacks").items()
    if card.threat == "shift" and n != "medmnist_c"
)


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Return images with smooth structure and exact 0 and 1 among their pixels."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=rng)
    x[:, :, 0] = 0
    x[:, :, -1] = 1
    return x


def run(name: str, problem: Problem, **parameters: Any) -> Shifted:  # noqa: ANN401
    card = registry.find("attacks", name)
    settings = {**card.parameters, "draws": 3, "steps": 4, **parameters}
    shifted: Shifted = registry.function("attacks", card)(
        problem, rng=draws(len(problem)), **settings
    )
    return shifted


def channels(name: str) -> int:
    return CHANNELS.get(name, 1)


def posed(n: int = 5, *, of: str = "", axes: int = 2) -> Problem:
    """Return a problem at severity 0.7 on images that a family can be applied to."""
    victim = small_victim(3, channels=channels(of), axes=axes)
    x = images(n, channels(of), *[12] * axes)
    return Problem(x, victim.logits(x).argmax(1), Ball("severity", 0.7), _untargeted(), victim)


def _untargeted() -> Any:  # noqa: ANN401
    from robustbench_med.objectives.classification import Untargeted

    return Untargeted()


def family_of(name: str, *, axes: int = 2) -> Family:
    return run(name, posed(0, of=name, axes=axes)).family


# --- every family --------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", SHIFTS)
def test_nothing_happens_at_severity_0(name: str, axes: int) -> None:
    family, x = family_of(name, axes=axes), images(2, channels(name), *[12] * axes)
    same = family(x, torch.zeros(2, family.size), draws(2))
    assert torch.allclose(same, x, atol=2e-6)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", SHIFTS)
def test_a_family_changes_images_and_keeps_the_range(name: str, axes: int) -> None:
    family, x = family_of(name, axes=axes), images(3, channels(name), *[12] * axes)
    theta = family.draw(torch.ones(3), draws(3).fork("theta"))
    z = family(x, theta, draws(3))
    assert z.shape == x.shape
    assert z.min() >= 0
    assert z.max() <= 1
    assert ((z - x).abs().flatten(1).amax(1) > 0.01).all()
    assert torch.equal(z, family(x, theta, draws(3)))  # no draw from a hidden generator


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    family, x, rng = family_of(name), images(3, channels(name), 12, 12), draws(3)
    theta = family.draw(torch.ones(3), rng.fork("theta"))
    whole = family(x, theta, rng)
    alone = [family(x[i : i + 1], theta[i : i + 1], Draws(rng.keys[i : i + 1])) for i in range(3)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("name", SHIFTS)
def test_the_derivative_is_that_of_finite_differences(name: str) -> None:
    family = family_of(name)
    if not family.differentiable:
        pytest.skip("the family has no derivative")
    # away from 0 and 1, where clipping has a kink
    x, rng = 0.3 + 0.4 * images(1, channels(name), 12, 12).double(), draws(1)
    theta = 0.15 * family.draw(torch.ones(1), rng.fork("theta")).double()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()

    def value(theta: Tensor) -> Tensor:
        return (family(x, theta, rng) * weights).sum()

    leaf = theta.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    step = 1e-3
    for i in range(min(family.size, 3)):
        move = torch.zeros_like(theta)
        move[0, i] = step
        numeric = float(value(theta + move) - value(theta - move)) / (2 * step)
        assert float(slope[0, i]) == pytest.approx(numeric, rel=0.02, abs=2e-3)


# --- searches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIFTS)
def test_each_search_does_at_least_as_much_harm_as_a_weaker_one(name: str) -> None:
    problem = posed(of=name)
    harm = {s: problem.probe(run(name, problem, search=s).z).harm for s in SEARCHES}
    assert (harm["worst_of"] >= harm["random"]).all()
    assert (harm["climbed"] >= harm["worst_of"]).all()
    assert (harm["local"] >= harm["worst_of"]).all()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", SHIFTS)
def test_a_search_stays_in_the_family_and_in_its_severity(name: str, search: str) -> None:
    problem = posed(of=name)
    shifted = run(name, problem, search=search)
    severity = shifted.severity(problem.x)
    assert (severity <= 0.7 * (1 + 1e-6)).all()
    if search == "random":
        assert torch.allclose(severity, torch.full((5,), 0.7))


@pytest.mark.parametrize("name", SHIFTS)
def test_a_search_runs_on_no_image_and_on_one_severity_each(name: str) -> None:
    assert len(run(name, posed(0, of=name)).z) == 0
    problem = posed(of=name).at(torch.linspace(0.1, 1, 5))
    severity = run(name, problem, search="random").severity(problem.x)
    assert torch.allclose(severity, torch.linspace(0.1, 1, 5))


def test_draws_of_one_number_are_its_ends_and_then_between() -> None:
    seen: list[Tensor] = []

    def apply(x: Tensor, theta: Tensor, draws: Draws) -> Tensor:
        seen.append(theta)
        return x + 0 * theta[0, 0]

    problem, family = posed(1), Family(1, apply)
    search_shift(problem, family, rng=draws(1), search="worst_of", draws=20, steps=1)
    theta = torch.cat(seen)[:, 0]
    assert theta[0].abs() == pytest.approx(0.7)
    assert theta[1] == -theta[0]
    assert (theta[2:].abs() < 0.7).all()
    assert len(theta[2:].unique()) == 18


def test_an_unknown_search_is_refused() -> None:
    with pytest.raises(SpecError, match="expected search in random, worst_of, climbed, local"):
        run("bias_field", posed(0), search="best")


def test_a_climb_finds_the_severity_at_which_a_bright_field_must_succeed() -> None:
    # class 1 where the mean is above 0.6: the brightest field multiplies all of it by exp(s / 2)
    x = torch.full((1, 1, 8, 8), 0.5)
    weight = torch.cat([torch.zeros(1, 64), torch.full((1, 64), 1 / 64)])
    victim = victim_of(Linear(weight, torch.tensor([0.6, 0.0])))
    needed = 2 * float(np.log(0.6 / 0.5))
    problem = Problem(x, torch.tensor([0]), Ball("severity", 1.0), _untargeted(), victim)
    for factor, success in ((0.98, False), (1.02, True)):
        found = run("bias_field", problem.at(factor * needed), search="climbed", steps=20)
        assert bool(problem.probe(found.z).success) is success


def test_a_local_search_asks_for_no_gradient() -> None:
    problem = posed()
    run("bias_field", problem, search="local")
    assert problem.counter.backward == 0
    assert problem.counter.forward > 0


# --- audit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["another image", "too severe", "none"])
def test_the_audit_measures_the_severity_and_does_not_trust_it(fault: str) -> None:
    problem = posed(3)
    shifted = run("bias_field", problem, search="random")
    if fault == "another image":
        z = shifted.z.clone()
        z[1, 0, 4, 4] = (z[1, 0, 4, 4] + 0.5) % 1
        shifted = shifted._replace(z=z)
    elif fault == "too severe":
        theta = shifted.theta.clone()
        theta[1] = theta[1] * 2
        z = shifted.family(problem.x, theta, shifted.draws)
        shifted = shifted._replace(theta=theta, z=z)
    size = measure(problem, shifted, 255)["size"]
    over = size > 0.7 * (1 + 1e-5)
    assert over.tolist() == [False, fault != "none", False]


def test_a_parameter_of_a_forbidden_sign_is_outside_the_family() -> None:
    family = Family(1, lambda x, theta, draws: x, signed=False)
    shifted = Shifted(images(2, 1, 8, 8), torch.tensor([[0.5], [-0.5]]), draws(2), family)
    assert shifted.severity(shifted.z).tolist() == [0.5, torch.inf]


def test_masks_that_move_are_judged_against_the_truth_that_moved() -> None:
    victim, card = small_mask_victim(2), mask_card(2)
    x = images(2, 1, 8, 8)
    y = torch.zeros(2, 8, 8, dtype=torch.int64)
    y[:, 2:4] = 1
    family = Family(
        1,
        lambda x, theta, draws: x.roll(1, 2) + 0 * theta[:, :, None, None],
        move=lambda y, theta, draws: y.roll(1, 1),
    )
    problem = Problem(x, y, Ball("severity", 1.0), Damage(card), victim)
    shifted = Shifted(x.roll(1, 2), torch.ones(2, 1), draws(2), family)
    measured = measure(problem, shifted, 255)
    moved = replace(problem, y=y.roll(1, 1))
    assert torch.equal(measured["harm"], moved.probe(shifted.z).harm)
    assert not torch.equal(measured["harm"], problem.probe(shifted.z).harm)
    assert torch.equal(measured["truth"].long(), y.roll(1, 1))
    # where no image is left to be shifted, what is kept has the same names
    none = torch.zeros(0, dtype=torch.int64)
    nothing = Shifted(x[:0], torch.zeros(0, 1), draws(0), family)
    assert measure(problem.select(none), nothing, 255).keys() == measured.keys()


# --- bias field ----------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [4, 5, 9])
def test_splines_are_those_of_scipy_and_add_up_to_1(points: int) -> None:
    ours = basis(30, points).double().numpy()
    knots = np.arange(-3, points + 1, dtype=float)
    place = np.linspace(0, points - 3, 30)
    place[-1] -= 1e-9  # the last knot of scipy's half-open intervals
    theirs = BSpline(knots, np.eye(points), 3)(place)
    assert np.abs(ours - theirs).max() < 1e-6
    assert np.abs(ours.sum(1) - 1).max() < 1e-6


@pytest.mark.parametrize("axes", [2, 3])
def test_equal_coefficients_are_one_factor(axes: int) -> None:
    x = 0.5 * images(1, 2, *[6] * axes)
    family = bias_field_family((6,) * axes, points=4, strength=0.5)
    brighter = family(x, torch.ones(1, 4**axes), draws(1))
    assert torch.allclose(brighter, x * float(np.exp(0.5)), atol=1e-6)


def test_a_field_is_the_same_in_every_channel_and_within_its_factor() -> None:
    x = 0.4 + 0.1 * images(4, 3, 16, 16)
    family = bias_field_family((16, 16), points=5, strength=0.3)
    field = family(x, family.draw(torch.ones(4), draws(4)), draws(4)) / x
    assert torch.allclose(field[:, :1].expand_as(field), field, atol=1e-5)
    assert (field.log().abs() <= 0.3 + 1e-5).all()


def test_a_coefficient_moves_its_own_place_most() -> None:
    coefficients = torch.zeros(1, 36)
    coefficients[0, 14] = 1  # row 2, column 2 of 6: the centres are at the knots 1 and 1 of 0..3
    place = int(spline(coefficients, (31, 31), 6).argmax())
    assert (place // 31, place % 31) == (10, 10)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(SpecError, match="expected points >= 4"):
        bias_field(posed(0), rng=draws(0), points=3)
