"""Square: windows, schedule, bumps and budget of the paper; at least as strong as a peer."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks import square as module
from attacks.square import square
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output
from tests.toys import draws, generic_victim, grey_images, problem_of, small_victim

N = 5


class Unmoved:
    """A judge that answers the same whatever it is shown, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, x: Images) -> Output:
        self.seen.append(x.clone())
        return Output(torch.tensor([[1.0, 0.0]]).expand(len(x), 2))


def unmoved(norm: Norm, *size: int, eps: Any = 0.05, **fields: Any) -> Problem:  # noqa: ANN401
    generator = torch.Generator().manual_seed(4)
    x = 0.4 + 0.2 * torch.rand(N, *size, generator=generator)
    ball = Ball(norm, eps, **fields)
    return Problem(x, torch.zeros(N, dtype=torch.long), ball, Untargeted(), Unmoved())


def shown(problem: Problem, *, queries: int, p_init: float = 0.8) -> Tensor:
    """Return every candidate shown to the judge, `(queries, b, c, *s)`."""
    assert isinstance(problem.judge, Unmoved)
    square(problem, rng=draws(len(problem)), queries=queries, p_init=p_init)
    return torch.stack(problem.judge.seen)


def box_of(changed: Tensor) -> tuple[int, ...]:
    """Return the sides of the smallest box around what is True."""
    where = changed.nonzero()
    return tuple((where.amax(0) - where.amin(0) + 1).tolist())


# --- what both norms share -----------------------------------------------------------------------


def test_windows_halve_where_the_paper_halves_them() -> None:
    at = [0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001, 9999]
    halved = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    found = [module._window_fraction(i / 10_000, 0.8) for i in at]
    assert found == pytest.approx([0.8 / 2**times for times in halved])
    # at 500 queries the schedule is 20 times as fast
    assert module._window_fraction(3 / 500, 0.8) == pytest.approx(0.8 / 2**2)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_asks_for_no_gradient_and_no_more_than_its_queries(norm: Norm) -> None:
    """A victim without gradients is attacked, and broken; one never broken costs every query."""
    victim = small_victim(3, side=10)
    x = torch.rand(N, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    victim = victim.at(-victim.logits(x).mean(0))  # or one class would take them all

    def closed(z: Images) -> Output:
        return Output(victim(z).logits.detach())

    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=5.0, norm=norm)
    problem = replace(problem, judge=closed)
    with pytest.raises(VictimError, match="expected a victim with gradients"):
        problem.gradient(x)
    found = problem.probe(square(problem, rng=draws(N), queries=60))
    assert found.is_final.any()
    assert problem.counter.backward == 0
    near = replace(problem, ball=Ball(norm, 0.0), counter=Counter())
    square(near, rng=draws(N), queries=60)
    assert (near.counter.forward, near.counter.backward) == (60 * N, 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_candidate_returned_did_the_most_harm_of_all_shown(norm: Norm) -> None:
    victim = generic_victim(3)
    x = grey_images(N)
    y = victim(x).logits.argmax(1)
    seen: list[Tensor] = []

    def watched(z: Images) -> Output:
        seen.append(z.clone())
        return victim(z)

    problem = problem_of(victim, x, y, eps=1e-3, norm=norm)
    z = square(replace(problem, judge=watched), rng=draws(N), queries=40)
    harms = torch.stack([problem.probe(one).harm for one in seen])
    assert harms.shape == (40, N)  # nobody was broken
    torch.testing.assert_close(problem.probe(z).harm, harms.amax(0))
    # each proposal leaves from the best so far: hence the harm grows far beyond the start
    assert (harms.amax(0) > harms[0]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_sample_has_its_own_radius_and_its_own_draws(norm: Norm) -> None:
    eps = torch.tensor([0.0, 0.01, 0.02, 0.05, 0.1])
    problem = unmoved(norm, 3, 8, 8, eps=eps)
    seen = shown(problem, queries=30)
    for z in seen:
        torch.testing.assert_close(problem.ball.size(z, problem.x), eps, rtol=1e-4, atol=1e-6)
    changed = (seen[1:] != seen[:1]).flatten(2)
    assert not torch.equal(changed[:, 3], changed[:, 4])
    alone = unmoved(norm, 3, 8, 8, eps=eps).select(torch.tensor([3]))
    alone = replace(alone, judge=Unmoved())
    square(alone, rng=draws(N).select(torch.tensor([3])), queries=30)
    assert isinstance(alone.judge, Unmoved)
    torch.testing.assert_close(torch.stack(alone.judge.seen)[:, 0], seen[:, 3])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_only_what_may_change_changes(norm: Norm) -> None:
    region = torch.zeros(N, 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:7, 1:5] = True
    problem = unmoved(norm, 3, 8, 8, channels=(0, 2), region=region)
    seen = shown(problem, queries=40)
    moved = (seen != problem.x).any(0)
    allowed = region.expand(-1, 3, -1, -1).clone()
    allowed[:, 1] = False
    assert not moved[~allowed].any()
    assert moved[allowed].all()
    if norm == "l2":  # what the closed channel cannot take, the open ones do
        sizes = torch.stack([problem.ball.size(z, problem.x) for z in seen])
        assert (sizes > 0.999 * 0.05).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", [(1, 4, 20), (2, 3, 3), (1, 1, 7), (1, 6, 9, 4), (1, 2, 2)])
def test_images_of_any_shape(norm: Norm, size: tuple[int, ...]) -> None:
    problem = unmoved(norm, *size)
    seen = shown(problem, queries=50)
    assert torch.isfinite(seen).all()
    for z in seen:
        assert (problem.ball.size(z, problem.x) <= 0.05 * (1 + 1e-4)).all()
    assert (seen != problem.x).any(0).any(0).all()  # no place is out of reach


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"p_init": -0.1}])
def test_bad_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} > 0, got"):
        square(unmoved("linf", 1, 8, 8), rng=draws(N), **wrong)


def test_nobody_to_attack_costs_nothing() -> None:
    nothing = unmoved("linf", 1, 8, 8).select(torch.zeros(0, dtype=torch.long))
    assert len(square(nothing, rng=draws(0))) == 0
    assert nothing.counter.forward == 0


# --- L-inf ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 8, 8), (2, 4, 5, 6)])
def test_linf_starts_with_stripes_and_stays_at_the_ends(size: tuple[int, ...]) -> None:
    problem = unmoved("linf", *size)
    problem.x[0, :, :2], problem.x[1, :, :2] = 0.0, 1.0
    seen = shown(problem, queries=50)
    high, low = (problem.x + 0.05).clamp_max(1), (problem.x - 0.05).clamp_min(0)
    for z in seen:
        assert (torch.isclose(z, high) | torch.isclose(z, low)).all()
    up = torch.isclose(seen[0], high)
    assert torch.equal(up, up[:, :, :1].expand_as(up))  # stripes run along every axis but the last
    assert (up.float().mean((0, 1, 2)) != up.float().mean()).any()


@pytest.mark.parametrize(("size", "side"), [((1, 16, 16), 14), ((1, 8, 8, 8), 7), ((1, 4, 64), 4)])
def test_linf_redraws_one_window_of_the_size_of_the_schedule(
    size: tuple[int, ...], side: int
) -> None:
    """0.8 of 256 pixels: a side of sqrt(204.8) = 14.3; of 512: 7.4; where it fits."""
    seen = shown(unmoved("linf", *size), queries=200)
    sides = (side, 14) if size[1:] == (4, 64) else (side,) * len(size[1:])
    for row in range(N):
        changed = (seen[1, row] != seen[0, row])[0]
        assert all(a <= b for a, b in zip(box_of(changed), sides, strict=True))
        after = seen[1, row, 0][changed]
        assert ((after > unmoved("linf", *size).x[row, 0][changed]).float().std() == 0).all()


def test_a_query_is_never_spent_on_the_image_already_judged() -> None:
    """In one channel half of the small windows would be redrawn as they are."""
    seen = shown(unmoved("linf", 1, 8, 8), queries=300)
    changed = (seen[1:] != seen[:1]).flatten(2).sum(2)
    assert (changed > 0).all()
    assert (changed[-50:] == 1).all()  # windows of one pixel at the end


# --- L2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "most"), [((3, 15, 15), 2 * 9), ((1, 10, 10, 10), 2 * 27)])
def test_l2_moves_mass_from_one_window_to_another(size: tuple[int, ...], most: int) -> None:
    problem = unmoved("l2", *size)
    seen = shown(problem, queries=300)
    for z in seen:  # all of the budget, always: away from the box no mass is lost
        torch.testing.assert_close(problem.ball.size(z, problem.x), torch.full((N,), 0.05))
    moved = ((seen[-1] - seen[0]).abs() > 1e-6).flatten(2).any(1).sum(1)
    assert (moved <= most).all()  # windows of side 3 at the end
    assert (moved > most / 4).all()


def test_l2_takes_the_mass_of_the_second_window_and_puts_it_in_the_first() -> None:
    problem = unmoved("l2", 1, 6, 6, eps=0.5)
    z = problem.x.clone()
    z[:, :, :3, :3] += 0.1  # a mass of 9 * 0.01 = 0.09 of 0.25; the rest is unused
    window = module._window((3, 3), (6, 6), problem.x)
    near, far = torch.tensor([[0.1, 0.1]]), torch.tensor([[0.9, 0.9]])

    class Fixed(Draws):
        def uniform(self, *shape: int) -> Tensor:
            assert shape == (6,)
            # the first window far away, the second on the mass, sign up, split along axis 0
            return torch.cat([far, near, torch.tensor([[0.9, 0.1]])], 1).expand(N, -1)

    frame = module._allowed(problem)
    found = module._move_mass(problem, z, frame, window, Fixed(draws(N).keys))
    delta = found - problem.x
    expected = torch.zeros_like(delta)
    expected[:, :, 3:, 3:] = 0.5 * module._bumps((3, 3))[0]
    torch.testing.assert_close(delta, expected)


def test_l2_shares_what_is_unused_among_the_channels_that_may_change() -> None:
    problem = unmoved("l2", 3, 6, 6, channels=(0, 2))
    window = module._window((3, 3), (6, 6), problem.x)
    z = module._move_mass(problem, problem.x, module._allowed(problem), window, draws(N))
    sizes = (z - problem.x).flatten(2).norm(dim=2)
    expected = torch.tensor([0.5**0.5, 0.0, 0.5**0.5]) * 0.05
    torch.testing.assert_close(sizes, expected.expand(N, -1), rtol=1e-4, atol=1e-6)


def test_bumps_are_those_of_the_authors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchattacks.attacks.square import Square
    peer = Square(nn.Identity(), norm="L2")
    peer.device = torch.device("cpu")
    for side in (3, 5, 8, 11):
        expected = peer.eta(side)
        found = module._bumps((side, side))
        turned = torch.stack([expected, expected.T])  # the peer transposes by the toss of a coin
        assert min((found - turned).abs().max(), (found - turned.flip(0)).abs().max()) < 1e-6
    assert module._bumps((3, 5, 4)).flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1, 1])


# --- peers ---------------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, z: Tensor) -> Tensor:
        return self.problem.judge(z).logits.clone()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.25)])
def test_no_more_samples_are_robust_than_against_torchattacks(norm: Norm, eps: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchattacks
    victim = small_victim(3, channels=3, side=16)
    x = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    victim = victim.at(-victim.logits(x).mean(0))  # or one class would take them all
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=eps, norm=norm)
    peer = torchattacks.Square(
        Logits(problem).eval(), norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=100
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = int((~problem.probe(peer(x, problem.y)).is_final).sum())
    ours = [
        int((~problem.probe(square(problem, rng=draws(32, seed), queries=100)).is_final).sum())
        for seed in range(3)
    ]
    assert 0 < theirs < 32
    assert max(ours) <= theirs + 1
