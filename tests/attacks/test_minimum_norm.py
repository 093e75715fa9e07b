"""Minimum norm: never behind its members, and swaps that reach the least number of values."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from attacks import minimum_norm as module
from attacks.fmn import fmn
from attacks.minimum_norm import minimum_norm, swap
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.search import Nearest
from tests.toys import draws, generic_victim, grey_images, problem_of, victim_of

N = 5


def posed(norm: Norm, k: int = 4) -> Problem:
    victim, x = generic_victim(k), grey_images(N)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm=norm)


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_no_member_is_nearer(norm: Norm) -> None:
    problem = posed(norm)
    size = problem.ball.size(z := minimum_norm(problem, rng=draws(N), steps=80), problem.x)
    assert problem.probe(z).is_final.all()
    for member, percent in module._MEMBERS[norm]:
        alone = member(problem, rng=draws(N), steps=80 * percent // 100)
        done = problem.probe(alone).is_final
        theirs = problem.ball.size(alone, problem.x).masked_fill(~done, torch.inf)
        assert (size <= theirs + 1e-6).all()
    assert problem.counter.backward > 0


class Pairs(nn.Module):
    """Two classes: the second wins if values of one pair both rise; single slopes mislead.

    Values 0 to 3 are steep and saturate together; 4 and 5 are flatter, and enough as a pair.
    """

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        steep = 0.6 * torch.tanh(2 * flat[:, :4].sum(1))
        score = steep + 0.9 * (flat[:, 4] + flat[:, 5]) - 1.25
        return torch.stack([torch.zeros_like(score), score], 1)


def fewest(problem: Problem) -> int:
    """Return the least number of values that reach the goal, by trying all of them."""
    d = problem.x[0].numel()
    for size in range(1, d + 1):
        for chosen in combinations(range(d), size):
            z = problem.x.clone()
            z.view(1, -1)[0, list(chosen)] = 1.0
            if problem.probe(z).is_final.all():
                return size
    return d + 1


def test_swaps_reach_the_least_number_of_values_that_a_search_of_all_finds() -> None:
    victim = victim_of(Pairs(), size=(2, 4))
    x = torch.zeros(1, 1, 2, 4)
    problem = problem_of(victim, x, torch.tensor([0]), eps=torch.inf, norm="l0")
    exact = fewest(problem)
    assert exact == 2
    nearest = Nearest(problem)
    start = x.clone()
    start.view(-1)[[0, 1, 2, 4]] = 1.0  # steep values, and one of the pair
    assert problem.probe(start).is_final.all()
    nearest.keep(start, torch.tensor([True]))
    swap(problem, nearest, 20)
    assert nearest.size.item() == exact
    assert problem.probe(nearest.best).is_final.all()


def test_swaps_only_help_and_cost_what_they_state() -> None:
    problem = posed("l0")
    z = fmn(problem, rng=draws(N), steps=4)
    nearest = Nearest(problem)
    nearest.keep(z, problem.probe(z).is_final)
    before = nearest.size.clone()
    forward, backward = problem.counter.forward, problem.counter.backward
    swap(problem, nearest, 5)
    assert (nearest.size <= before).all()
    assert problem.probe(nearest.best).is_final.all()
    assert problem.counter.backward - backward <= 5 * N
    assert problem.counter.forward - forward <= (1 + 5 * 7 + 1) * N


def test_samples_done_at_the_clean_image_are_left_alone() -> None:
    problem = posed("l2", k=2)
    wrong = problem_of(
        problem.judge,  # type: ignore[arg-type]
        problem.x,
        1 - problem.y,
        eps=torch.inf,
        norm="l2",
    )
    assert torch.equal(minimum_norm(wrong, rng=draws(N)), wrong.x)
    assert wrong.counter.backward == N


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(SpecError, match="expected steps > 0, got 0"):
        minimum_norm(posed("l2"), rng=draws(N), steps=0)
