"""A recipe with two stages: masks teach the detector, grades the classifier, by one seed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustbench_med import registry
from robustbench_med.cards import FirstStage, ModelCard, Recipe
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.errors import CheckpointError, SpecError, UnknownNameError
from robustbench_med.training.train import check, train
from tests.bench.toys import dataset_of

FIRST = FirstStage(part="detector", dataset="spots", epochs=8)
RECIPE = Recipe(epochs=12, batch=8, lr=0.02, first=FIRST)


def card(recipe: Recipe = RECIPE) -> ModelCard:
    return ModelCard(
        name="hybrid",
        title="Hybrid",
        family="lesions",
        dataset="grades",
        builder="lesion_model(kinds=1, widths=[4, 4], hidden=8)",
        recipe=recipe,
    )


def spots(n: int = 24, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Return images of bright spots, large in every second one, with grades and masks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, side, side, generator=generator) * 0.3
    grades, masks = torch.arange(n) % 2, torch.zeros(n, side, side, dtype=torch.int64)
    for i in range(n):
        width = 2 + 3 * int(grades[i])
        row, column = (int(v) for v in torch.randint(side - width, (2,), generator=generator))
        masks[i, row : row + width, column : column + width] = 1
    return x + 0.6 * masks[:, None], grades, masks


@pytest.fixture
def grades() -> Iterator[Dataset]:
    """Return images with grades, and register the same images with masks."""
    x, y, masks = spots()
    masked = dataset_of(x, masks, 2, task="segmentation", name="spots")
    with registry.register("datasets", masked):
        yield dataset_of(x, y, 2, name="grades")


def test_both_stages_learn_and_repeat_to_the_byte(grades: Dataset, tmp_path: Path) -> None:
    fractions: list[float] = []
    trained = train(card(), grades, tmp_path / "a", progress=fractions.append)
    again = train(card(), grades, tmp_path / "b")
    assert trained.sha256 == again.sha256
    assert trained.measured is not None
    assert trained.measured.headline == ("balanced accuracy", 1.0)
    assert all(a < b for a, b in pairwise(fractions))
    assert fractions[-1] == pytest.approx(1.0)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "hybrid.json",
        "hybrid.safetensors",
    ]
    stored = ModelCard.model_validate_json((tmp_path / "a" / "hybrid.json").read_text())
    assert stored.recipe == RECIPE


def test_the_second_stage_leaves_the_detector_as_the_first_made_it(
    grades: Dataset, tmp_path: Path
) -> None:
    weights = []
    for epochs in (1, 3):
        recipe = RECIPE.model_copy(update={"epochs": epochs})
        trained = train(card(recipe), grades, tmp_path / str(epochs))
        weights.append(load_file(tmp_path / str(epochs) / trained.weights))
    for key, value in weights[0].items():
        if key.startswith("detector."):
            assert torch.equal(value, weights[1][key]), key
        elif not key.endswith("num_batches_tracked"):
            assert not torch.equal(value, weights[1][key]), key


@pytest.mark.parametrize("stopped_in", [0.2, 0.7])
def test_a_stopped_training_ends_with_the_same_weights(
    grades: Dataset, tmp_path: Path, stopped_in: float
) -> None:
    expected = train(card(), grades, tmp_path / "whole").sha256

    def stop(fraction: float) -> None:
        if fraction > stopped_in:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(card(), grades, tmp_path / "parts", progress=stop)
    assert (tmp_path / "parts" / "hybrid.first.checkpoint").is_file()
    assert train(card(), grades, tmp_path / "parts").sha256 == expected


def test_a_checkpoint_belongs_to_the_data_of_the_first_stage(
    grades: Dataset, tmp_path: Path
) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0.2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(card(), grades, tmp_path, progress=stop)
    x, _, masks = spots()
    changed = dataset_of(x, 1 - masks, 2, task="segmentation", name="spots")
    with (
        registry.register("datasets", changed, replace=True),
        pytest.raises(CheckpointError, match="of another training"),
    ):
        train(card(), grades, tmp_path)


def test_a_recipe_without_a_first_stage_stores_nothing_of_it() -> None:
    assert "first" not in Recipe(epochs=1).model_dump()
    assert "first" not in Recipe(epochs=1).model_dump_json()
    assert Recipe.model_validate_json(RECIPE.model_dump_json()) == RECIPE


def test_first_stages_that_are_wrong(grades: Dataset, tmp_path: Path) -> None:
    def staged(**changed: object) -> ModelCard:
        first = FirstStage.model_validate(FIRST.model_dump() | changed)
        return card(RECIPE.model_copy(update={"first": first}))

    with pytest.raises(SpecError, match="expected a part of the network, got 'finder'"):
        train(staged(part="finder"), grades, tmp_path)
    with pytest.raises(UnknownNameError, match="known dataset, got 'stains'"):
        check(staged(dataset="stains"))
    large = dataset_of(
        torch.rand(4, 1, 8, 16),
        torch.zeros(4, 8, 16, dtype=torch.int64),
        2,
        task="segmentation",
        name="large",
    )
    with registry.register("datasets", large):
        message = r"large: expected size \(16, 16\) as grades has, got \(8, 16\)"
        with pytest.raises(SpecError, match=message):
            train(staged(dataset="large"), grades, tmp_path)
    assert not list(tmp_path.iterdir())
