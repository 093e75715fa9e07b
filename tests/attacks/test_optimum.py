"""Attacks meet the closed-form optimum: they fail at 0.9 of the distance, win at 1.05."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from robustbench_med import registry
from robustbench_med.cards import Norm
from robustbench_med.objectives.classification import Targeted
from robustbench_med.objectives.segmentation import Damage, OneRegion, TargetMask
from tests.toys import (
    LIGHT,
    clear_images,
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    mask_card,
    masks_called,
    pixel_distances,
    pixel_victim,
    problem_of,
)

EVERY = {
    n: card
    for n, card in registry.load("attacks").items()
    if card.schedule not in ("universal", "severity")
}
CARDS = {n: card for n, card in EVERY.items() if "single_label" in card.tasks}
ATTACKS = {
    name: partial(registry.function("attacks", card), **LIGHT.get(name, {}))
    for name, card in EVERY.items()
}
ROWS = [
    (name, norm, k)
    for name, k in itertools.product(CARDS, (2, 3, 10))
    for norm in CARDS[name].norms
]
BUDGETED = [row for row in ROWS if CARDS[row[0]].schedule != "distance"]
MINIMAL = [row for row in ROWS if CARDS[row[0]].schedule == "distance"]
# share of the distance at which an attack must win: one without gradients needs room
WINS_AT = {"white_box": 1.05, "query": 5.0, "control": None}
# the largest share of the distance that attacks which minimise it may find
NEAR = {"white_box": 1.05, "label": 4.0}


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
        done = problem.probe(z).is_final
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
    assert problem.probe(z).is_final.all()
    assert z.min() >= 0
    assert z.max() <= 1
    assert (size >= nearest * 0.999).all()  # less would be a fault of the test
    assert (size <= nearest * NEAR[CARDS[name].threat] + (norm == "l0")).all()


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
    for name in CARDS:
        attack = ATTACKS[name]
        norm, minimal = CARDS[name].norms[0], CARDS[name].schedule == "distance"
        z = attack(
            problem_of(victim, x, y, eps=torch.inf if minimal else 0.1, norm=norm), rng=draws(6)
        )
        assert (z != x)[x == 0].any(), name
        assert (z != x)[x == 1].any(), name


# --- masks: every pixel of the victim is linear and alone ----------------------------------------

# in L-inf each pixel has the whole radius; L1 is tested with its attack
MASKS = [n for n, card in EVERY.items() if "segmentation" in card.tasks and "linf" in card.norms]
CLIMBERS = [n for n in MASKS if EVERY[n].threat == "white_box" and EVERY[n].schedule != "distance"]
SIDE = 6


def noisy(n: int, channels: int, axes: int = 2) -> Tensor:
    """Return images around 0.5; no pixel is nearer to it than 0.01."""
    generator = torch.Generator().manual_seed(4)
    away = 0.01 + 0.14 * torch.rand(n, channels, *(SIDE,) * axes, generator=generator)
    return 0.5 + away * torch.randn(away.shape, generator=generator).sign()


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("k", "axes"), [(1, 2), (2, 2), (3, 2), (2, 3)])
def test_no_pixel_flips_below_its_distance_and_all_do_above(name: str, k: int, axes: int) -> None:
    size = (SIDE,) * axes
    victim, x = pixel_victim(k, size=size), noisy(5, max(1, k) if k > 2 else 1, axes)
    y, classes = masks_called(victim, x), max(k, 2)
    away = pixel_distances(victim, x)
    nearest = away.masked_fill(away == 0, torch.inf).flatten(1).amin(1)
    # a region a class, so that Dice 0 is every pixel wrong
    every: dict[str, tuple[int, ...]] = {f"class_{j}": (j,) for j in range(classes)}
    objective = Damage(mask_card(classes, channels=x.shape[1], size=size, regions=every))
    for share, wins in ((0.9 * nearest, False), (1.05 * away.flatten(1).amax(1), True)):
        problem = problem_of(victim, x, y, eps=share, objective=objective)
        z = ATTACKS[name](problem, rng=draws(5))
        assert (problem.ball.size(z, x) <= share * 1.001).all()
        wrong = masks_called(victim, z) != y
        if not wins:
            assert not wrong.any()
        elif name in CLIMBERS:
            assert wrong.all()


@pytest.mark.parametrize("name", CLIMBERS)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_reaches_the_worst_dice_of_the_radius(name: str, k: int, share: float) -> None:
    victim, x = pixel_victim(k, size=(SIDE, SIDE)), noisy(6, 1)
    y = masks_called(victim, x)
    away = pixel_distances(victim, x).amax(1)
    ordered = away.flatten(1).sort(1).values
    rank = int(share * SIDE**2)
    eps = (ordered[:, rank - 1] + ordered[:, rank]) / 2  # `rank` pixels flip, no other can
    called = torch.where(away < eps.view(-1, 1, 1), 1 - y, y)
    both = ((called == 1) & (y == 1)).sum((1, 2))
    worst = 2 * both / ((called == 1).sum((1, 2)) + (y == 1).sum((1, 2)))
    problem = problem_of(victim, x, y, eps=eps, objective=Damage(mask_card()))
    z = ATTACKS[name](problem, rng=draws(6))
    torch.testing.assert_close(problem.probe(z).harm, 0.5 - worst)


@pytest.mark.parametrize("name", CLIMBERS)
@pytest.mark.parametrize("mask", ["disc", "move", "empty"])
def test_draws_the_target_once_every_pixel_can_flip(name: str, mask: str) -> None:
    victim, x = pixel_victim(3, size=(SIDE, SIDE)), noisy(5, 3)
    y = masks_called(victim, x)
    objective = TargetMask(mask_card(3, channels=3), mask=mask, label=1, size=0.6)
    wanted = pixel_distances(victim, x).gather(1, objective.target(y)[:, None])
    eps = 1.05 * wanted.flatten(1).amax(1)
    problem = problem_of(victim, x, y, eps=eps, objective=objective)
    z = ATTACKS[name](problem, rng=draws(5))
    assert problem.probe(z).is_final.all()
    assert torch.equal(masks_called(victim, z), objective.target(y))
    problem = problem.at(0.9 * wanted.flatten(1).amax(1))
    assert not problem.probe(ATTACKS[name](problem, rng=draws(5))).is_final.any()


@pytest.mark.parametrize("name", CLIMBERS)
def test_spoils_one_region_and_need_not_touch_the_others(name: str) -> None:
    victim, x = pixel_victim(3, size=(SIDE, SIDE)), noisy(5, 3)
    y = masks_called(victim, x)
    regions = {"both": (1, 2), "second": (2,)}
    objective = OneRegion(mask_card(3, channels=3, regions=regions), "second")
    eps = 1.05 * pixel_distances(victim, x).flatten(1).amax(1)
    problem = problem_of(victim, x, y, eps=eps, objective=objective)
    z = ATTACKS[name](problem, rng=draws(5))
    assert problem.probe(z).is_final.all()
    assert not ((masks_called(victim, z) == 2) & (y == 2)).any()


@pytest.mark.parametrize("name", CLIMBERS)
def test_l2_needs_the_length_of_all_distances_together(name: str) -> None:
    victim, x = pixel_victim(2, size=(SIDE, SIDE)), noisy(5, 1)
    y = masks_called(victim, x)
    least = pixel_distances(victim, x).amax(1).flatten(1)
    objective = Damage(mask_card(regions={"out": (0,), "in": (1,)}))
    problem = problem_of(victim, x, y, eps=0.9 * least.amin(1), norm="l2", objective=objective)
    assert torch.equal(masks_called(victim, ATTACKS[name](problem, rng=draws(5))), y)
    above = problem.at(2 * least.norm(dim=1))
    z = ATTACKS[name](above, rng=draws(5))
    if name in ("dag", "asma", "segmentation_ensemble"):  # these let go of pixels that are wrong
        assert above.probe(z).is_final.all()
    else:  # the cross-entropy spends the length on pixels that are wrong already
        assert (above.probe(z).harm > -0.3).all()
