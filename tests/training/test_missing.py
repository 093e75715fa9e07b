"""Victims whose weights are not shipped: trained once by recipe, found in the cache folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustbench_med import registry
from robustbench_med.cards import ModelCard, Recipe
from robustbench_med.errors import VictimError
from robustbench_med.models import trained_here
from robustbench_med.models.load import describe, load_victim
from robustbench_med.training.missing import missing_victims, train_missing

BUILDER = "timm:resnet10t(channels=[4, 4, 4, 4], stem_width=4)"


def card_of(name: str, **recipe: object) -> ModelCard:
    return ModelCard(
        name=name,
        title=name,
        family="resnet",
        dataset="phantom_chest",
        builder=BUILDER,
        recipe=Recipe.model_validate({"epochs": 1, "batch": 64, **recipe}),
    )


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, ModelCard]:
    """Two unshipped victims; the second starts from the first."""
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path))
    made = {"first": card_of("first"), "second": card_of("second", start="first")}
    known, shipped = registry.shipped("models") | made, registry.shipped("datasets")
    monkeypatch.setattr(
        registry,
        "shipped",
        lambda kind: {"models": known, "datasets": shipped}.get(kind, {}),
    )
    return made


def test_victims_are_trained_in_order_and_then_found(cards: dict[str, ModelCard]) -> None:
    data = registry.find("datasets", "phantom_chest")
    with pytest.raises(VictimError, match="train first"):
        load_victim("first", data)
    order = missing_victims(["second", "chest_resnet", "first", "not a card"])
    assert [card.name for card in order] == ["first", "second"]
    for card in order:
        train_missing(card, data=None)
    assert missing_victims(["second", "first"]) == []
    loaded = load_victim("second", data)
    assert describe("second", data) == (loaded.card, loaded.sha256)
    assert loaded.card.measured is not None
    again = load_victim("second", data)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            loaded.victim.module.state_dict().values(),
            again.victim.module.state_dict().values(),
            strict=True,
        )
    )


def test_another_recipe_or_start_finds_no_old_weights(cards: dict[str, ModelCard]) -> None:
    first, second = cards["first"], cards["second"]
    assert trained_here.home_of(first) != trained_here.home_of(second)
    renamed = first.model_copy(update={"title": "another title"})
    assert trained_here.home_of(first) == trained_here.home_of(renamed)
    longer = first.model_copy(update={"recipe": Recipe(epochs=2)})
    before = trained_here.home_of(second)
    registry.shipped("models")["first"] = longer
    assert trained_here.home_of(second) != before


def test_a_damaged_card_in_the_cache_is_named(cards: dict[str, ModelCard]) -> None:
    home = trained_here.home_of(cards["first"])
    home.mkdir(parents=True)
    (home / "first.json").write_text("{", "utf-8")
    with pytest.raises(VictimError, match="train first"):
        load_victim("first", registry.find("datasets", "phantom_chest"))


def test_weights_of_another_number_of_classes_start_all_but_the_last_layer() -> None:
    from robustbench_med.models import weights
    from robustbench_med.models.load import ZOO, untrained

    shipped: ModelCard = registry.find("models", "pneumonia_resnet")
    data = registry.find("datasets", shipped.dataset)
    other = data.model_copy(update={"classes": ("a", "b", "c")})
    path = ZOO / shipped.weights
    with pytest.raises(VictimError, match="outputs"):
        weights.read(untrained(shipped, other).module, path)
    module = untrained(shipped, other).module
    last = [key for key in module.state_dict() if key.startswith("fc.")]
    fresh = {key: module.state_dict()[key].clone() for key in last}
    weights.read(module, path, other_head=True)
    stored = load_victim("pneumonia_resnet", data).victim.module.state_dict()
    for key, value in module.state_dict().items():
        assert torch.equal(value, fresh[key] if key in last else stored[key]), key
