"""Ball: feasible, idempotent, identity within, for every norm, batch of 1 and 7, 2-D and 3-D."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from tests.toys import draws

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
SHAPES = ((1, 1, 9, 9), (7, 3, 8, 6), (1, 1, 5, 6, 4), (7, 2, 4, 5, 3))
ROWS = list(itertools.product(NORMS, SHAPES))


def images(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    x[x < 0.1] = 0  # a black background and burnt-in white
    x[x > 0.9] = 1
    return x


@pytest.mark.parametrize(("norm", "shape"), [*ROWS, *itertools.product(("l0",), SHAPES)])
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.7, 50.0, torch.inf])
def test_projection_is_inside_idempotent_and_identity_within(
    norm: Norm, shape: tuple[int, ...], eps: float
) -> None:
    x = images(shape)
    ball = Ball(norm, eps)
    z = ball.project(x + torch.randn(shape, generator=torch.Generator().manual_seed(1)), x)
    assert (ball.size(z, x) <= eps * (1 + 1e-5) + 1e-6).all()
    assert z.min() >= 0
    assert z.max() <= 1
    torch.testing.assert_close(ball.project(z, x), z, atol=2e-7, rtol=1e-6)
    inside = x + 0.5 * (z - x)
    torch.testing.assert_close(ball.project(inside, x), inside, atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball(norm: Norm) -> None:
    x = torch.full((1, 1, 3, 3), 0.5)
    ball = Ball(norm, 0.2)
    z = x + 0.4 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) - 0.1
    nearest = (ball.project(z, x) - z).norm()
    generator = torch.Generator().manual_seed(4)
    for _ in range(300):
        second = ball.project(x + 0.2 * torch.randn(x.shape, generator=generator), x)
        assert (second - z).norm() >= nearest - 1e-6


@pytest.mark.parametrize(("norm", "shape"), ROWS)
def test_samples_fill_the_ball(norm: Norm, shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 0.5)
    ball = Ball(norm, 0.2)
    size = ball.size(ball.sample(x, draws(len(x))), x)
    assert (size <= 0.2 * (1 + 1e-5)).all()
    assert (size > 0.1).all()  # in many dimensions the volume lies near the surface
    assert torch.equal(ball.sample(x, draws(len(x))), ball.sample(x, draws(len(x))))


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("where", ["channels", "region", "both"])
def test_samples_fill_the_ball_of_the_values_that_may_change(norm: Norm, where: str) -> None:
    x = torch.full((400, 4, 4, 6), 0.5)
    region = torch.zeros(400, 1, 4, 6, dtype=torch.bool)
    region[::2, :, 1:3, 1:4] = True  # 6 of 24 pixels of every other image, 1 of the rest
    region[1::2, :, 0, 0] = True
    channels = None if where == "region" else (2,)
    ball = Ball(norm, 0.2, channels=channels, region=None if where == "channels" else region)
    z = ball.sample(x, draws(400))
    scale = ball.size(z, x) / 0.2  # inf where what may not change did
    assert (scale <= 1 + 1e-4).all()
    d = ball.mask(torch.ones_like(x)).flatten(1).sum(1)
    # (|delta| / eps)^d is uniform in (0, 1), for each number d of values that may change
    for count in d.unique():
        uniform = (scale[d == count] ** count).sort().values
        steps = (torch.arange(len(uniform)) + 0.5) / len(uniform)
        assert (uniform - steps).abs().max() < 1.63 / len(uniform) ** 0.5  # Kolmogorov, 1 %
    assert not Ball(norm, 0.2, region=torch.zeros_like(region)).sample(x, draws(400)).ne(x).any()


def test_l0_draws_eps_of_the_values_that_may_change() -> None:
    x = torch.full((9, 4, 4, 6), 0.5)
    for eps, changed in ((5.0, 5), (24.0, 24), (50.0, 24)):
        ball = Ball("l0", eps, channels=(1,))
        assert ball.size(ball.sample(x, draws(9)), x).tolist() == [changed] * 9


@pytest.mark.parametrize(
    ("norm", "total"),
    [("linf", 61.733513), ("l2", 60.105743), ("l1", 60.01041), ("l0", 59.552765)],
)
def test_draws_where_all_may_change_stay_what_records_hold(norm: Norm, total: float) -> None:
    x = torch.full((2, 3, 5, 4), 0.5)
    z = Ball(norm, 3.0 if norm == "l0" else 0.2).sample(x, draws(2))
    assert z.sum().item() == pytest.approx(total, abs=2e-5)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", torch.inf)])
def test_steepest_direction_reaches_the_dual_norm(norm: Norm, dual: float) -> None:
    g = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    direction = Ball(norm, 1.0).steepest(g)
    torch.testing.assert_close(
        (direction * g).flatten(1).sum(1), g.flatten(1).norm(p=dual, dim=1), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        Ball(norm, 1.0).size(direction, torch.zeros_like(g)), torch.ones(5), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_steepest_direction_does_not_depend_on_the_gradients_scale(
    norm: Norm, scale: float
) -> None:
    g = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ball = Ball(norm, 1.0)
    torch.testing.assert_close(ball.steepest(g * scale), ball.steepest(g), rtol=1e-4, atol=1e-6)
    assert not ball.steepest(torch.zeros_like(g)).any()


def test_radius_per_sample_follows_its_row() -> None:
    x = images((3, 1, 4, 4))
    ball = Ball("linf", torch.tensor([0.0, 0.1, 0.2]))
    z = ball.project(torch.ones_like(x), x)
    assert (ball.size(z, x) <= torch.tensor([0.0, 0.1, 0.2]) + 1e-6).all()
    taken = ball.select(torch.tensor([2, 1])).eps
    assert isinstance(taken, torch.Tensor)
    assert taken.tolist() == pytest.approx([0.2, 0.1])


def test_only_chosen_channels_and_region_change() -> None:
    x = images((2, 3, 6, 6))
    region = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    region[0, :, :3] = True
    region[1, :, 3:] = True
    ball = Ball("linf", 0.3, channels=(1,), region=region)
    for z in (ball.sample(x, draws(2)), ball.project(1 - x, x)):
        moved = z != x
        assert moved.any()
        assert not moved[:, [0, 2]].any()
        assert not (moved & ~region).any()
    assert not ball.steepest(torch.ones_like(x))[:, 0].any()
    assert ball.select(torch.tensor([1])).region is not None


def test_l0_keeps_the_largest_changes_and_draws_eps_of_them() -> None:
    x = torch.full((1, 1, 2, 3), 0.5)
    delta = torch.tensor([0.1, -0.4, 0.2, 0.0, 0.3, -0.2]).view(1, 1, 2, 3)
    ball = Ball("l0", 3.9)
    selected = ball.project(x + delta, x) - x
    torch.testing.assert_close(selected.flatten(), torch.tensor([0, -0.4, 0.2, 0, 0.3, 0]))
    many = x.expand(9, 1, 2, 3)
    assert ball.size(ball.sample(many, draws(9)), many).tolist() == [3.0] * 9


@given(st.integers(1, 40), st.floats(0.01, 3), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_l1_projection_matches_a_bisection(d: int, eps: float, seed: int) -> None:
    x = torch.full((1, 1, d, 1), 0.5)
    delta = torch.randn(1, 1, d, 1, generator=torch.Generator().manual_seed(seed)).double()
    projected = (
        Ball("l1", eps).project(x.double() + 0.4 * delta.clamp(-1, 1), x.double()) - x.double()
    )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        total = (0.4 * delta.clamp(-1, 1).abs() - middle).clamp_min(0).sum()
        low, high = (middle, high) if total > eps else (low, middle)
    expected_norm = delta.sign() * (0.4 * delta.clamp(-1, 1).abs() - high * (low > 0)).clamp_min(0)
    torch.testing.assert_close(projected, expected_norm, atol=1e-6, rtol=1e-6)


def test_bad_balls_are_refused() -> None:
    with pytest.raises(SpecError, match=r"expected eps >= 0, got -0.1"):
        Ball("linf", -0.1)
    with pytest.raises(SpecError, match=r"expected eps >= 0, got nan"):
        Ball("linf", float("nan"))
