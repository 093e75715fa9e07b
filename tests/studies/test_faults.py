"""Faults of published protocols that no attack shows: how models and images were chosen."""

from __future__ import annotations

import numpy as np
import torch

from defenses.detectors.lid import dimension
from robustbench_med import registry
from robustbench_med.cards import DatasetCard, Recipe
from robustbench_med.training.fit import fit
from robustbench_med.training.validation import scores
from robustbench_med.types import Batch
from robustbench_med.victim import InputContract, Victim
from tests.toys import Linear

SIDE = 4


def noise(n: int, *, seed: int) -> Batch:
    """Return images whose labels say nothing: no victim can be better than chance on new ones."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, SIDE, SIDE, generator=rng)
    return Batch(x, torch.arange(n) % 2, np.array([f"{seed}-{i}" for i in range(n)]))


def trained(seed: int, val: Batch) -> Victim:
    """Return a victim trained on noise, of the epoch that is best on `val`."""
    module = Linear(torch.zeros(2, SIDE**2), torch.zeros(2))
    victim = Victim(module, InputContract(channels=1, size=(SIDE, SIDE)))
    card: DatasetCard = registry.find("datasets", "phantom_chest")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        recipe = Recipe(epochs=12, batch=8, lr=1.0, patience=12)
        fit(victim, noise(40, seed=100 + seed), card, recipe, val=val)
    return victim


def test_an_epoch_chosen_on_the_test_images_is_too_good_on_them() -> None:
    card: DatasetCard = registry.find("datasets", "phantom_chest")
    accuracy: dict[str, list[float]] = {"same": [], "other": []}
    for seed in range(10):
        test = noise(18, seed=200 + seed)
        for kind, val in (("same", test), ("other", noise(18, seed=300 + seed))):
            accuracy[kind].append(scores(trained(seed, val), test, card)["accuracy"])
    same, other = (np.mean(accuracy[kind]) for kind in ("same", "other"))
    # the labels are noise, so that an honest accuracy is one half; ten trainings of each kind
    assert same > 0.57
    assert abs(other - 0.5) < 0.06


def test_a_neighbour_that_is_the_clean_twin_gives_an_attack_away() -> None:
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn(100, 8, generator=rng)
    attacked = clean + 0.01 * torch.randn(100, 8, generator=rng)
    with_twin = dimension(attacked, clean, k=20)
    others = torch.randn(100, 8, generator=rng)
    without = dimension(attacked, others, k=20)
    # the clean images themselves are left out of their own neighbourhoods
    usual = dimension(clean, clean, k=20)
    told_apart = (with_twin[:, None] < usual).float().mean()
    assert float(told_apart) > 0.9
    assert abs(float((without[:, None] < usual).float().mean()) - 0.5) < 0.1
