"""Randomised smoothing: certificates against the closed form of linear victims, and attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.pgd import pgd
from defenses.smoothing import (
    certified_accuracy,
    certify,
    gaussian_noise,
    predict,
    smoothing,
    votes,
)
from robustbench_med.ball import Ball
from robustbench_med.defense import Certified
from robustbench_med.errors import InvalidOutputError, SpecError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.rng import seeded
from robustbench_med.victim import Victim
from tests.toys import (
    Linear,
    distance,
    draws,
    grey_images,
    linear_victim,
    small_mask_victim,
    victim_of,
)

GREY = torch.full((1, 1, 8, 8), 0.5)


def plane_victim(k: int = 2) -> Victim:
    """Return a linear victim of two classes whose plane passes through the grey image."""
    w = linear_victim(1, scale=1.0).module.state_dict()["w"]
    return victim_of(Linear(torch.cat([0 * w, w])[-k:], torch.zeros(k)))


def at_distance(d: Tensor) -> Tensor:
    """Return images at the given signed L2 distances from that plane, class 1 above 0."""
    w = linear_victim(1, scale=1.0).module.state_dict()["w"]
    moved: Tensor = GREY + (d[:, None] * w / w.norm()).view(-1, 1, 8, 8)
    return moved


@pytest.mark.slow
def test_a_linear_victims_radius_is_bounded_by_its_distance_and_nearly_reached() -> None:
    victim, x = linear_victim(2), grey_images(16)
    y = victim(x).logits.argmax(1)
    exact = distance(victim, x, y, "l2")
    sigma = float(exact.median())
    found = certify(victim, x, rng=draws(16), sigma=sigma, n=10_000)
    sure = found.label >= 0
    assert torch.equal(found.label[sure], y[sure])
    assert bool((found.radius <= exact).all())
    # near: with more than 3 sigma hardly a copy is wrong; far: with less than 0.1 it abstains
    middle = (exact > 0.3 * sigma) & (exact < 2 * sigma)
    assert int(middle.sum()) > 6
    assert bool((found.radius > 0.75 * exact)[middle].all())
    assert float((found.radius / exact)[middle].mean()) > 0.9
    assert bool(found.radius[~sure].eq(0).all())


def test_more_copies_certify_more_and_the_bound_is_the_one_of_all_right() -> None:
    """Where every copy is right the share is at least alpha^(1/n), and the radius known."""
    x = at_distance(torch.tensor([3.0]))
    normal = torch.distributions.Normal(0.0, 1.0)
    for n in (100, 1000):
        found = certify(plane_victim(), x, rng=draws(1), sigma=0.25, n=n, alpha=0.001)
        expected = 0.25 * normal.icdf(torch.tensor(0.001 ** (1 / n), dtype=torch.float64))
        assert found.label.tolist() == [1]
        torch.testing.assert_close(found.radius.double(), expected[None], rtol=1e-4, atol=0)


def test_one_logit_and_two_are_certified_alike() -> None:
    x = at_distance(torch.linspace(-0.4, 0.4, 9))
    one, two = (certify(plane_victim(k), x, rng=draws(9), sigma=0.25, n=400) for k in (1, 2))
    assert torch.equal(one.label, two.label)
    assert torch.equal(one.radius, two.radius)
    assert one.label.tolist() == [0] * 4 + [-1] + [1] * 4


def test_the_boundary_is_abstained_from() -> None:
    x = GREY.repeat(20, 1, 1, 1)
    found = certify(plane_victim(), x, rng=draws(20), sigma=0.25, n=1000)
    assert found.label.tolist() == [-1] * 20
    assert not found.radius.any()
    assert predict(plane_victim(), x, rng=draws(20), sigma=0.25).tolist() == [-1] * 20


def test_the_operating_point_moves_the_certificate() -> None:
    """An offset of the logits moves the plane; the votes are those of the deployed device."""
    victim = plane_victim()
    w = 8.0  # the norm of 64 weights of 1
    moved = victim.at(torch.tensor([0.0, 0.2 * w]))
    x = at_distance(torch.tensor([-0.1, 0.1]))
    found = certify(moved, x, rng=draws(2), sigma=0.25, n=4000)
    assert found.label.tolist() == [1, 1]
    assert 0.05 < float(found.radius[0]) <= 0.1 < 0.2 < float(found.radius[1]) <= 0.3


@pytest.mark.slow
def test_a_certificate_is_wrong_no_more_often_than_alpha_and_not_much_less() -> None:
    alpha = 0.1
    d, b = 0.2, 800
    x = at_distance(torch.full((b,), d))
    found = certify(plane_victim(), x, rng=draws(b), sigma=0.25, n0=50, n=100, alpha=alpha)
    wrong = float(((found.radius > d) | (found.label == 0)).float().mean())
    slack = 3 * (alpha * (1 - alpha) / b) ** 0.5
    assert 0.3 * alpha < wrong <= alpha + slack


def test_a_prediction_is_wrong_no_more_often_than_alpha() -> None:
    b, alpha = 800, 0.2
    x = at_distance(torch.full((b,), 0.002))  # 50.3 % of the copies are of class 1
    found = predict(plane_victim(), x, rng=draws(b), sigma=0.25, n=100, alpha=alpha)
    shares = [float((found == label).float().mean()) for label in (0, 1)]
    assert shares[0] <= alpha / 2 + 0.02
    assert 0.03 < shares[0] < shares[1]
    far = predict(plane_victim(), at_distance(torch.tensor([-0.3, 0.3])), rng=draws(2), sigma=0.25)
    assert far.tolist() == [0, 1]


def test_batch_chunk_and_order_change_no_certificate() -> None:
    x = at_distance(torch.linspace(-0.5, 0.5, 7))
    how: dict[str, Any] = {"sigma": 0.25, "n0": 20, "n": 101}
    whole = certify(plane_victim(), x, rng=draws(7), **how)
    for chunk in (1, 3, 64):
        victim = replace(plane_victim(), chunk=chunk)
        parts = [
            certify(victim, x[rows], rng=draws(7).select(rows), **how)
            for rows in torch.arange(6, -1, -1).split(3)
        ]
        assert torch.equal(torch.cat([p.label for p in parts]).flip(0), whole.label)
        assert torch.equal(torch.cat([p.radius for p in parts]).flip(0), whole.radius)


def test_every_copy_is_counted_once_and_drawn_anew() -> None:
    counts = votes(plane_victim(), GREY.repeat(3, 1, 1, 1), rng=draws(3), sigma=0.25, n=333)
    assert counts.shape == (3, 2)
    assert counts.sum(1).tolist() == [333] * 3
    assert len({tuple(row) for row in counts.tolist()}) > 1
    assert (abs(counts[:, 0] - 166.5) < 4 * 333**0.5 / 2).all()


class Rough(nn.Module):
    """A network with many small regions: certificates of it are short and not a plane's."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(4 * torch.randn(32, 64, generator=g))
        self.outer = nn.Parameter(torch.randn(3, 32, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin((x.flatten(1) - 0.5) @ self.inner.T * 0.2) @ self.outer.T


@pytest.mark.slow
def test_no_attack_within_the_certified_radius_changes_the_vote() -> None:
    victim, sigma = victim_of(Rough()), 0.1
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = certify(victim, x, rng=draws(60), sigma=sigma, n=2000)
    sure = found.label >= 0
    assert int(sure.sum()) > 30
    x, y, radius = x[sure], found.label[sure], found.radius[sure]
    judge = smoothing(victim, sigma=sigma, draws=32).judge
    changed = {}
    for times in (0.99, 4.0):
        problem = Problem(x, y, Ball("l2", times * radius), Untargeted(), judge)
        with seeded("attack"):
            z = pgd(problem, rng=draws(len(x)), steps=20, loss="margin")
        assert bool((problem.ball.size(z, x) <= times * radius + 1e-6).all())
        called = predict(victim, z, rng=draws(len(x), seed=7), sigma=sigma, n=4000)
        changed[times] = int(((called != y) & (called >= 0)).sum())
    assert changed[0.99] == 0
    assert changed[4.0] > 10  # the attack is able to


# --- the deployed mean, and training --------------------------------------------------------------


def test_the_judge_averages_over_noise_that_is_not_clipped() -> None:
    victim = plane_victim(1)
    defended = smoothing(victim, sigma=0.5, draws=4)
    assert defended.guide is None
    assert defended.judge.draws == 4
    assert defended.judge.before is not None
    x = torch.zeros(500, 1, 8, 8)
    with seeded(0):
        noisy = defended.judge.before(x)
        logits = defended.judge(x).logits[:, 0].detach()
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noisy.mean()) == pytest.approx(0, abs=0.02)
    assert len({image.numpy().tobytes() for image in noisy}) == 500
    clean = float(victim(x[:1]).logits.detach())
    # a linear logit of noise has sd sigma |w| = 4; the mean of 4 draws half of that
    assert float(logits.mean()) == pytest.approx(clean, abs=0.4)
    assert float(logits.std()) == pytest.approx(2.0, rel=0.15)


def test_noise_comes_before_what_the_victim_already_does() -> None:
    victim = replace(plane_victim(), before=lambda x: x.clamp(0, 1), draws=32)
    judge = smoothing(victim, sigma=0.5, draws=4).judge
    assert judge.before is not None
    assert float(judge.before(GREY).max()) <= 1
    assert judge.draws == 32


def test_training_on_noise_has_the_closed_form_of_a_linear_victim() -> None:
    """E (w (x + n))^2 = (w x)^2 + sigma^2 |w|^2."""
    victim, x = plane_victim(1), grey_images(1).repeat(4000, 1, 1, 1)

    def squares(logits: Tensor, y: Tensor) -> Tensor:
        return (logits[:, 0] - y).square().mean()

    y = torch.zeros(4000, dtype=torch.long)
    with seeded(0):
        found = gaussian_noise(victim, x, y, loss=squares, attack=None, sigma=0.25)
    bare = float(squares(victim(x).logits, y).detach())
    assert float(found.detach()) == pytest.approx(bare + 0.25**2 * 64, rel=0.1)
    found.backward()
    weight = next(victim.module.parameters())
    assert weight.grad is not None
    assert weight.grad.any()


def test_certified_accuracy_counts_the_right_that_reach() -> None:
    certified = Certified(torch.tensor([0, 1, -1, 2, 1]), torch.tensor([0.5, 0.2, 0.0, 0.9, 0.7]))
    y = torch.tensor([0, 1, 1, 0, -1])  # right, right, abstained, wrong, unlabelled
    found = certified_accuracy(certified, y, [0.0, 0.2, 0.3, 0.6])
    assert found.tolist() == [0.5, 0.5, 0.25, 0.0]
    assert certified_accuracy(certified, torch.full((5,), -1), [0.0]).isnan().all()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "parameters", "text"),
    [
        (certify, {"sigma": 0.0}, r"expected sigma > 0, got 0\.0"),
        (certify, {"alpha": 1.0}, r"expected alpha in \(0,1\), got 1\.0"),
        (certify, {"n0": 0}, r"expected n0 >= 1, got 0"),
        (certify, {"n": 0}, r"expected n >= 1, got 0"),
        (predict, {"alpha": 0.0}, r"expected alpha in \(0,1\), got 0\.0"),
    ],
)
def test_bad_parameters_are_refused(
    call: Callable[..., object], parameters: dict[str, Any], text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        call(plane_victim(), GREY, **{"rng": draws(1), "sigma": 0.25, **parameters})


def test_smoothing_refuses_bad_parameters_and_masks() -> None:
    with pytest.raises(SpecError, match=r"expected sigma > 0, got -1"):
        smoothing(plane_victim(), sigma=-1.0)
    with pytest.raises(SpecError, match=r"expected draws >= 1, got 0"):
        smoothing(plane_victim(), draws=0)
    with pytest.raises(SpecError, match=r"expected sigma > 0, got 0"):
        gaussian_noise(plane_victim(), GREY, torch.zeros(1).long(), loss=torch.dist, sigma=0.0)
    with pytest.raises(SpecError, match="expected one label per image for smoothing, got masks"):
        certify(small_mask_victim(2), GREY, rng=draws(1), sigma=0.25)


def test_a_victim_of_nan_is_not_certified() -> None:
    victim = victim_of(Linear(torch.full((2, 64), torch.nan), torch.zeros(2)))
    with pytest.raises(InvalidOutputError, match="expected finite logits"):
        certify(victim, GREY, rng=draws(1), sigma=0.25)
