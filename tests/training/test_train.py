"""Training is reproducible to the byte and touches nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustbench_med.cards import Measured, ModelCard, Recipe, Task
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import SpecError
from robustbench_med.models import weights
from robustbench_med.models.load import untrained
from robustbench_med.training import train as training
from robustbench_med.training.augment import augment
from robustbench_med.training.train import half_of, train
from robustbench_med.types import Batch
from robustbench_med.victim import Victim
from tests.bench.toys import dataset_of

RECIPE = Recipe(epochs=2, batch=8, augment=("flip", "shift", "rotate", "contrast"))


def card(**changed: object) -> ModelCard:
    values = {
        "name": "toy",
        "title": "Toy",
        "family": "vgg",
        "dataset": "toy",
        "builder": "vgg(cfg=[8, 'M'], mlp_ratio=0.01)",
        "recipe": RECIPE,
    }
    return ModelCard.model_validate(values | changed)


def data(n: int = 24, task: Task = "single_label") -> Dataset:
    x = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    y = torch.arange(n) % 2
    x[y == 1, :, 4:8, 4:8] += 0.5
    if task == "multi_label":
        y = torch.stack([y, 1 - y], 1)
        y[0] = -1
    return dataset_of(x, y, 2, task=task)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_two_runs_write_the_same_bytes_and_another_seed_others(tmp_path: Path, task: Task) -> None:
    a = train(card(), data(task=task), tmp_path / "a")
    torch.rand(7)  # whatever the generator did in between
    b = train(card(), data(task=task), tmp_path / "b")
    other_recipe = RECIPE.model_copy(update={"seed": 1})
    c = train(card(recipe=other_recipe), data(task=task), tmp_path / "c")
    assert a.sha256 == b.sha256 != c.sha256
    name = "toy.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_generator_and_the_threads_are_left_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train(card(), data(), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_generator_is_restored_after_a_failure(tmp_path: Path) -> None:
    state = torch.get_rng_state()

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(card(), data(), tmp_path, progress=stop)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [24, 25])  # 25: a last batch of one, which batch norm cannot read
def test_progress_rises_to_one(tmp_path: Path, n: int) -> None:
    fractions: list[float] = []
    train(card(), data(n), tmp_path, progress=fractions.append)
    assert all(a < b for a, b in pairwise(fractions))
    assert fractions[0] > 0
    assert fractions[-1] == pytest.approx(1.0)


def test_the_card_says_what_was_written(tmp_path: Path) -> None:
    trained = train(card(), data(), tmp_path)
    assert ModelCard.model_validate_json((tmp_path / "toy.json").read_text()) == trained
    victim = untrained(trained, data().card)
    assert (
        weights.read(victim.module, tmp_path / trained.weights, sha256=trained.sha256)
        == trained.sha256
    )
    assert trained.weights_type == "float16"
    assert trained.measured is not None
    assert trained.measured.parameters == sum(p.numel() for p in victim.module.parameters())
    assert 0 <= trained.measured.headline[1] <= 1
    assert trained.recipe == RECIPE


def test_scores_are_measured_on_the_stored_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[dict[str, Tensor]] = []

    def measure(victim: Victim, data: Dataset) -> Measured:
        measured.append({k: v.clone() for k, v in victim.module.state_dict().items()})
        return Measured(parameters=1, gradient_ms=1.0, machine="a test")

    monkeypatch.setattr(training, "measure", measure)
    trained = train(card(), data(), tmp_path)
    (state,) = measured
    for key, value in load_file(tmp_path / trained.weights).items():
        assert torch.equal(state[key], value.to(state[key].dtype)), key


def test_training_learns_what_can_be_learnt(tmp_path: Path) -> None:
    recipe = Recipe(epochs=12, batch=8, lr=0.02)
    trained = train(card(recipe=recipe), data(48), tmp_path)
    assert trained.measured is not None
    assert trained.measured.headline[1] > 0.9


def test_a_card_without_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a card with a recipe, got toy"):
        train(card(recipe=None), data(), tmp_path)


def moved(*moves: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    recipe = Recipe.model_validate({"epochs": 1, "augment": moves})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return x, augment(x, recipe)


def test_augmentation() -> None:
    x, same = moved()
    torch.testing.assert_close(same, x, atol=1e-5, rtol=0)
    x, flipped = moved("flip")
    mirrored = [
        bool(torch.allclose(z, o.flip(-1), atol=1e-4)) for z, o in zip(flipped, x, strict=True)
    ]
    unchanged = [bool(torch.allclose(z, o, atol=1e-4)) for z, o in zip(flipped, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, unchanged, strict=True))
    assert any(mirrored)
    assert any(unchanged)
    for moves in (("shift",), ("rotate",), ("contrast",), ("flip", "shift", "rotate", "contrast")):
        x, changed = moved(*moves)
        assert changed.shape == x.shape
        assert changed.min() >= -1e-6
        assert changed.max() <= 1 + 1e-6
        assert not torch.allclose(changed, x, atol=1e-3)


def test_the_halves_of_a_training_split_share_no_patient() -> None:
    x = torch.arange(10.0).view(-1, 1, 1, 1) / 10
    patients = np.array(list("ccaabbbdde"))
    batch = Batch(x, torch.arange(10) % 2, np.array([str(i) for i in range(10)]), patients)
    first, second = half_of(batch, "first"), half_of(batch, "second")
    assert first.ids.tolist() == ["0", "1", "4", "5", "6", "9"]
    assert second.ids.tolist() == ["2", "3", "7", "8"]
    assert first.patients is not None
    assert set(first.patients) == {"b", "c", "e"}
    assert torch.equal(first.x, x[[0, 1, 4, 5, 6, 9]])
    assert first.y.tolist() == [0, 1, 0, 1, 0, 1]
    alone = half_of(Batch(x, batch.y, batch.ids), "second")
    assert alone.ids.tolist() == ["1", "3", "5", "7", "9"]
    assert half_of(batch, "") is batch


def test_a_recipe_of_one_half_is_fitted_on_that_half_alone(tmp_path: Path) -> None:
    whole = data(24)
    other = whole.batch("train").x.clone()
    other[::2] = 0.5  # the images of the other half
    changed = dataset_of(other, whole.batch("train").y, 2)
    recipe = RECIPE.model_copy(update={"half": "second"})
    weights_of = [
        train(card(recipe=recipe), each, tmp_path / name).sha256
        for name, each in (("a", whole), ("b", changed))
    ]
    assert weights_of[0] == weights_of[1]
    assert train(card(), whole, tmp_path / "c").sha256 != weights_of[0]
    assert "half" not in RECIPE.model_dump()
