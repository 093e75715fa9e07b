"""Severity by SSIM: every image has the stated one, by scikit-image; what misses it is flagged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.bench.attack_run import run_attack
from robustbench_med.bench.check_context import CheckContext
from robustbench_med.bench.checks import run_checks
from robustbench_med.bench.scoring import score_run
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.shift import Shifted
from tests.attacks.test_shifts import _untargeted, posed
from tests.bench.toys import dataset_of, planned_of, prepared_of
from tests.toys import draws, small_victim


def shifted(problem: Problem, **parameters: Any) -> Shifted:  # noqa: ANN401
    card = registry.find("attacks", "at_ssim")
    settings = {**card.parameters, "search": "random", **parameters}
    found: Shifted = registry.function("attacks", card)(
        problem, rng=draws(len(problem)), **settings
    )
    return found


def similarity(z: Tensor, x: Tensor) -> float:
    """Return the SSIM of two grey pictures by scikit-image."""
    value: float = structural_similarity(  # type: ignore[no-untyped-call]
        z[0].numpy(),
        x[0].numpy(),
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return value


def smooth(n: int) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 1, 6, 6, generator=rng)
    return torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bicubic").clamp(0.05, 0.95)


@pytest.mark.parametrize(
    "shift", ["gaussian_noise", "gaussian_blur(strength=0.3)", "gamma(strength=3.0)"]
)
@pytest.mark.parametrize("target", [0.95, 0.8])
def test_every_image_has_the_ssim_that_its_severity_states(shift: str, target: float) -> None:
    x = smooth(3)
    problem = Problem(
        x,
        torch.zeros(3).long(),
        Ball("severity", 1 - target),
        _untargeted(),
        small_victim(3),
    )
    found = shifted(problem, shift=shift)
    for z, clean in zip(found.z, x, strict=True):
        assert similarity(z, clean) == pytest.approx(target, abs=2e-3)
    assert found.severity(x) == pytest.approx(1 - target)


def test_two_images_need_two_severities_of_the_shift() -> None:
    x = torch.cat([smooth(1), 0.5 + 0.1 * (smooth(1) - 0.5)])
    problem = Problem(
        x,
        torch.zeros(2).long(),
        Ball("severity", 0.2),
        _untargeted(),
        small_victim(3),
    )
    change = (shifted(problem).z - x).flatten(1).std(1)
    assert float(change[0] / change[1]) > 2


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        ("affine", "expected a shift that leaves anatomy"),
        ("pgd", "expected a shift such as"),
        ("at_ssim", "expected a shift such as"),
        ("medmnist_c", "expected a shift such as"),
        ("gaussian_noise(strong=1)", "strong"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(shift: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        shifted(posed(0), shift=shift)


def test_images_smaller_than_the_window_are_refused() -> None:
    x = torch.zeros(0, 1, 8, 8)
    problem = Problem(x, torch.zeros(0).long(), posed(0).ball, _untargeted(), small_victim(3))
    with pytest.raises(SpecError, match="expected images of 11 pixels or more .* got 8x8"):
        shifted(problem)


@pytest.mark.parametrize(("strength", "flagged"), [(0.4, False), (0.0001, True)])
def test_a_shift_too_weak_for_its_ssim_is_flagged(strength: float, flagged: bool) -> None:
    x, victim = smooth(6), small_victim(3)
    toys = dataset_of(x, victim.logits(x).argmax(1), 3)
    parameters = {"shift": f"gaussian_noise(strength={strength})", "search": "random"}
    planned = planned_of(
        toys, "at_ssim", parameters=parameters, norm="severity", threat="shift", ladder=(0.1, 0.3)
    )
    setup = prepared_of(victim, toys)
    run = run_attack(planned, setup)
    audit = score_run(planned, setup, run).audit
    assert audit.over_budget == 0
    card = registry.find("attacks", "at_ssim")
    _, flags = run_checks(CheckContext(planned, setup, run, audit, card))
    assert ("ssim_not_met" in {flag.name for flag in flags}) == flagged
