"""Attacks on masks against plain loops of their papers, and against their known faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attacks.asma import asma
from attacks.cospgd import cospgd
from attacks.dag import dag
from attacks.segmentation_ensemble import _MEMBERS, _shrinking, segmentation_ensemble
from attacks.segpgd import segpgd
from robustbench_med.bench.attack_run import bound
from robustbench_med.errors import SpecError
from robustbench_med.objectives import shapes
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import LOSSES, on_pixels
from robustbench_med.objectives.segmentation import Damage, TargetMask
from robustbench_med.problem import Problem
from robustbench_med.types import Images
from tests.toys import (
    draws,
    mask_card,
    masks_called,
    pixel_victim,
    problem_of,
    small_mask_victim,
)

N, STEPS, EPS = 6, 8, 0.15
Weigh = Callable[[Tensor, Tensor, int], Tensor]  # logits, reference, step: the weight of each pixel


def posed(*, target: bool = False, k: int = 3, n: int = N) -> Problem:
    """Return images whose truth is what a small random network calls them."""
    victim = small_mask_victim(k)
    x = 0.2 + 0.6 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    victim = victim.at(-victim(x).logits.detach().mean((0, 2, 3)))
    card = mask_card(k)
    objective = TargetMask(card, mask="shrink", label=1, by=1) if target else Damage(card)
    return problem_of(victim, x, masks_called(victim, x), eps=EPS, objective=objective)


def plain(problem: Problem, weigh: Weigh, sign: Callable[[int], int]) -> Iterator[Tensor]:
    """Yield the iterates of a PGD from the clean image on the weighted cross-entropy, plainly."""
    objective, x = problem.objective, problem.x
    y = objective.target(problem.y) if isinstance(objective, TargetMask) else problem.y
    z = x
    for t in range(1, STEPS + 1):
        leaf = z.clone().requires_grad_(True)
        logits = problem.judge(leaf).logits
        each = functional.cross_entropy(logits, y, reduction="none")
        (each * weigh(logits.detach(), y, t)).sum().backward()
        assert leaf.grad is not None
        z = z + sign(t) * 2.5 * EPS / STEPS * leaf.grad.sign()
        z = torch.min(torch.max(z, x - EPS), x + EPS).clamp(0, 1).detach()
        yield z


def worst(problem: Problem, iterates: Iterator[Tensor]) -> Tensor:
    """Return each image's iterate with the most harm."""
    seen = [problem.x, *iterates]
    harm = torch.stack([problem.probe(z).harm for z in seen])
    first = (harm == harm.amax(0)).float().argmax(0)
    return torch.stack([seen[int(i)][j] for j, i in enumerate(first)])


def same(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() < 1e-5).float().mean())


def up(t: int) -> int:  # noqa: ARG001 - the same at every step
    return 1


def down(t: int) -> int:  # noqa: ARG001
    return -1


def flipping(t: int) -> int:
    return -1 if t % 2 else 1


# --- SegPGD --------------------------------------------------------------------------------------


def scheduled(logits: Tensor, y: Tensor, t: int) -> Tensor:
    share = (t - 1) / (2 * STEPS)
    return torch.where(logits.argmax(1) == y, 1 - share, share)


def scheduled_to_target(logits: Tensor, y: Tensor, t: int) -> Tensor:
    return 1 - scheduled(logits, y, t)


def only_wrong(logits: Tensor, y: Tensor, t: int) -> Tensor:  # noqa: ARG001
    return (logits.argmax(1) != y).float()  # the weight stuck at 1


def only_right(logits: Tensor, y: Tensor, t: int) -> Tensor:  # noqa: ARG001
    return (logits.argmax(1) == y).float()  # the weight stuck at 0


def test_segpgd_takes_the_steps_of_a_plain_loop_and_not_those_of_a_stuck_weight() -> None:
    problem = posed()
    ours = segpgd(problem, rng=draws(N), steps=STEPS, random_start=False)
    assert same(ours, worst(problem, plain(problem, scheduled, up))) > 0.995
    for fault in (only_wrong, only_right):
        assert same(ours, worst(problem, plain(problem, fault, up))) < 0.9


def test_segpgd_on_a_target_descends_with_the_weights_swapped() -> None:
    problem = posed(target=True)
    ours = segpgd(problem, rng=draws(N), steps=STEPS, random_start=False)
    assert same(ours, worst(problem, plain(problem, scheduled_to_target, down))) > 0.995
    for weigh, sign in ((scheduled, down), (scheduled_to_target, up)):
        assert same(ours, worst(problem, plain(problem, weigh, sign))) < 0.9


def test_a_walk_draws_a_target_once_a_shard_and_finds_what_it_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, count = posed(target=True), [0]
    direct = segpgd(problem, rng=draws(N), steps=STEPS)
    tireless = replace(problem, objective=LossOverride(problem.objective, use_all_steps=True))
    beyond = segpgd(tireless, rng=draws(N), steps=STEPS)
    draw = shapes.replaced

    def counted(*args: Any, **named: Any) -> Tensor:  # noqa: ANN401
        count[0] += 1
        return draw(*args, **named)

    monkeypatch.setattr(shapes, "replaced", counted)
    attack = bound(segpgd, {"steps": STEPS})
    assert torch.equal(attack(problem, draws(N)), direct)
    assert torch.equal(attack(tireless, draws(N)), beyond)
    assert count[0] == 2


# --- CosPGD --------------------------------------------------------------------------------------


def alike(logits: Tensor, y: Tensor, t: int) -> Tensor:  # noqa: ARG001
    truth = functional.one_hot(y, logits.shape[1]).movedim(-1, 1).float()
    return functional.cosine_similarity(logits.softmax(1), truth, dim=1)


def unlike(logits: Tensor, y: Tensor, t: int) -> Tensor:
    return 1 - alike(logits, y, t)


def test_cospgd_takes_the_steps_of_a_plain_loop() -> None:
    problem = posed()
    ours = cospgd(problem, rng=draws(N), steps=STEPS, random_start=False)
    assert same(ours, worst(problem, plain(problem, alike, up))) > 0.995
    assert same(ours, worst(problem, plain(problem, unlike, up))) < 0.99


def test_cospgd_on_a_target_descends_at_every_step() -> None:
    problem = posed(target=True)
    ours = cospgd(problem, rng=draws(N), steps=STEPS, random_start=False)
    assert same(ours, worst(problem, plain(problem, unlike, down))) > 0.995
    for weigh, sign in ((unlike, flipping), (unlike, up), (alike, down)):
        assert same(ours, worst(problem, plain(problem, weigh, sign))) < 0.99


# --- DAG -----------------------------------------------------------------------------------------


def test_dag_takes_the_steps_of_algorithm_1() -> None:
    problem = replace(posed(k=2), ball=posed().ball.at(torch.inf))
    seen, x, y = [problem.x], problem.x, problem.y
    for _ in range(30):
        leaf = seen[-1].clone().requires_grad_(True)
        logits = problem.judge(leaf).logits
        active = logits.argmax(1) == y
        other = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
        (g,) = torch.autograd.grad((other[:, 0] * active).sum(), leaf)
        r = 4.0 / 255 * g / g.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
        seen.append((seen[-1] + r).clamp(0, 1))
    ours = dag(problem, rng=draws(N), steps=30, gamma=4.0)
    assert same(ours, worst(problem, iter(seen[1:]))) > 0.995
    assert ((ours - x).abs().flatten(1).amax(1) <= 30 * 4.0 / 255 + 1e-6).all()


def test_dag_returns_what_it_found_on_full_success_and_stops() -> None:
    victim = pixel_victim(2)
    x = 0.5 + 0.05 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).sign()
    y = masks_called(victim, x)
    objective = Damage(mask_card(regions={"out": (0,), "in": (1,)}))
    problem = problem_of(victim, x, y, eps=torch.inf, objective=objective)
    z = dag(problem, rng=draws(4), gamma=2.0)
    assert (masks_called(victim, z) != y).all()  # not the clean images
    assert problem.counter.backward <= 4 * 9  # 0.05 is 6.4 steps of 2 / 255 away, not 200
    tireless = replace(problem, objective=LossOverride(objective, use_all_steps=True))
    spent = problem.counter.backward
    assert (masks_called(victim, dag(tireless, rng=draws(4), gamma=2.0, steps=12)) != y).all()
    assert problem.counter.backward <= spent + 4 * 12  # the steps bound what is never done


@pytest.mark.parametrize("attack", [dag, asma, segmentation_ensemble])
def test_an_image_that_is_wrong_but_not_done_goes_on(attack: Callable[..., Tensor]) -> None:
    """Organ 2 is absent and not called: a Dice of 1 that only calling it takes away."""
    victim, y = pixel_victim(3), torch.zeros(2, 8, 8, dtype=torch.long)
    x = torch.tensor([0.4, 0.5, 0.45]).view(1, 3, 1, 1).expand(2, 3, 8, 8).contiguous()
    objective = Damage(mask_card(3, channels=3))
    problem = problem_of(victim, x, y, eps=0.1, objective=objective)
    assert (masks_called(victim, x) == 1).all()
    assert not problem.probe(x).is_final.any()
    z = attack(problem, rng=draws(2), steps=20)
    assert problem.counter.zero == 0
    assert (problem.ball.size(z, x) <= 0.1 + 1e-6).all()


def test_dag_draws_every_wrong_class_and_never_the_truth() -> None:
    victim = pixel_victim(4)
    x = 0.5 + 0.01 * torch.rand(60, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    y = masks_called(victim, x)
    every: dict[str, tuple[int, ...]] = {str(j): (j,) for j in range(4)}
    objective = Damage(mask_card(4, channels=4, regions=every))
    problem = problem_of(victim, x, y, eps=torch.inf, objective=objective)
    called = masks_called(victim, dag(problem, rng=draws(60), gamma=20.0, steps=2))
    shift = (called - y) % 4
    assert (shift != 0).all()
    assert (shift == shift[:, :1, :1]).all()  # one permutation an image
    assert set(shift[:, 0, 0].tolist()) == {1, 2, 3}


# --- ASMA ----------------------------------------------------------------------------------------


def test_asma_steps_grow_with_the_overlap() -> None:
    victim = pixel_victim(2, scale=1.0)
    x = torch.full((2, 1, 8, 8), 0.4)
    x[1, :, :4, :4] = 0.6  # the second image has a part of its target already
    y = torch.zeros(2, 8, 8, dtype=torch.long)
    y[:, 0, 0] = 1
    objective = TargetMask(mask_card(), mask="grow", label=1, by=5)
    target, called = objective.target(y), masks_called(victim, x)
    overlap = ((called == 1) & (target == 1)).sum((1, 2)) / ((called == 1) | (target == 1)).sum(
        (1, 2)
    )
    assert overlap.tolist() == pytest.approx([0, 16 / 36])
    problem = problem_of(victim, x, y, eps=1.5, objective=objective)
    z = asma(problem, rng=draws(2), steps=1, tau=0.1, beta=0.4)
    length = 1.5 * (0.1 + 0.4 * overlap).view(-1, 1, 1)
    lacking = ((target == 1) & (called == 0)).float()
    torch.testing.assert_close(z[:, 0], x[:, 0] + length * lacking)  # the rest is left alone
    assert problem.probe(z).is_final.all()


# --- SEA -----------------------------------------------------------------------------------------


def test_the_ensemble_takes_the_worst_loss_of_each_image() -> None:
    problem = posed(n=24)
    each = torch.stack(
        [
            problem.probe(
                _shrinking(on_pixels(problem, LOSSES[name]), draws(24).fork(name), 10)
            ).harm
            for name in _MEMBERS
        ]
    )
    z = segmentation_ensemble(problem, rng=draws(24), steps=10)
    assert torch.equal(problem.probe(z).harm, each.amax(0))
    best = [each.amax(0) == one for one in each]
    alone = [bool((mine & (sum(best) == 1)).any()) for mine in best]
    assert sum(alone) >= 2  # no one loss is the worst of every image: nor is one of the batch
    assert each.mean(1).amax() < each.amax(0).mean()


def test_the_ensemble_shrinks_its_ball_and_spends_what_it_says() -> None:
    problem = posed()
    seen: list[Images] = []

    def watched(x: Images):  # type: ignore[no-untyped-def]  # noqa: ANN202
        seen.append(x.detach())
        return inner(x)

    inner = problem.judge
    z = segmentation_ensemble(replace(problem, judge=watched), rng=draws(N), steps=20)
    assert (problem.ball.size(z, problem.x) <= EPS + 1e-6).all()
    assert problem.counter.backward <= N * 3 * 20
    size = [float((part - problem.x[: len(part)]).abs().amax()) for part in seen if len(part) == N]
    slots = size[:7], size[7:14], size[14:23]  # a slot ends with a look at its last iterate
    for sizes, radius in zip(slots, (2, 1.5, 1), strict=True):
        assert max(sizes) == pytest.approx(radius * EPS, rel=1e-4)


@pytest.mark.parametrize(
    ("attack", "wrong"),
    [
        (segpgd, {"steps": 0}),
        (segpgd, {"total_step": 0.0}),
        (cospgd, {"restarts": 0}),
        (dag, {"gamma": 0.0}),
        (dag, {"steps": 0}),
        (asma, {"tau": 0.0}),
        (asma, {"beta": -1.0}),
        (segmentation_ensemble, {"steps": 0}),
    ],
)
def test_bad_parameters_are_refused(attack: Callable[..., Tensor], wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} > 0, got"):
        attack(posed(), rng=draws(N), **wrong)
