"""The gate sees planted faults: a model with noise in its weights, an attack with one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attacks.pgd
from robustbench_med.bench import setup
from robustbench_med.cards import DatasetCard
from robustbench_med.gate.fixture import Robustness
from robustbench_med.models.load import Loaded, ModelSource, load_victim
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from tests.regression.test_shipped import QUICK, RECORDS, SLOW

DEEPFOOL = RECORDS / "quick" / QUICK["chest_resnet deepfool"]
PGD = RECORDS / "quick" / SLOW["chest_resnet pgd"]
NOISE = 0.2  # of the standard deviation of each tensor


pytestmark = pytest.mark.slow


@pytest.fixture
def planted(robustness: Robustness, tmp_path: Path) -> Robustness:
    """Keep what a fault measures from the tests that share the session's records."""
    return replace(robustness, cache=tmp_path)


def noisy(source: ModelSource, data: DatasetCard) -> Loaded:
    loaded = load_victim(source, data)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in loaded.victim.module.parameters():
            drawn = torch.randn(weights.shape, generator=generator)
            weights.add_(NOISE * weights.std(correction=0) * drawn)
    return loaded


def test_noise_in_the_weights_fails(planted: Robustness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "load_victim", noisy)
    with pytest.raises(pytest.fail.Exception, match="accuracy at eps .* dropped from"):
        planted.holds(DEEPFOOL, fails="either")


def test_one_step_in_place_of_twenty_fails(
    planted: Robustness, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attacks.pgd.pgd

    def lazy(problem: Problem, *, rng: Draws, **parameters: Any) -> Images:  # noqa: ANN401
        found: Images = whole(problem, rng=rng, **{**parameters, "steps": 1})
        return found

    monkeypatch.setattr(attacks.pgd, "pgd", lazy)
    with pytest.raises(pytest.fail.Exception, match="an attack that got weaker"):
        planted.holds(PGD, fails="either")
