"""Published protocols on masks do what their papers' code does, faults included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_med.errors import SpecError
from robustbench_med.studies.mask_protocols import dilated, swapped
from robustbench_med.studies.protocols import run_protocol
from robustbench_med.studies.target import Target
from robustbench_med.types import Batch
from robustbench_med.victim import InputContract, Victim

SIDE = 6
EPS = 0.05
SLOPE = 20.0


class Pixelwise(nn.Module):
    """Logits of three classes that fall with the distance of a pixel's mean from 0.25, 0.5, 0.75.

    `weights` say how much each channel counts.
    """

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights).view(1, -1, 1, 1)
        self.centres = torch.tensor([0.25, 0.5, 0.75]).view(1, -1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        level = (x * self.weights).sum(1, keepdim=True) / self.weights.sum()
        return -SLOPE * (level - self.centres).square()


def target(*, weights: tuple[float, ...] = (1.0,), n: int = 4, aimed: bool = False) -> Target:
    """Return images of three stripes, one a class, with a little noise; all pixels are right."""
    victim = Victim(
        Pixelwise(weights),
        InputContract(channels=len(weights), size=(SIDE, SIDE), mean=(0.0,), std=(1.0,)),
    )
    rng = torch.Generator().manual_seed(0)
    y = (torch.arange(SIDE) // 2).expand(n, SIDE, SIDE).clone()
    x = (0.25 + 0.25 * y[:, None]).repeat(1, len(weights), 1, 1)
    x = x + 0.02 * torch.randn(x.shape, generator=rng)
    ids = np.array([str(i) for i in range(n)])
    return Target(victim, x, y, rng, lambda k: Batch(x[:k], y[:k], ids[:k]), aimed)


def called(at: Target, z: Tensor) -> Tensor:
    return at.victim.logits(z).argmax(1)


def test_masks_are_attacked_away_from_the_truth_or_toward_the_wanted_ones() -> None:
    at = target()
    assert (called(at, at.x) == at.y).all()
    away = run_protocol("mask_pgd(eps=0.2, step_size=0.05, steps=8)", at)
    assert (called(at, away) == at.y).float().mean() < 0.4
    assert float((away - at.x).abs().max()) <= 0.2 + 1e-6
    wanted = at._replace(y=(at.y + 1).clamp(max=2), aimed=True)
    toward = run_protocol("mask_pgd(eps=0.2, step_size=0.05, steps=8)", wanted)
    assert (called(at, toward) == wanted.y).all()


def test_unlabelled_pixels_have_no_gradient() -> None:
    at = target()
    y = at.y.clone()
    y[:, :3] = -1
    z = run_protocol("mask_pgd(eps=0.1, step_size=0.05, steps=2)", at._replace(y=y))
    change = (z - at.x).abs()
    assert float(change[:, :, :3].max()) == 0
    assert float(change[:, :, 3:].min()) > 0


def test_a_step_normalised_over_the_batch_depends_on_the_images_beside() -> None:
    at = target()
    alone = at._replace(x=at.x[:1], y=at.y[:1])
    spec = "dag(wanted='swap', label=1, other=2, steps=1, batch=4"
    together, by_itself = run_protocol(f"{spec})", at), run_protocol(f"{spec})", alone)
    moved = [(z[:1] - at.x[:1]).norm() for z in (together, by_itself)]
    assert moved[1] == pytest.approx(0.07, rel=1e-4)
    assert moved[0] < 0.6 * moved[1]  # four equal images share the one length
    each = [run_protocol(f"{spec}, each=True)", a)[:1] for a in (at, alone)]
    torch.testing.assert_close(*each)


def test_dag_leaves_the_background_and_never_raises_another_adversarial_class() -> None:
    at = target(n=1)
    published = run_protocol("dag(label=2, by=4, gamma=0.5, steps=3)", at) - at.x
    everywhere = run_protocol("dag(label=2, by=4, gamma=0.5, steps=3, all_pixels=True)", at) - at.x
    background = (at.y == 0)[:, None]
    assert not published[background].any()
    assert everywhere[background].any()
    # from the middle the truth alone is pushed away, to whichever side is nearer; toward class 2
    # all of these pixels become brighter
    middle = (at.y == 1)[:, None]
    assert (published[middle] < 0).any()
    assert (everywhere[middle] >= 0).all()
    assert (everywhere[middle] > 0).any()


def test_dag_has_no_ball_so_that_more_steps_change_an_image_more() -> None:
    at = target(n=1)
    spec = "dag(wanted='swap', gamma=0.2, keep=True"
    few, many = (run_protocol(f"{spec}, steps={steps})", at) - at.x for steps in (2, 8))
    assert many.norm() > 1.5 * few.norm()


def test_dag_returns_nothing_when_it_has_fully_succeeded() -> None:
    at = target(n=1)
    # nothing to lose: no pixel is anything but background, and all are called so
    empty = at._replace(x=torch.full_like(at.x, 0.25), y=torch.zeros_like(at.y))
    assert torch.equal(run_protocol("dag(wanted='swap')", empty), empty.x)
    # the classes change places, and no pixel of either is called by its own name any more
    spec = "dag(wanted='swap', label=1, other=2, gamma=1.0, steps=40, all_pixels=True"
    lost, kept = run_protocol(f"{spec})", at), run_protocol(f"{spec}, keep=True)", at)
    assert torch.equal(lost, at.x)
    changed = called(at, kept) != at.y
    assert changed[at.y > 0].all()


def test_the_adversarial_masks_are_a_dilation_in_four_directions_and_a_swap() -> None:
    y = torch.zeros(1, 5, 5, dtype=torch.long)
    y[0, 2, 2], y[0, 0, 2] = 1, 2
    grown = dilated(y, 1, 2)
    assert (grown == 1).sum() == 13  # a rhombus, which covers the other class
    assert grown[0, 0, 2] == 1
    assert grown[0, 1, 0] == 0
    assert swapped(y, 1, 2)[0, 2, 2] == 2
    assert swapped(y, 1, 2)[0, 0, 2] == 1
    with pytest.raises(SpecError, match="bogus"):
        run_protocol("dag(wanted='bogus')", target())


def test_the_universal_pattern_is_one_in_its_channels_and_hurts_more_than_random_signs() -> None:
    at = target(weights=(3.0, 1.0), n=8)
    z = run_protocol("universal_masks(eps=0.15, step_size=0.05, passes=4, n_fit=8, batch=4)", at)
    noise = z - at.x
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), atol=1e-6, rtol=0)
    assert float(noise.abs().max()) <= 0.15 + 1e-6
    spec = "universal_masks(eps=0.15, step_size=0.05, passes=4, n_fit=8, batch=4, channels=[1])"
    one = run_protocol(spec, at) - at.x
    assert not one[:, 0].any()
    assert one[:, 1].any()
    right = [
        float((called(at, at.x + v) == at.y).float().mean())
        for v in (noise, one, run_protocol("random_masks(eps=0.15, channels=[1])", at) - at.x)
    ]
    assert right[0] < right[1] - 0.2
    assert right[2] > 0.9


def test_random_signs_have_the_radius_and_stay_in_their_channels() -> None:
    at = target(weights=(1.0, 1.0))
    noise = run_protocol(f"random_masks(eps={EPS}, channels=[0])", at) - at.x
    assert not noise[:, 1].any()
    torch.testing.assert_close(noise[:, 0].abs(), torch.full_like(noise[:, 0], EPS))
    assert (noise[:, 0] > 0).any()
    assert (noise[:, 0] < 0).any()
    torch.testing.assert_close(noise, noise[:1].expand_as(noise))


def test_at_one_radius_two_channels_have_the_norm_of_one_at_sqrt_2_times_the_radius() -> None:
    at = target(weights=(1.0, 1.0))
    both, one = (
        (run_protocol(spec, at) - at.x).flatten(1).norm(dim=1)
        for spec in (f"random_masks(eps={EPS})", f"random_masks(eps={EPS}, channels=[0])")
    )
    torch.testing.assert_close(both, math.sqrt(2) * one)
