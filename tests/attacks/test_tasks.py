"""Every attack on every task: no crash, inside the ball, the same in any batch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.pgd import bim, pgd
from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.cards import Task
from robustbench_med.errors import BenchError, SpecError
from robustbench_med.objectives import make
from robustbench_med.objectives.pixels import LOSSES
from robustbench_med.objectives.segmentation import Damage
from robustbench_med.problem import Problem
from tests.toys import (
    LIGHT,
    Small,
    clear_images,
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    mask_card,
    masks_called,
    pixel_victim,
    problem_of,
    small_mask_victim,
    small_victim,
    victim_of,
)

ATTACKS = {
    n: card
    for n, card in registry.load("attacks").items()
    if card.schedule not in ("universal", "severity")
}
# enough steps to climb and to differ by batch; what an attack reaches is tested in test_optimum
BRIEF: dict[str, dict[str, float]] = LIGHT | {
    "pgd": {"steps": 10},
    "orthogonal_pgd": {"steps": 10},
    "apgd": {"steps": 10},
    "apgd_l1": {"steps": 10},
    "apgd_targeted": {"steps": 10, "targets": 2},
    "ensemble": {"steps": 5, "queries": 10, "targets": 2},
    "square": {"queries": 40},
    "sigma_zero": {"steps": 30},
    "rays": {"queries": 40},
    "hop_skip_jump": {"queries": 40, "directions": 5},
    "cgba": {"queries": 40, "directions": 5},
    "noise": {"draws": 3},
    "shuffled": {"steps": 10},
    "fab": {"steps": 6},
    "fmn": {"steps": 30},
    "pdpgd": {"steps": 60},
    "minimum_norm": {"steps": 40},
    "carlini_wagner": {"steps": 5, "searches": 3},
    "segpgd": {"steps": 10},
    "asma": {"steps": 60},
    "padam": {"steps": 10},
    "alma_prox": {"steps": 60, "lr": 0.02},
    "dag": {"steps": 25, "gamma": 2.0},
    "segmentation_ensemble": {"steps": 9},
}
RADII = {"linf": 0.2, "l2": 1.0, "l1": 8.0, "l0": 20.0}
TASKS: dict[str, dict[str, Any]] = {
    "two classes": {"k": 2},
    "three classes": {"k": 3, "channels": 3},
    "ten classes": {"k": 10},
    "one logit": {"k": 1},
    "findings": {"k": 4, "task": "multi_label"},
    "one finding": {"k": 4, "task": "multi_label", "objective": "finding(index=2)"},
    "target": {"k": 3, "objective": "targeted(target=2)"},
    "volume": {"k": 2, "axes": 3},
}
MASKS: dict[str, dict[str, Any]] = {
    "masks": {"k": 3},
    "masks of one logit": {"k": 1},
    "masks in colour": {"k": 2, "channels": 3},
    "volume of masks": {"k": 3, "axes": 3},
    "masks with an ignored ring": {"k": 3, "ring": True},
    "empty mask": {"k": 2, "empty": True},
    "absent class": {"k": 4, "absent": True},
    "one mask": {"k": 3, "n": 1},
    "no masks": {"k": 3, "n": 0},
    "one region": {"k": 4, "objective": "region(name='second')"},
    "another mask": {"k": 3, "objective": "targeted(mask='shrink', label=1, by=1)"},
    "no mask left": {"k": 2, "objective": "targeted(mask='empty', label=1)"},
}
RUNS = [
    (name, task)
    for name, task in itertools.product(ATTACKS, TASKS)
    if TASKS[task].get("task", "single_label") in ATTACKS[name].tasks
]
MASKED = [name for name in ATTACKS if "segmentation" in ATTACKS[name].tasks]
N = 6


def pose(
    k: int,
    task: Task = "single_label",
    channels: int = 1,
    axes: int = 2,
    objective: str = "untargeted",
    near: bool = False,
) -> Problem:  # noqa: ANN401, E501
    victim = small_victim(k, channels=channels, axes=axes)
    x = torch.rand(N, channels, *(8,) * axes, generator=torch.Generator().manual_seed(0))
    x[:, :, :2], x[:, :, -1] = 0, 1
    if near:  # by the operating point: an untrained victim has no boundary inside the box
        victim = victim.at(-0.95 * victim(x).logits.detach().mean(0))
    logits = victim(x).logits
    y = (logits > 0).long() if task == "multi_label" else logits.argmax(1)
    if k == 1:
        y = (logits[:, 0] > 0).long()
    made = make(objective, task)
    rows = made.applies(y).nonzero()[:, 0]
    return Problem(x[rows], y[rows], Ball("linf", 0.2), made, victim)


def pose_masks(
    k: int,
    *,
    channels: int = 1,
    axes: int = 2,
    ring: bool = False,
    empty: bool = False,
    absent: bool = False,
    n: int = N,
    objective: str = "untargeted",
) -> Problem:
    """Return images whose truth is what the victim calls them."""
    victim = small_mask_victim(k, channels=channels, axes=axes)
    x = torch.rand(n, channels, *(8,) * axes, generator=torch.Generator().manual_seed(0))
    x[:, :, :2], x[:, :, -1] = 0, 1
    logits = victim(x).logits.detach()
    if k > 1:  # by the operating point: each class is called somewhere
        offset = -logits.flatten(2).mean((0, 2)) if n else torch.zeros(k)
        offset[-1] -= 100.0 * absent
        victim = victim.at(offset)
    if empty:  # every pixel is called background, and near the foreground
        victim, x = pixel_victim(2), 0.4 + 0.05 * x
    y = masks_called(victim, x)
    if ring:
        y[:, 0], y[:, -1], y[:, :, 0], y[:, :, -1] = -1, -1, -1, -1
    classes, regions = max(k, 2), {"all": tuple(range(1, k)), "second": (2,)} if k == 4 else None
    card = mask_card(classes, channels=channels, size=(8,) * axes, regions=regions)
    made = make(objective, "segmentation", card=card)
    rows = made.applies(y).nonzero()[:, 0]
    return Problem(x[rows], y[rows], Ball("linf", 0.2), made, victim)


@pytest.mark.parametrize(("name", "task"), list(itertools.product(MASKED, MASKS)))
def test_attack_on_masks_runs_and_stays_inside(name: str, task: str) -> None:
    attack = partial(registry.function("attacks", ATTACKS[name]), **BRIEF.get(name, {}))
    for norm in ATTACKS[name].norms:
        problem = pose_masks(**MASKS[task])
        minimal = ATTACKS[name].schedule == "distance" and ATTACKS[name].threat == "white_box"
        eps = torch.inf if minimal else RADII[norm]
        problem = replace(problem, ball=Ball(norm, eps))
        assert len(problem) == MASKS[task].get("n", N)
        before = problem.probe(problem.x).harm
        z = attack(problem, rng=draws(len(problem)))
        assert z.shape == problem.x.shape
        assert not z.requires_grad
        assert (problem.ball.size(z, problem.x) <= eps * (1 + 1e-5) + 1e-6).all()
        assert ((z >= 0) & (z <= 1)).all()
        after = problem.probe(z)
        if minimal and MASKS[task].get("objective", "").startswith("targeted"):
            continue  # no success within the box: tests/attacks/test_alma_prox.py has targets
        if len(z) and ATTACKS[name].threat == "white_box":
            assert (after.is_final | (after.harm > before)).float().mean() > 0.5  # it climbs


@pytest.mark.parametrize("name", [n for n in MASKED if ATTACKS[n].tasks == ("segmentation",)])
def test_attacks_on_masks_refuse_labels(name: str) -> None:
    with pytest.raises(SpecError, match="expected masks, got images with labels"):
        registry.function("attacks", ATTACKS[name])(pose(3), rng=draws(N))


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in MASKED])
def test_attacks_by_margins_refuse_masks(name: str) -> None:
    problem = pose_masks(3)
    # one that climbs the harm finds no slope in it
    with pytest.raises(
        BenchError, match="for masks, got one that needs margins of classes|differentiably"
    ):
        registry.function("attacks", ATTACKS[name])(problem, rng=draws(len(problem)))


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi_fgsm", "apgd"])
def test_losses_are_those_of_the_task(name: str) -> None:
    attack, masks, labels = registry.function("attacks", ATTACKS[name]), pose_masks(3), pose(3)
    found: list[Tensor] = []
    for loss in LOSSES:
        z = attack(masks, rng=draws(N), loss=loss)
        assert (masks.probe(z).harm > masks.probe(masks.x).harm).float().mean() > 0.5
        if name != "fgsm":  # one sign of two losses can be the same
            assert not any(torch.equal(z, other) for other in found)
        found.append(z)
    for loss in ("margin", "dlr"):
        assert attack(labels, rng=draws(N), loss=loss).shape == labels.x.shape
        with pytest.raises(SpecError, match=f"for masks, got '{loss}'"):
            attack(masks, rng=draws(N), loss=loss)
    with pytest.raises(SpecError, match="expected masks, got images with labels"):
        attack(labels, rng=draws(N), loss="dice")
    with pytest.raises(SpecError, match="expected loss in cross_entropy, masked, .*, got 'ce'"):
        attack(labels, rng=draws(N), loss="ce")


@pytest.mark.parametrize(("name", "task"), RUNS)
def test_attack_runs_and_stays_inside(name: str, task: str) -> None:
    attack = partial(registry.function("attacks", ATTACKS[name]), **BRIEF.get(name, {}))
    for norm in ATTACKS[name].norms:
        eps = torch.inf if ATTACKS[name].schedule == "distance" else RADII[norm]
        posed = pose(**TASKS[task], near=ATTACKS[name].schedule == "distance")
        problem = replace(posed, ball=Ball(norm, eps))
        before = problem.probe(problem.x).harm
        z = attack(problem, rng=draws(len(problem)))
        assert z.shape == problem.x.shape
        assert not z.requires_grad
        assert (problem.ball.size(z, problem.x) <= eps * (1 + 1e-5) + 1e-6).all()
        assert z.min() >= 0
        assert z.max() <= 1
        after = problem.probe(z)
        assert len(z) > 0
        if ATTACKS[name].threat != "control":  # it climbs
            # few queries end before some have their first success, and these stay clean
            least = 0.3 if ATTACKS[name].threat == "label" else 0.5
            assert (after.is_final | (after.harm > before)).float().mean() > least


@pytest.mark.parametrize("name", ATTACKS)
def test_candidates_do_not_depend_on_batch_size(name: str) -> None:
    attack = partial(registry.function("attacks", ATTACKS[name]), **BRIEF.get(name, {}))
    labels = "single_label" in ATTACKS[name].tasks
    victim = generic_victim(3) if labels else pixel_victim(3)
    x = grey_images(21, channels=1 if labels else 3)
    y = victim(x).logits.argmax(1)
    minimal = ATTACKS[name].schedule == "distance"
    eps = torch.inf if minimal else 0.012 * RADII[ATTACKS[name].norms[0]] / 0.2
    objective = None if labels else Damage(mask_card(3, channels=3))
    problem = problem_of(victim, x, y, eps=eps, norm=ATTACKS[name].norms[0], objective=objective)
    whole = attack(problem, rng=draws(21))
    for size in (1, 7, 21):
        some = torch.arange(21).split(size)[:8]  # batches of one take long, and eight say enough
        parts = torch.cat([attack(problem.select(r), rng=draws(21).select(r)) for r in some])
        rows = torch.cat(some)
        part, together = problem.select(rows), whole[rows]
        assert torch.equal(part.probe(parts).is_final, part.probe(together).is_final)
        if minimal:  # hundreds of steps: rounding may take another turn, the distance may not
            sizes = [part.ball.size(z, part.x) for z in (parts, together)]
            torch.testing.assert_close(*sizes, rtol=5e-3, atol=0)
        else:
            torch.testing.assert_close(parts, together, atol=2e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_candidates_do_not_depend_on_chunks(chunk: int) -> None:
    problem = pose(3)
    whole = pgd(problem, rng=draws(len(problem)), steps=5)
    chunked = pgd(replace(problem, chunk=chunk), rng=draws(len(problem)), steps=5)
    torch.testing.assert_close(chunked, whole, atol=2e-6, rtol=0)


def test_restarts_only_help_and_use_other_draws() -> None:
    victim = small_victim(3)
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=0.05)
    once = problem.probe(pgd(problem, rng=draws(16), steps=3)).harm
    thrice = problem.probe(pgd(problem, rng=draws(16), steps=3, restarts=3)).harm
    assert (thrice >= once - 1e-6).all()
    assert (thrice > once + 1e-6).any()


def test_bim_is_pgd_from_the_clean_image() -> None:
    problem = pose(3)
    a = bim(problem, rng=draws(len(problem)), steps=4, total_step=1.25)
    b = pgd(problem, rng=draws(9, seed=3), steps=4, total_step=1.25, random_start=False)
    assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": -1}, {"total_step": -0.1}])
def test_bad_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} >=? 0, got"):
        pgd(pose(2), rng=draws(N), **wrong)


def test_bim_keeps_the_step_of_its_paper() -> None:
    with pytest.raises(SpecError, match="expected total_step > 0, got 0"):
        bim(pose(2), rng=draws(N), total_step=0.0)


def test_falling_steps_turn_a_drawn_start_where_equal_ones_do_not() -> None:
    """Within 1 % of an L2 radius, where steps of 2.5 eps in all end 1.4 % short."""
    victim = linear_victim(2)
    x = clear_images(victim, 12)
    y = victim(x).logits.argmax(1)
    nearest = distance(victim, x, y, "l2")
    problem = problem_of(victim, x, y, eps=1.005 * nearest, norm="l2")
    for steps in (10, 40):
        assert problem.probe(pgd(problem, rng=draws(12), steps=steps)).is_final.all()
    equal = pgd(problem, rng=draws(12), total_step=2.5)
    assert not problem.probe(equal).is_final.any()


def test_a_batch_of_done_samples_and_an_empty_one_cost_one_pass() -> None:
    problem = pose(2)
    wrong = replace(problem, y=1 - problem.y)
    assert pgd(wrong, rng=draws(len(wrong))).shape == wrong.x.shape
    assert wrong.counter.backward == len(wrong)
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    assert len(pgd(nothing, rng=draws(0))) == 0


def test_a_network_that_cannot_take_an_empty_batch_never_gets_one() -> None:
    class Reshaping(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(x.shape[0], -1).view(x.shape))  # fails on 0 images

    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = victim_of(Reshaping(1, 2))
    x = grey_images(3)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=0.05)
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    with pytest.raises(RuntimeError):
        victim(nothing.x)
    assert nothing.outputs(nothing.x).logits.shape == (0, 2)
    g, verdict = nothing.gradient(nothing.x)
    assert len(g) == len(verdict.is_final) == 0
    assert (problem.counter.forward, problem.counter.backward) == (0, 0)


def test_nan_gradients_of_one_image_do_not_move_the_others() -> None:
    class Root(Small):
        def forward(self, x: Tensor) -> Tensor:
            # the root of 0 has an infinite slope: only the first image, which is black, hits it
            return super().forward(x) + x.flatten(1).sum(1, keepdim=True).sqrt() * 1e-3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = victim_of(Root(1, 2))
    x = grey_images(4)
    x[0] = 0
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=0.05)
    z = pgd(problem, rng=draws(4), steps=3, random_start=False)
    assert torch.isfinite(z).all()
    assert (z[1:] != x[1:]).flatten(1).any(1).all()
    assert problem.counter.nonfinite > 0
