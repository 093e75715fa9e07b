"""Denoised smoothing: what the denoiser removes, and that attack and certificate go through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from defenses.denoiser import (
    Denoiser,
    denoised_mask_smoothing,
    denoised_smoothing,
    train_denoiser,
)
from defenses.mask_smoothing import certify_masks, mask_smoothing
from defenses.smoothing import certify
from defenses.wrap import wrapped
from robustbench_med.defense import Certified, CertifiedMasks, Fitting
from robustbench_med.errors import SpecError
from robustbench_med.types import Batch, Images
from robustbench_med.victim import Victim
from tests.bench.toys import card_of
from tests.toys import draws, linear_victim, pixel_victim

SIGMA = 0.2


def steps_of_grey(n: int, *, side: int = 8, seed: int = 0) -> Tensor:
    """Return images whose left and right part are dark and bright, with an edge drawn anew."""
    g = torch.Generator().manual_seed(seed)
    edges = torch.randint(2, side - 1, (n, 1, 1, 1), generator=g)
    bright = (torch.arange(side).view(1, 1, 1, side) >= edges).float()
    return 0.3 + 0.4 * bright.expand(n, 1, side, side)


def fitting_of(x: Tensor, y: Tensor) -> Fitting:
    card = card_of(x, 2, task="segmentation" if y.ndim > 1 else "single_label")

    def nobody(batch: Batch) -> Images:
        raise AssertionError("nobody attacks here")

    batch = Batch(x, y, np.array([f"s{i}" for i in range(len(x))]))
    return Fitting(batch, batch, card, 0, nobody)


@cache
def trained(seed: int = 0, stability: float = 0.0) -> Denoiser:
    return train_denoiser(
        pixel_victim(),
        steps_of_grey(64),
        seed=seed,
        sigma=SIGMA,
        filters=8,
        steps=150,
        stability=stability,
    )


def noise_left(network: Denoiser) -> float:
    clean = steps_of_grey(40, seed=1)
    noise = SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((network(clean + noise) - clean).square().mean()) / SIGMA**2


def test_most_of_the_noise_is_removed_from_new_images() -> None:
    assert noise_left(trained()) < 0.35
    untrained = train_denoiser(
        pixel_victim(), steps_of_grey(8), seed=0, sigma=SIGMA, filters=8, steps=1, stability=0.0
    )
    assert noise_left(untrained) > 0.6


def test_training_depends_on_its_seed_alone() -> None:
    x = steps_of_grey(2)
    with torch.random.fork_rng():
        torch.manual_seed(99)  # the caller's generator must not matter
        again = trained.__wrapped__()
    assert torch.equal(again(x), trained()(x))
    assert not torch.equal(trained(1)(x), trained()(x))
    assert not any(weight.requires_grad for weight in trained().parameters())


def test_the_victims_own_answers_are_part_of_the_objective() -> None:
    assert not torch.equal(trained(0, 1.0)(steps_of_grey(2)), trained()(steps_of_grey(2)))
    victim = pixel_victim()
    before = [weight.clone() for weight in victim.module.parameters()]
    train_denoiser(
        victim, steps_of_grey(16), seed=0, sigma=SIGMA, filters=4, steps=2, stability=1.0
    )
    assert all(map(torch.equal, before, victim.module.parameters()))
    assert all(weight.requires_grad for weight in victim.module.parameters())


@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 8, 8), (2, 5, 6, 7)])
def test_any_size_channels_and_volumes(shape: tuple[int, ...]) -> None:
    network = Denoiser(shape[0], len(shape) - 1, 4)
    x = torch.rand(2, *shape)
    assert network(x).shape == x.shape


FEW: dict[str, Any] = {"filters": 8, "steps": 150, "stability": 0.0}


def test_masks_behind_a_denoiser_are_certified_where_those_without_are_not() -> None:
    x, victim = steps_of_grey(6, seed=3), pixel_victim()
    y = (x[:, 0] > 0.5).long()
    fitting = fitting_of(steps_of_grey(64), torch.zeros(64, 8, 8, dtype=torch.long))
    defended = denoised_mask_smoothing(victim, fitting=fitting, sigma=SIGMA, n=80, **FEW)
    bare = mask_smoothing(victim, sigma=SIGMA, n=80)
    assert defended.certify is not None
    assert bare.certify is not None
    found = defended.certify(victim, x, draws(6))
    without = bare.certify(victim, x, draws(6))
    assert isinstance(found, CertifiedMasks)
    assert isinstance(without, CertifiedMasks)
    assert found.radius == without.radius
    right = [(f.label == y).float().mean() for f in (found, without)]
    assert float(right[0]) > float(right[1]) + 0.3
    # the very certificate of the victim behind the denoiser that was trained
    behind = wrapped(victim, trained()).judge
    expected = certify_masks(behind, x, rng=draws(6), sigma=SIGMA, n=80)
    assert torch.equal(found.label, expected.label)


def test_attacks_go_through_the_denoiser() -> None:
    fitting = fitting_of(steps_of_grey(64), torch.zeros(64, 8, 8, dtype=torch.long))
    defended = denoised_mask_smoothing(pixel_victim(), fitting=fitting, sigma=SIGMA, **FEW)
    assert defended.guide is not None
    assert defended.judge.vote
    x = steps_of_grey(1).requires_grad_(True)
    logits = defended.guide(x).logits
    (g,) = torch.autograd.grad(logits[0, 1, 4, 4], x)
    # without the denoiser a pixel of this victim has the gradient of its own value alone
    assert int((g != 0).sum()) > 9


def test_labels_behind_a_denoiser_are_certified_farther() -> None:
    victim, x = linear_victim(2, scale=1.0), steps_of_grey(4, seed=4)
    fitting = fitting_of(steps_of_grey(64), torch.zeros(64, dtype=torch.long))
    how: dict[str, Any] = {"sigma": SIGMA, "n": 100}
    defended = denoised_smoothing(victim, fitting=fitting, draws=2, **how, **FEW)
    assert defended.certify is not None
    found = defended.certify(victim, x, draws(4))
    assert isinstance(found, Certified)
    expected = certify(wrapped(victim, trained()).judge, x, rng=draws(4), **how)
    assert torch.equal(found.radius, expected.radius)
    assert torch.equal(found.label, expected.label)
    assert defended.guide is None
    assert defended.judge.draws == 2


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"sigma": -1.0}, r"expected sigma > 0, got -1\.0"),
        ({"filters": 0}, "expected filters >= 1, got 0"),
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"stability": -0.5}, r"expected stability >= 0, got -0\.5"),
    ],
)
@pytest.mark.parametrize("make", [denoised_smoothing, denoised_mask_smoothing])
def test_bad_parameters_are_refused(
    make: Callable[..., object], parameters: dict[str, Any], text: str
) -> None:
    victim: Victim = pixel_victim()
    fitting = fitting_of(steps_of_grey(4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(SpecError, match=text):
        make(victim, fitting=fitting, **parameters)


def test_too_few_votes_are_refused_before_anything_is_trained() -> None:
    fitting = fitting_of(torch.empty(0, 1, 8, 8), torch.zeros(0, dtype=torch.long))
    with pytest.raises(SpecError, match="expected n >= 39, got 20"):
        denoised_mask_smoothing(pixel_victim(), fitting=fitting, n=20)
