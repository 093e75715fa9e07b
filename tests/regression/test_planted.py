"""The gate sees planted faults: a model with noise in its weights, an attack with one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attacks.pgd
from robustbench_med import registry
from robustbench_med.cards import ModelCard
from robustbench_med.gate.fixture import Robustness
from robustbench_med.models import weights
from robustbench_med.models.load import load_victim
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


def noisy(name: str, folder: Path) -> ModelCard:
    """Return the card of a shipped victim with noise in its weights, which lie in the folder."""
    card: ModelCard = registry.find("models", name)
    module = load_victim(name, registry.find("datasets", card.dataset)).victim.module
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.parameters():
            drawn = torch.randn(tensor.shape, generator=generator)
            tensor.add_(NOISE * tensor.std(correction=0) * drawn)
    path = folder / "noisy.safetensors"
    return card.model_copy(update={"sha256": weights.write(module, path), "weights": str(path)})


def test_noise_in_the_weights_fails(planted: Robustness, tmp_path: Path) -> None:
    with (
        registry.register("models", noisy("chest_resnet", tmp_path), replace=True),
        pytest.raises(pytest.fail.Exception, match="accuracy at eps .* dropped from"),
    ):
        planted.holds(DEEPFOOL, fails="either")


def test_one_step_in_place_of_twenty_fails(
    planted: Robustness, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attacks.pgd.pgd

    def lazy(problem: Problem, *, rng: Draws, **parameters: Any) -> Images:  # noqa: ANN401
        found: Images = whole(problem, rng=rng, **{**parameters, "steps": 1})
        return found

    monkeypatch.setattr(attacks.pgd, "pgd", lazy)
    with pytest.raises(pytest.fail.Exception, match="means that the attack is weaker"):
        planted.holds(PGD, fails="either")
