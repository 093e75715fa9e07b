"""The card of a user's file: what it says of itself, and what of that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.own import MAX_CLASSES, card_of
from robustbench_med.errors import DataError

Save = Callable[..., Path]
CARD_RULES: list[tuple[dict[str, Any], str]] = [
    ({"info": "{"}, "info: expected JSON text"),
    ({"info": "[" * 100_000}, "info: expected JSON text"),
    ({"info": "[]"}, "info: expected a JSON object, got list"),
    ({"info": np.array([1])}, "info: expected one JSON text"),
    ({"info": '{"classes": "ab"}'}, "expected classes to be a list of names, got 'ab'"),
    ({"info": '{"classes": ["only"]}'}, "expected at least two classes, got 1"),
    ({"info": '{"normal": 3}'}, r"expected normal to be a class 0\.\.2 or null, got 3"),
    ({"info": '{"normal": true}'}, "expected normal to be a class .* got True"),
    ({"val_labels": np.full(4, MAX_CLASSES)}, "expected labels 0..9999, got 10000"),
]


def test_card_of_a_file_without_info(save: Save) -> None:
    card = card_of(save("My set (2).npz"))
    assert (card.name, card.title) == ("my_set_2", "My set (2) (own file)")
    assert card.classes == ("class 0", "class 1", "class 2")
    assert (card.task, card.channels, card.size, card.bit_depth) == ("single_label", 1, (8, 6), 8)
    assert card.normal is None


def test_card_of_a_file_with_info(save: Save) -> None:
    info = {"classes": ["x", "y", "z"], "licence": "CC0", "source": ["a", "b"], "normal": 2}
    card = card_of(save(info=json.dumps(info), test_images=np.zeros((4, 5, 7, 3), np.float32)))
    assert (card.classes, card.licence, card.source, card.normal) == (
        ("x", "y", "z"),
        "CC0",
        "a; b",
        2,
    )
    assert (card.channels, card.size, card.bit_depth) == (3, (5, 7), 16)


def test_card_of_findings(save: Save) -> None:
    columns = {f"{split}_labels": np.eye(4, dtype=np.uint8) for split in ("train", "val", "test")}
    dataset = load_dataset(str(save(**columns)))
    assert dataset.card.task == "multi_label"
    assert dataset.card.classes == tuple(f"finding {index}" for index in range(4))
    assert dataset.arrays("test").labels.shape == (4, 4)


def test_card_of_a_test_split_alone(save: Save) -> None:
    absent = {
        f"{split}_{what}": None for split in ("train", "val") for what in ("images", "labels")
    }
    dataset = load_dataset(str(save(**absent)))
    assert len(dataset.batch("test")) == 4
    with pytest.raises(DataError, match="expected the key 'val_images'"):
        dataset.arrays("val")


def test_card_of_no_split_at_all(save: Save) -> None:
    keys = {
        f"{split}_{what}": None
        for split in ("train", "val", "test")
        for what in ("images", "labels")
    }
    with pytest.raises(DataError, match="expected the key 'test_images', got masks"):
        card_of(save(**keys, masks=np.zeros(1)))
    with pytest.raises(DataError, match="expected the key 'test_images', got none"):
        card_of(save(**keys))


@pytest.mark.parametrize(("changed", "message"), CARD_RULES)
def test_what_a_file_says_of_itself_is_checked(
    save: Save, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        card_of(save(**changed))
