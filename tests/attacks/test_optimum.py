"""Attacks meet the closed-form optimum: they fail at 0.9 of the distance, win at 1.05."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from robustbench_med import registry
from robustbench_med.cards import Norm
from robustbench_med.objectives.classification import Targeted
from tests.toys import (
    LIGHT,
    clear_images,
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    problem_of,
)

CARDS = {n: card for n, card in registry.load("attacks").items() if card.rungs != "universal"}
ATTACKS = {
    name: partial(registry.function("attacks", card), **LIGHT.get(name, {}))
    for name, card in CARDS.items()
}
ROWS = [
    (name, norm, k)
    for name, k in itertools.product(CARDS, (2, 3, 10))
    for norm in CARDS[name].norms
]
BUDGETED = [row for row in ROWS if CARDS[row[0]].rungs != "distance"]
MINIMAL = [row for row in ROWS if CARDS[row[0]].rungs == "distance"]
# share of the distance at which an attack must win: one without gradients needs room
WINS_AT = {"white_box": 1.05, "query": 5.0, "control": None}


@pytest.mark.parametrize(("name", "norm", "k"), BUDGETED)
def test_fails_below_the_distance_and_wins_above(name: str, norm: Norm, k: int) -> None:
    victim = linear_victim(k)
    x = clear_images(victim, 12)
    y = victim(x).logits.argmax(1)
    nearest = distance(victim, x, y, norm)
    above = WINS_AT[CARDS[name].threat]
    for share, wins in ((0.9, False), *([(above, True)] if above else [])):
        problem = problem_of(victim, x, y, eps=nearest * share, norm=norm)
        z = ATTACKS[name](problem, rng=draws(12))
        assert (problem.ball.size(z, x) <= nearest * share * 1.001).all()
        done = problem.probe(z).done
        assert done.all() if wins else not done.any()


@pytest.mark.parametrize(("name", "norm", "k"), MINIMAL)
def test_finds_the_distance(name: str, norm: Norm, k: int) -> None:
    victim = linear_victim(k)
    x = clear_images(victim, 12)
    y = victim(x).logits.argmax(1)
    nearest = distance(victim, x, y, norm)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    z = ATTACKS[name](problem, rng=draws(12))
    size = problem.ball.size(z, x)
    assert problem.probe(z).done.all()
    assert z.min() >= 0
    assert z.max() <= 1
    assert (size >= nearest * 0.999).all()  # less would be a fault of the test
    assert (size <= nearest * 1.05 + (norm == "l0")).all()


def test_fgsm_takes_the_step_of_the_paper() -> None:
    victim = generic_victim(4, scale=0.1)  # not sure of itself: the cross-entropy has its gradient
    x = grey_images(5)
    y = victim(x).logits.argmax(1)
    leaf = x.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(victim(leaf).logits, y, reduction="sum")
    (g,) = torch.autograd.grad(loss, leaf)
    z = ATTACKS["fgsm"](problem_of(victim, x, y, eps=0.03), rng=draws(5))
    torch.testing.assert_close(z, (x + 0.03 * g.sign()).clamp(0, 1))


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_attack_reaches_its_class(name: str, norm: Norm) -> None:
    victim = linear_victim(3)
    x = grey_images(20)
    y = victim(x).logits.argmax(1)
    objective = Targeted(1)
    rows = objective.applies(y).nonzero()[:, 0]
    eps = 0.05 if norm == "linf" else 0.4
    problem = problem_of(victim, x[rows], y[rows], eps=eps, norm=norm, objective=objective)
    z = ATTACKS[name](problem, rng=draws(len(rows)))
    assert (victim(z).logits.argmax(1) == 1).all()


def test_pixels_at_exactly_0_and_1_move() -> None:
    victim = linear_victim(2)
    x = (grey_images(6) > 0.5).float()
    y = victim(x).logits.argmax(1)
    for name, attack in ATTACKS.items():
        norm, minimal = CARDS[name].norms[0], CARDS[name].rungs == "distance"
        z = attack(
            problem_of(victim, x, y, eps=torch.inf if minimal else 0.1, norm=norm), rng=draws(6)
        )
        assert (z != x)[x == 0].any(), name
        assert (z != x)[x == 1].any(), name
