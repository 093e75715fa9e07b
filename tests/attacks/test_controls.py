"""Controls: as large as an attack, without its knowledge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attacks.controls import noise, shuffled
from attacks.pgd import pgd
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from tests.toys import (
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    problem_of,
    small_victim,
)

N = 12


def coloured(**fields: Any) -> Problem:  # noqa: ANN401
    """Return a problem whose ball touches the box nowhere, on images of three channels."""
    victim = small_victim(3, channels=3)
    x = grey_images(N, channels=3)
    y = victim(x).logits.argmax(1)
    return Problem(x, y, Ball("linf", 0.003, **fields), Untargeted(), victim)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_controls_lose_where_the_attack_wins(norm: Norm) -> None:
    victim = linear_victim(2)
    x = grey_images(N)
    y = victim(x).logits.argmax(1)
    eps = distance(victim, x, y, norm) * 1.2
    problem = problem_of(victim, x, y, eps=eps, norm=norm)
    assert problem.probe(pgd(problem, rng=draws(N))).is_final.all()
    assert not problem.probe(noise(problem, rng=draws(N))).is_final.any()
    assert not problem.probe(shuffled(problem, rng=draws(N))).is_final.any()


def test_noise_is_the_best_of_its_draws() -> None:
    victim = generic_victim(3)
    x = grey_images(N)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=1e-3)
    one = noise(problem, rng=draws(N), draws=1)
    assert torch.equal(one, problem.ball.sample(x, draws(N).fork("draw", 0)))
    each = [problem.ball.sample(x, draws(N).fork("draw", i)) for i in range(8)]
    harms = torch.stack([problem.probe(z).harm for z in each])
    best = problem.probe(noise(problem, rng=draws(N), draws=8)).harm
    torch.testing.assert_close(best, harms.amax(0))
    assert len(harms.argmax(0).unique()) > 1  # not always the first, nor the last


def test_noise_asks_for_no_gradient_and_stops_where_it_broke_a_sample() -> None:
    victim = generic_victim(3)
    x = grey_images(N)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=1.0)
    assert problem.probe(noise(problem, rng=draws(N), draws=50)).is_final.all()
    assert problem.counter.backward == 0
    assert problem.counter.forward < 50 * N / 2


def test_shuffling_keeps_every_pixel_of_the_perturbation_and_no_place() -> None:
    problem = coloured()
    delta, moved = (
        (z - problem.x).flatten(2)
        for z in (
            pgd(problem, rng=draws(N).fork("pgd"), steps=7),
            shuffled(problem, rng=draws(N), steps=7),
        )
    )
    for before, after in zip(delta, moved, strict=True):
        assert not torch.allclose(before, after, atol=1e-5)
        rows = [
            sorted(tuple((p * 1e6).round().int().tolist()) for p in d.T) for d in (before, after)
        ]
        gaps = (torch.tensor(rows[0]) - torch.tensor(rows[1])).abs()
        assert gaps.max() <= 1  # pixels with their channels, in another order
    # every sample has its own order
    order = [
        (after[0, :, None] - before[0]).abs().argmin(1)
        for before, after in zip(delta, moved, strict=True)
    ]
    assert not torch.equal(order[0], order[1])


def test_shuffling_stays_where_change_is_allowed_and_uses_all_of_it() -> None:
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., 2:6, 3:5] = True
    problem = coloured(region=region, channels=(0, 1))
    z = pgd(problem, rng=draws(N).fork("pgd"), steps=7)
    moved = shuffled(problem, rng=draws(N), steps=7)
    for norm in ("linf", "l2"):
        ball = Ball(norm, 1.0)
        torch.testing.assert_close(ball.size(moved, problem.x), ball.size(z, problem.x))
    changed = (moved != problem.x).any(0)
    assert not changed[:, ~region[0, 0]].any()
    assert not changed[2].any()
    assert changed[:2, region[0, 0]].all()
    assert not torch.equal(moved, z)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(SpecError, match="expected draws > 0, got 0"):
        noise(coloured(), rng=draws(N), draws=0)
    with pytest.raises(SpecError, match="expected steps > 0, got 0"):
        shuffled(coloured(), rng=draws(N), steps=0)
