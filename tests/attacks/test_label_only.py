"""Attacks by labels: near the closed form, within their queries, and blind to everything else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.cgba import cgba
from attacks.hop_skip_jump import hop_skip_jump
from attacks.rays import rays
from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.label_oracle import LabelOracle
from robustbench_med.objectives import make
from robustbench_med.objectives.classification import Targeted, Untargeted
from robustbench_med.objectives.segmentation import Damage
from robustbench_med.problem import Counter, Problem
from robustbench_med.types import Images, Output, Verdict
from tests.toys import (
    Linear,
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
    small_victim,
    victim_of,
)

Attack = Callable[..., Tensor]
wide_cgba = partial(cgba, frequencies=1.0)  # a drawn linear victim prefers no frequency
ATTACKS: list[tuple[Attack, Norm]] = [
    (rays, "linf"),
    (hop_skip_jump, "linf"),
    (hop_skip_jump, "l2"),
    (wide_cgba, "l2"),
]
EVERY = pytest.mark.parametrize(("attack", "norm"), ATTACKS)
N = 4


def linear(norm: Norm, k: int = 3) -> tuple[Problem, Tensor]:
    """Return a problem whose distances are known, and these distances."""
    victim = linear_victim(k)
    x = clear_images(victim, N)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    return problem, distance(victim, x, y, norm)


@pytest.mark.parametrize(
    ("attack", "norm", "queries", "share"),
    [
        (rays, "linf", 450, 1.01),
        (hop_skip_jump, "linf", 1000, 1.15),
        (hop_skip_jump, "l2", 1000, 1.15),
        (wide_cgba, "l2", 400, 1.3),
        (wide_cgba, "l2", 1000, 1.12),
    ],
)
def test_they_come_near_the_distance_of_a_linear_victim(
    attack: Attack, norm: Norm, queries: int, share: float
) -> None:
    # of three classes RayS may end at the farther one, where no single flip gains
    problem, nearest = linear(norm, k=2 if attack is rays else 3)
    z = attack(problem, rng=draws(N), queries=queries)
    size = problem.ball.size(z, problem.x)
    assert problem.probe(z).is_final.all()
    assert (size >= 0.999 * nearest).all()
    assert (size <= share * nearest).all()


@EVERY
def test_more_queries_come_nearer(attack: Attack, norm: Norm) -> None:
    problem, _ = linear(norm)
    sizes = [
        problem.ball.size(attack(problem, rng=draws(N), queries=q), problem.x)
        for q in (60, 150, 400)
    ]
    assert (sizes[0] > 1.3 * sizes[1]).float().mean() > 0.5
    assert (sizes[1] > sizes[2]).all()


# --- what they may see ---------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlySuccess(Untargeted):
    """An objective whose losses and degrees of harm are noise; its successes are true."""

    seed: int = 0

    def __call__(self, output: Output, y: Any) -> Verdict:  # noqa: ANN401
        success = super().__call__(output, y).success
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(len(success), generator=generator) + 0.01
        return Verdict(noise - 0.5, torch.where(success, noise, -noise), success)


@EVERY
def test_they_read_nothing_but_success(attack: Attack, norm: Norm) -> None:
    problem, _ = linear(norm)
    z = attack(problem, rng=draws(N), queries=150)
    for seed in (0, 1):
        blind = replace(problem, objective=OnlySuccess(seed))
        assert torch.equal(attack(blind, rng=draws(N), queries=150), z)


@EVERY
def test_victims_that_decide_alike_give_the_same_candidates(attack: Attack, norm: Norm) -> None:
    """Logits by another scale, or in another monotone form, are the same labels."""
    victim = generic_victim(3)
    x = grey_images(N)
    y = victim(x).logits.argmax(1)

    def scaled(z: Images) -> Output:
        return Output(victim(z).logits.detach() * 1024)

    def ranked(z: Images) -> Output:
        logits = victim(z).logits.detach()
        return Output((logits[:, :, None] > logits[:, None]).sum(2).float())

    found = []
    for judge in (victim, scaled, ranked):
        problem = Problem(x, y, Ball(norm, torch.inf), Untargeted(), judge)
        found.append(attack(problem, rng=draws(N), queries=200))
        assert not torch.equal(found[-1], x)
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@EVERY
def test_they_need_no_gradient(attack: Attack, norm: Norm) -> None:
    victim = generic_victim(3)
    x = grey_images(N)

    def closed(z: Images) -> Output:
        return Output(victim(z).logits.detach())

    problem = Problem(x, victim(x).logits.argmax(1), Ball(norm, torch.inf), Untargeted(), closed)
    with pytest.raises(VictimError, match="expected a victim with gradients"):
        problem.gradient(x)
    z = attack(problem, rng=draws(N), queries=100)
    assert problem.probe(z).is_final.all()
    assert problem.counter.backward == 0


# --- queries -------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("queries", [1, 2, 3, 30, 111])
def test_no_sample_costs_more_than_its_queries(attack: Attack, norm: Norm, queries: int) -> None:
    """The victim counts what each image is asked, by the image that is nearest."""
    problem, _ = linear(norm)
    asked = torch.zeros(N)

    class Counting(LabelOracle):
        def ask(self, z: Images, rows: Any, **given: Any) -> Any:  # noqa: ANN401
            answer = super().ask(z, rows, **given)
            asked.index_add_(0, rows, torch.ones(len(rows)))
            assert torch.equal(self.used.float(), asked)
            return answer

    with pytest.MonkeyPatch.context() as patch:
        for module in ("rays", "hop_skip_jump", "cgba"):
            patch.setattr(f"attacks.{module}.LabelOracle", Counting)
        attack(problem, rng=draws(N), queries=queries)
    assert (asked <= queries).all()
    assert problem.counter.forward == int(asked.sum())
    if attack is not rays:  # nothing ends these but their queries
        assert (asked >= queries - 1).all()


def test_rays_ends_where_no_flip_gains() -> None:
    problem, _ = linear("linf", k=2)
    rays(problem, rng=draws(N), queries=900)
    assert problem.counter.forward < 700 * N
    twice = replace(problem, counter=Counter())
    z = rays(twice, rng=draws(N), queries=700)
    assert torch.equal(z, rays(problem, rng=draws(N), queries=900))


def test_an_oracle_answers_no_more_than_its_queries() -> None:
    problem, _ = linear("linf")
    oracle, rows = LabelOracle(problem, 3), torch.arange(N)
    for _ in range(2):
        oracle.ask(problem.x, rows)
    assert not oracle.left.any()
    with pytest.raises(SpecError, match="expected at most 3 queries, got one more"):
        oracle.ask(problem.x, rows)


@EVERY
def test_a_radius_ends_the_search_once_a_success_is_inside(attack: Attack, norm: Norm) -> None:
    problem, nearest = linear(norm, k=2)
    eps = torch.tensor([4.0, 0.9, 4.0, 0.9]) * nearest
    within = replace(problem.at(eps), counter=Counter())
    z = attack(within, rng=draws(N), queries=450)
    success = within.probe(z).is_final
    assert torch.equal(success, eps > nearest)
    assert (problem.ball.size(z, problem.x) <= eps * (1 + 1e-5)).all()
    assert torch.equal(z[~success], problem.x[~success])
    assert within.counter.forward < 0.9 * 450 * N


# --- independence --------------------------------------------------------------------------------


class Exact(nn.Module):
    """Logits that do not depend on the batch to the last bit."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        logits = (x.flatten(1).double()[:, None] * self.w.double()).sum(2)
        return torch.stack([logits[:, 0], logits[:, 1]], 1).float()


@EVERY
def test_a_sample_is_attacked_alone_as_in_any_batch_to_the_last_bit(
    attack: Attack, norm: Norm
) -> None:
    w = torch.randn(2, 3 * 64, generator=torch.Generator().manual_seed(2))
    victim = victim_of(Exact(w), channels=3)
    x = grey_images(5, channels=3)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm)
    whole = attack(problem, rng=draws(5), queries=90)
    for size, chunk in ((1, 64), (3, 2)):
        parts = [
            attack(
                replace(problem.select(rows), chunk=chunk),
                rng=draws(5).select(rows),
                queries=90,
            )
            for rows in torch.arange(5).split(size)
        ]
        assert torch.equal(torch.cat(parts), whole), (size, chunk)


@EVERY
def test_only_what_may_change_changes(attack: Attack, norm: Norm) -> None:
    w = torch.randn(2, 3 * 64, generator=torch.Generator().manual_seed(2))
    victim = victim_of(Linear(w, torch.zeros(2)), channels=3)
    x = grey_images(N, channels=3)
    region = torch.zeros(N, 1, 8, 8, dtype=torch.bool)
    region[:, :, 2:7, 1:5] = True
    ball = Ball(norm, torch.inf, channels=(0, 2), region=region)
    problem = Problem(x, victim(x).logits.argmax(1), ball, Untargeted(), victim)
    z = attack(problem, rng=draws(N), queries=200)
    success = problem.probe(z).is_final
    assert success.any()
    moved = (z != x).any(0)
    allowed = region[0].expand(3, -1, -1).clone()
    allowed[1] = False
    assert not moved[~allowed].any()
    assert moved[allowed].all()


def test_a_channel_with_half_the_radius_moves_half_as_far() -> None:
    victim = victim_of(Linear(torch.tensor([[1.0] * 128, [-1.0] * 128]), torch.tensor([-128, 0.0])))
    x = torch.full((1, 2, 8, 8), 0.7)
    y = victim(x).logits.argmax(1)
    ball = Ball("linf", torch.inf, channel_scales=(1.0, 0.5))
    z = rays(Problem(x, y, ball, Untargeted(), victim), rng=draws(1), queries=40)
    moved = (z - x).abs().amax((2, 3))[0]
    torch.testing.assert_close(moved[1], moved[0] / 2)


# --- goals ---------------------------------------------------------------------------------------


@EVERY
def test_findings_and_targets(attack: Attack, norm: Norm) -> None:
    victim = generic_victim(3)
    x = grey_images(N)
    y = (victim(x).logits > 0).long()
    finding = make("finding(index=1)", "multi_label")
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm, objective=finding)
    z = attack(problem, rng=draws(N), queries=200)
    assert ((victim(z).logits[:, 1] > 0).long() != y[:, 1]).all()
    target = Targeted(1)
    label = victim(x).logits.argmax(1)
    rows = target.applies(label).nonzero()[:, 0]
    problem = problem_of(victim, x[rows], label[rows], eps=torch.inf, norm=norm, objective=target)
    z = attack(problem, rng=draws(N).select(rows), queries=200)
    reached = victim(z).logits.argmax(1) == 1
    assert reached.any()
    assert torch.equal(z[~reached], x[rows][~reached])  # what fails stays clean


@EVERY
def test_masks_fall_below_their_dice_near_the_least_distance(attack: Attack, norm: Norm) -> None:
    """In L-inf the Dice falls below a half once a known share of the pixels flips."""
    victim = pixel_victim(2)
    generator = torch.Generator().manual_seed(3)
    x = (
        0.5
        + (0.05 + 0.1 * torch.rand(N, 1, 8, 8, generator=generator))
        * torch.randn(N, 1, 8, 8, generator=generator).sign()
    )
    y = masks_called(victim, x)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm, objective=Damage(mask_card()))
    z = attack(problem, rng=draws(N), queries=300)
    assert problem.probe(z).success.all()
    # a mask that has fallen is not attacked further
    assert float(problem.probe(z).harm.median()) < 0.1
    if attack is rays:
        away = pixel_distances(victim, x).amax(1).flatten(1).sort(1).values
        least = []
        for row in range(N):
            for eps in away[row]:
                called = torch.where(
                    pixel_distances(victim, x)[row].amax(0) <= eps, 1 - y[row], y[row]
                )
                both = ((called == 1) & (y[row] == 1)).sum()
                if 2 * both < 0.5 * ((called == 1).sum() + (y[row] == 1).sum()):
                    least.append(float(eps))
                    break
        size = problem.ball.size(z, x)
        assert (size >= 0.99 * torch.tensor(least)).all()
        assert (size <= 1.25 * torch.tensor(least)).all()


@EVERY
def test_a_mask_that_has_fallen_already_is_left_alone(attack: Attack, norm: Norm) -> None:
    victim, x = pixel_victim(2), grey_images(N)
    y = 1 - masks_called(victim, x)
    problem = problem_of(victim, x, y, eps=torch.inf, norm=norm, objective=Damage(mask_card()))
    assert torch.equal(attack(problem, rng=draws(N), queries=50), x)
    assert problem.counter.forward == N


@EVERY
def test_a_victim_that_never_falls_keeps_its_images(attack: Attack, norm: Norm) -> None:
    def certain(z: Images) -> Output:
        return Output(torch.tensor([[1.0, 0.0]]).expand(len(z), 2))

    x = grey_images(N)
    problem = Problem(x, torch.zeros(N).long(), Ball(norm, torch.inf), Untargeted(), certain)
    assert torch.equal(attack(problem, rng=draws(N), queries=120), x)
    assert problem.counter.forward <= 120 * N


@pytest.mark.parametrize(
    ("attack", "wrong", "rule"),
    [
        (rays, {"queries": 0}, "queries > 0, got 0"),
        (rays, {"precision": 1.5}, "precision < 1, got 1.5"),
        (cgba, {"frequencies": 1.5}, "frequencies <= 1, got 1.5"),
        (hop_skip_jump, {"directions": 0}, "directions > 0, got 0"),
    ],
)
def test_bad_parameters_are_refused(attack: Attack, wrong: dict[str, Any], rule: str) -> None:
    problem, _ = linear("l2" if attack is cgba else "linf")
    with pytest.raises(SpecError, match=f"expected {rule}"):
        attack(problem, rng=draws(N), **wrong)


# --- peers ---------------------------------------------------------------------------------------


class Logits(nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.asked = 0

    def forward(self, z: Tensor) -> Tensor:
        self.asked += len(z)
        return self.problem.judge(z).logits.detach().clone()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "attack"), [("l2", hop_skip_jump), ("l2", wide_cgba)])
def test_no_farther_than_foolbox_at_as_many_queries(norm: Norm, attack: Attack) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
    victim = small_victim(3, channels=3, side=16)
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    victim = victim.at(-victim.logits(x).detach().mean(0))  # or one class would take them all
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm=norm)
    module = Logits(problem).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        peer = foolbox.attacks.HopSkipJumpAttack(steps=6)
        torch.manual_seed(0)
        theirs = peer(model, x, problem.y, epsilons=None)[1]
    queries = module.asked // len(x)
    z = attack(problem, rng=draws(8), queries=queries)
    ours, peers = (problem.ball.size(found, x) for found in (z, theirs))
    assert problem.probe(z).is_final.all()
    assert float(ours.median()) <= 1.05 * float(peers.median())
