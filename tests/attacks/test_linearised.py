"""The least move in the box against a general solver; ways, and the search back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import nn

from attacks.linearised import least_move, nearest_way, shrink
from robustbench_med.cards import Norm
from tests.toys import distance, grey_images, linear_victim, problem_of, victim_of

D = 12
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
SIZE = {
    "linf": lambda d: d.abs().amax(),
    "l2": torch.linalg.vector_norm,
    "l1": lambda d: d.abs().sum(),
}


def posed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image with values at 0 and 1, and a slope with an entry of 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 1, D, generator=generator)
    x[0, 0, 0], x[0, 0, 1] = 0, 1
    slope = torch.randn(1, 1, D, generator=generator)
    slope[0, 0, 2] = 0
    return x, slope


def solved(x: torch.Tensor, slope: torch.Tensor, gain: float, norm: Norm) -> float:
    """Return the least norm by a general solver: a linear programme, or SLSQP for L2."""
    flat, w = x.flatten().double().numpy(), slope.flatten().double().numpy()
    if norm == "l2":
        start = np.where(w > 0, 1 - flat, -flat)
        found = minimize(
            lambda d: (d**2).sum(),
            start,
            jac=lambda d: 2 * d,
            bounds=list(zip(-flat, 1 - flat, strict=True)),
            constraints={"type": "eq", "fun": lambda d: w @ d - gain, "jac": lambda _: w},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        return float(np.sqrt(found.fun))
    eye = np.eye(D)
    if norm == "linf":  # d, t: |d| <= t
        cost, over = np.r_[np.zeros(D), 1], -np.ones((D, 1))
        bounds = [*zip(-flat, 1 - flat, strict=True), (0, 1)]
        a_ub, a_eq = np.block([[eye, over], [-eye, over]]), np.r_[w, 0][None]
    else:  # d = up - down
        cost, a_ub, a_eq = np.ones(2 * D), None, np.r_[w, -w][None]
        bounds = [*((0, 1 - v) for v in flat), *((0, v) for v in flat)]
    b_ub = None if a_ub is None else np.zeros(2 * D)
    return float(linprog(cost, a_ub, b_ub, a_eq, [gain], bounds).fun)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [-0.9, -0.3, 0.05, 0.5, 0.95])
def test_least_move_is_that_of_a_general_solver(norm: Norm, share: float) -> None:
    for seed in range(4):
        x, slope = posed(seed)
        most = torch.where(slope * share > 0, 1 - x, -x) * slope  # what the box allows
        gain = most.sum() * abs(share)
        move = least_move(x, slope, gain[None], norm)
        assert (slope * move).sum() == pytest.approx(float(gain), rel=1e-4)
        assert (x + move).min() >= 0
        assert (x + move).max() <= 1 + 1e-6
        wanted = solved(x, slope, float(gain), norm)
        assert float(SIZE[norm](move)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_a_gain_beyond_the_box_goes_to_its_corner(norm: Norm) -> None:
    x, slope = posed(0)
    for gain, corner in ((1e3, slope > 0), (-1e3, slope < 0)):
        z = x + least_move(x, slope, torch.tensor([gain]), norm)
        moved = slope != 0
        torch.testing.assert_close(z[moved], corner.float()[moved])
        assert torch.equal(z[~moved], x[~moved])


@pytest.mark.parametrize("norm", NORMS)
def test_least_move_treats_each_sample_alone_at_any_scale(norm: Norm) -> None:
    pairs = [posed(seed) for seed in range(5)]
    x, slope = (torch.cat(part) for part in zip(*pairs, strict=True))
    gain = torch.tensor([0.1, -0.2, 0.3, 0.0, 2.0])
    whole = least_move(x, slope, gain, norm)
    for i in range(5):
        alone = least_move(x[i : i + 1], slope[i : i + 1] * 1e-30, gain[i : i + 1] * 1e-30, norm)
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-6)
    assert not whole[3].any()  # no gain, no move


def test_no_value_moves_more_than_the_cap() -> None:
    x, slope = posed(1)
    move = least_move(x, slope, torch.tensor([0.15]), "l1", cap=0.05)
    assert move.abs().max() <= 0.05
    assert (slope * move).sum() == pytest.approx(0.15, rel=1e-4)


def test_nearest_way_passes_over_what_is_no_way_or_has_no_room() -> None:
    z = torch.tensor([[[0.5, 1.0]], [[0.5, 0.5]], [[1.0, 1.0]]])
    jacobian = torch.tensor([[[1.0, 0.0]], [[0.0, 9.0]], [[8.0, 8.0]]]).expand(3, 3, 1, 2)
    margins = torch.tensor([[-1.0, -1.0, -torch.inf]] * 3)
    way = nearest_way(margins, jacobian, z, torch.ones_like(z), "l2")
    # the second way is the steeper, but the first sample's value is at 1, as are the third's
    assert way.size.tolist() == [1.0, 9.0, 0.0]
    torch.testing.assert_close(way.slope[0], jacobian[0, 0])
    back = nearest_way(-margins[:, :2], jacobian[:, :2], z, torch.ones_like(z), "l2")
    assert back.size.tolist() == [9.0, 9.0, 9.0]  # on the way back there is room


class Bent(nn.Module):
    """Logits whose margin is a power of a linear one: the boundary stays, the harm curves."""

    def __init__(self, linear: nn.Module, power: float) -> None:
        super().__init__()
        self.linear, self.power = linear, power

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.linear(x)
        margin = found[:, 1] - found[:, 0]
        return torch.stack(
            [torch.zeros_like(margin), margin.sign() * margin.abs() ** self.power], 1
        )


@pytest.mark.parametrize(("power", "passes"), [(1.0, 2), (0.5, 8), (1.5, 8)])
def test_shrink_finds_the_boundary_of_a_curved_harm(power: float, passes: int) -> None:
    linear = linear_victim(2, scale=1.0)
    x = grey_images(6)
    y = linear(x).logits.argmax(1)
    nearest = distance(linear, x, y, "l2")
    bent = victim_of(Bent(linear.module, power))
    problem = problem_of(bent, x, y, eps=torch.inf, norm="l2")
    g, _ = problem.gradient(x)
    z = x + 1.3 * (nearest / g.flatten(1).norm(dim=1)).view(-1, 1, 1, 1) * g
    below, above = problem.probe(x).harm, problem.probe(z).harm
    found = shrink(problem, z, below, above, below.abs() * 1e-4, passes=passes)
    assert problem.probe(found).is_final.all()
    torch.testing.assert_close(problem.ball.size(found, x), nearest, rtol=5e-3, atol=0)
    assert torch.equal(shrink(problem, z, below, above, below.abs() * 1e-4, passes=0), z)
