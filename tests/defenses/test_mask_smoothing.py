"""Mask smoothing: the test of each pixel, Holm over pixels, and the radius of a pixel victim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from torch import Tensor, nn

from defenses.mask_smoothing import certain_pixels, certify_masks, mask_smoothing, p_values
from robustbench_med.defense import CertifiedMasks
from robustbench_med.errors import InvalidOutputError, SpecError
from robustbench_med.rng import seeded
from tests.toys import Pointwise, draws, linear_victim, pixel_victim, victim_of

SIGMA, TAU = 0.2, 0.75
RADIUS = float(SIGMA * norm.ppf(TAU))


def at_margins(margins: Tensor, b: int = 1) -> Tensor:
    """Return 8 x 8 images whose pixels are that far above 0.5, 64 margins each."""
    image: Tensor = (0.5 + margins.view(1, 1, 8, 8)).repeat(b, 1, 1, 1)
    return image


def certified(x: Tensor, **how: Any) -> CertifiedMasks:  # noqa: ANN401
    given: dict[str, Any] = {"sigma": SIGMA, "tau": TAU, "rng": draws(len(x)), **how}
    return certify_masks(pixel_victim(), x, **given)


# --- the test of each pixel, and the correction ---------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 0.75, 0.9])
def test_p_values_are_sums_of_the_binomial(tau: float) -> None:
    from math import comb

    n = 7
    mass = [comb(n, k) * tau**k * (1 - tau) ** (n - k) for k in range(n + 1)]
    np.testing.assert_allclose(p_values(n, tau), [sum(mass[k:]) for k in range(n + 1)])


@pytest.mark.parametrize("seed", range(8))
def test_holm_is_that_of_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, tau, alpha = 30, (0.5, 0.75)[seed % 2], (0.001, 0.05, 0.3)[seed % 3]
    share = rng.choice([0.5, 0.8, 0.97, 1.0], (1, 3, 4, 5))
    counts = rng.binomial(n, share).astype(np.int32)
    found = certain_pixels(counts, n=n, tau=tau, alpha=alpha)
    p = p_values(n, tau)[counts.ravel()]
    expected = multipletests(p, alpha=alpha, method="holm")[0].reshape(counts.shape)
    np.testing.assert_array_equal(found, expected)
    # Holm finds at least what Bonferroni finds
    assert bool((found >= (p <= alpha / p.size).reshape(counts.shape)).all())


def test_holm_goes_beyond_bonferroni() -> None:
    n, tau, alpha = 20, 0.5, 0.05
    counts = np.full((1, 100), 20, dtype=np.int32)
    counts[0, 0] = 16  # p = 0.0059: above 0.05 / 100, below 0.05 / 1
    assert certain_pixels(counts, n=n, tau=tau, alpha=alpha).all()
    counts[0, 1:] = 10
    assert not certain_pixels(counts, n=n, tau=tau, alpha=alpha).any()


def test_the_family_wise_error_is_at_most_alpha() -> None:
    """All pixels of the worst null hypothesis, p = tau; half of them beside certain ones."""
    rng = np.random.default_rng(0)
    n, alpha, runs = 100, 0.05, 4000
    counts = rng.binomial(n, TAU, (runs, 64)).astype(np.int32)
    counts[::2, 32:] = n
    null = np.ones((runs, 64), dtype=bool)
    null[::2, 32:] = False
    found = certain_pixels(counts, n=n, tau=TAU, alpha=alpha)
    wrong = (found & null).any(1).mean()
    slack = 3 * (alpha * (1 - alpha) / runs) ** 0.5
    assert 0.2 * alpha < wrong <= alpha + slack
    assert found[~null].all()
    # the planted fault: without a correction nearly every image has a wrong pixel
    alone = p_values(n, TAU)[counts] <= alpha
    assert (alone & null).any(1).mean() > 0.6


def test_certificates_are_wrong_no_more_often_than_alpha() -> None:
    """The whole way, with noise on images: each pixel's class has exactly the fraction tau."""
    b, alpha = 200, 0.1
    x = at_margins(torch.full((64,), RADIUS), b)
    found = certified(x, alpha=alpha)
    wrong = float((found.label >= 0).flatten(1).any(1).float().mean())
    assert 0.02 < wrong <= alpha + 3 * (alpha * (1 - alpha) / b) ** 0.5


# --- the closed form of a victim that sees each pixel alone ---------------------------------------


def test_the_radius_is_exact_for_a_threshold_at_each_pixel() -> None:
    """A pixel at margin m has the vote Phi(m / sigma), and keeps it within L2 |m|, no further."""
    margins = torch.linspace(-0.49, 0.49, 64)
    x = at_margins(margins, 20)
    found = certified(x, n=400)
    assert found.radius == pytest.approx(RADIUS)
    sure = found.label >= 0
    flat = margins.view(8, 8)
    assert not bool(sure[:, flat.abs() <= RADIUS].any())
    assert bool(sure[:, flat.abs() > 1.9 * RADIUS].all())
    right = (flat > 0).to(found.label).expand_as(found.label)
    assert torch.equal(found.label[sure], right[sure])


def test_more_votes_certify_more_and_near_tau_it_abstains() -> None:
    x = at_margins(torch.linspace(RADIUS, 2.5 * RADIUS, 64), 10)
    shares = [float((certified(x, n=n).label >= 0).float().mean()) for n in (50, 100, 400)]
    assert 0.02 < shares[0] < shares[1] < shares[2] < 1.0
    above = certified(at_margins(torch.full((64,), 1.02 * RADIUS), 10), n=400)
    assert float((above.label >= 0).float().mean()) < 0.02


def test_a_larger_tau_certifies_a_larger_radius_of_fewer_pixels() -> None:
    x = at_margins(torch.linspace(0.0, 0.49, 64), 5)
    few, many = (certified(x, tau=tau, n=200) for tau in (0.9, 0.6))
    assert few.radius == pytest.approx(float(SIGMA * norm.ppf(0.9)))
    assert few.radius > many.radius
    assert int((few.label >= 0).sum()) < int((many.label >= 0).sum())


@pytest.mark.parametrize("size", [(8, 8), (4, 6, 5)])
def test_several_classes_and_volumes(size: tuple[int, ...]) -> None:
    victim = pixel_victim(3, size=size)
    labels = torch.arange(int(np.prod(size))).view(size) % 3
    x = (0.1 + 0.8 * (labels == torch.arange(3).view(-1, *[1] * len(size)))).float()[None]
    found = certify_masks(victim, x, rng=draws(1), sigma=0.1, n=80)
    assert torch.equal(found.label[0].long(), labels)


def test_one_logit_and_two_are_certified_alike() -> None:
    x = at_margins(torch.linspace(-0.4, 0.4, 64))
    one, two = (
        certify_masks(pixel_victim(k), x, rng=draws(1), sigma=SIGMA, n=90).label for k in (1, 2)
    )
    assert torch.equal(one, two)


def test_batch_chunk_and_order_change_no_certificate() -> None:
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = certified(x).label
    assert 0.2 < float((whole >= 0).float().mean()) < 0.9
    for chunk in (1, 2):
        victim = replace(pixel_victim(), chunk=chunk)
        parts = [
            certify_masks(victim, x[rows], rng=draws(5).select(rows), sigma=SIGMA).label
            for rows in torch.arange(4, -1, -1).split(3)
        ]
        assert torch.equal(torch.cat(parts).flip(0), whole)


class Watched(nn.Module):
    """A threshold at each pixel that keeps how many images it was shown at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Pointwise(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5]))
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        logits: Tensor = self.inner(x)
        return logits


def test_votes_are_counted_as_they_come() -> None:
    module = Watched()
    victim = replace(victim_of(module), chunk=2)
    certify_masks(victim, torch.rand(3, 1, 8, 8), rng=draws(3), sigma=SIGMA, n0=5, n=60)
    assert max(module.batches) == 2
    assert sum(module.batches) == 3 * 65


# --- the deployed vote ----------------------------------------------------------------------------


class _Mean(nn.Module):
    """The mean of the image decides every pixel, so that all of them fall together."""

    def forward(self, x: Tensor) -> Tensor:
        margin = (x.flatten(1).mean(1) - 0.5) * x[0].numel() ** 0.5
        logits = torch.stack([-margin, margin], 1)[:, :, None, None]
        return logits.expand(-1, 2, *x.shape[2:]).contiguous()


def test_few_deployed_votes_may_fall_at_the_edge_of_a_right_certificate_and_many_do_not() -> None:
    """docs/certificates.md: with a true share of 0.63, 32 votes err at times and 400 do not."""
    victim, x = victim_of(_Mean()), torch.full((40, 1, 8, 8), 0.5 + SIGMA / 8)  # Phi(1) = 0.84
    proved = certify_masks(victim, x, rng=draws(40), sigma=SIGMA, n=1000)
    whole = (proved.label == 1).flatten(1).all(1)
    assert int(whole.sum()) >= 35
    z = x - 0.999 * proved.radius / 8  # along the gradient: a true share of Phi(0.326) = 0.63
    fallen = []
    for votes in (32, 400):
        deployed = mask_smoothing(victim, sigma=SIGMA, n=1000, votes=votes).judge
        with seeded("deployed"):
            answer = deployed.logits(z).argmax(1)
        fallen.append(int((whole & (answer == 0).flatten(1).any(1)).sum()))
    assert fallen[0] > 0
    assert fallen[1] == 0


def test_the_judge_is_the_vote_and_the_guide_has_its_gradient() -> None:
    defended = mask_smoothing(pixel_victim(), sigma=SIGMA, votes=40, draws=3)
    assert defended.guide is not None
    margins = torch.linspace(-0.4, 0.4, 64)
    x = at_margins(margins).requires_grad_(True)
    with seeded(0):
        shares = defended.judge(x).logits
        guided = defended.guide(x).logits
    assert not shares.requires_grad
    assert guided.requires_grad
    assert torch.allclose(shares.sum(1), torch.ones(1, 8, 8))
    assert torch.allclose(shares * 40, (shares * 40).round(), atol=1e-4)
    exact = torch.from_numpy(norm.cdf(margins.numpy() / SIGMA)).view(8, 8)
    assert float((shares[0, 1] - exact).abs().max()) < 4.5 * (0.25 / 40) ** 0.5
    one = mask_smoothing(pixel_victim(1), sigma=SIGMA, votes=40).judge
    with seeded(0):
        assert torch.allclose(one(x).logits[:, 0] + 0.5, shares[:, 1])


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"sigma": 0.0}, r"expected sigma > 0, got 0\.0"),
        ({"tau": 0.4}, r"expected tau in \[0\.5, 1\), got 0\.4"),
        ({"tau": 1.0}, r"expected tau in \[0\.5, 1\), got 1\.0"),
        ({"alpha": 0.0}, r"expected alpha in \(0,1\), got 0\.0"),
        ({"n0": 0}, "expected n0 >= 1, got 0"),
        (
            {"n": 38},
            r"expected n >= 39, got 38: with fewer votes no pixel of an image of 64 pixels",
        ),
        ({"alpha": 1e-320}, "expected n >= 2576, got 100"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], text: str) -> None:
    calls: list[Callable[..., object]] = [certified, mask_smoothing]
    for call, first in zip(calls, (at_margins(torch.zeros(64)), pixel_victim()), strict=True):
        with pytest.raises(SpecError, match=text):
            call(first, **parameters)


def test_39_equal_votes_are_just_enough() -> None:
    """The bound of the refusal: 39 of 39 votes certify a pixel of 64, 38 of 38 would not."""
    for n, enough in ((39, True), (38, False)):
        counts = np.full((1, 64), 0, dtype=np.int32)
        counts[0, 0] = n
        assert certain_pixels(counts, n=n, tau=0.75, alpha=0.001).any() == enough


def test_votes_and_victims_that_do_not_fit() -> None:
    with pytest.raises(SpecError, match="expected votes >= 1, got 0"):
        mask_smoothing(pixel_victim(), votes=0)
    with pytest.raises(SpecError, match="expected draws >= 1, got 0"):
        mask_smoothing(pixel_victim(), draws=0)
    with pytest.raises(SpecError, match="expected masks for mask_smoothing, got one label"):
        certify_masks(linear_victim(2), at_margins(torch.zeros(64)), rng=draws(1), sigma=SIGMA)
    broken = victim_of(Pointwise(torch.full((2, 1), torch.nan), torch.zeros(2)))
    with pytest.raises(InvalidOutputError, match="expected finite logits"):
        certify_masks(broken, at_margins(torch.zeros(64)), rng=draws(1), sigma=SIGMA)
