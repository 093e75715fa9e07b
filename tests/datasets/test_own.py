"""The card of a user's own file follows its statements; wrong statements are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.npz import read
from robustbench_med.datasets.own import MAX_CLASSES, card_of
from robustbench_med.errors import DataError, VictimError
from robustbench_med.objectives.decide import class_masks

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
    ({"val_labels": np.arange(MAX_CLASSES + 1)}, "expected labels 0..9999, got 10000"),
    (
        {"info": '{"classes": ["a", "b", "a"]}'},
        "expected classes of different names, got 'a' twice",
    ),
    ({"info": '{"channels": 0}'}, "expected channels as a list of names or a number >= 1, got 0"),
    ({"info": '{"channels": 2}'}, r"expected 2 channels on the last axis .* got \(8, 6\)"),
    ({"info": '{"native_range": [5, 1]}'}, "expected native_range as a short text .* got \\[5, 1"),
    ({"info": '{"native_range": ""}'}, "expected native_range as a short text"),
    ({"info": '{"bit_depth": 12}'}, r"expected bit_depth in 1\.\.8 of uint8 images, got 12"),
    ({"info": '{"bit_depth": 1.5}'}, r"expected bit_depth in 1\.\.8 of uint8 images, got 1.5"),
    ({"info": '{"task": "segmentation"}'}, "expected the key 'test_masks'"),
    ({"info": '{"task": "multi-label"}'}, "states multi-label, got one column"),
]


def test_card_of_a_file_without_info(save: Save) -> None:
    card = card_of(save("My set (2).npz"))
    assert (card.name, card.title) == ("my_set_2", card.title)
    assert re.fullmatch(r"My set \(2\) \(own file [0-9a-f]{6}\)", card.title)
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


def test_channels_first_are_refused(save: Save) -> None:
    with pytest.raises(DataError, match=r"expected channels last, got \(3, 28, 28\) for an image"):
        card_of(save(test_images=np.zeros((4, 3, 28, 28), np.uint8)))


def test_card_of_findings(save: Save) -> None:
    findings = np.tri(4, dtype=np.uint8)
    columns = {f"{split}_labels": findings for split in ("train", "val", "test")}
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


SPLITS = ("train", "val", "test")


def masked(save: Save, masks: np.ndarray[Any, Any], **changed: Any) -> Path:  # noqa: ANN401
    """Save a file whose every split has these masks."""
    every = {f"{split}_masks": masks for split in SPLITS}
    return save(**{f"{split}_labels": None for split in SPLITS}, **(every | changed))


def lesions(*tail: int, value: int = 1) -> np.ndarray[Any, Any]:
    """Return masks `(4, 8, 6)` with a lesion of one class each, and further axes."""
    masks = np.zeros((4, 8, 6, *tail), np.uint8)
    masks[:, 2:5, 1:4] = value
    return masks


def test_masks_of_0_and_255_are_refused_in_named_and_own_files(save: Save) -> None:
    rule = (
        "expected class ids, got only 0 and 255 in the masks: 255 means ignored; save the lesion as"
    )
    path = masked(save, lesions(value=255), info='{"classes": ["background", "lesion"]}')
    with pytest.raises(DataError, match=rule):
        card_of(path)
    with pytest.raises(DataError, match=f"val_masks: {rule}"):
        read(path, "val", masks=True)
    some = lesions()
    some[:, 0] = 255
    labels = load_dataset(str(masked(save, some))).arrays("test").labels
    assert np.unique(labels).tolist() == [-1, 0, 1]


def test_more_classes_than_a_byte_holds_are_refused_of_masks(save: Save) -> None:
    names = [f"c{i}" for i in range(256)]
    info = json.dumps({"classes": names[:255]})
    assert len(card_of(masked(save, lesions(), info=info)).classes) == 255
    for path in (
        masked(save, lesions(), info=json.dumps({"classes": names})),
        masked(save, np.arange(4 * 8 * 6).reshape(4, 8, 6) * 2 % 257),
    ):
        with pytest.raises(DataError, match=r"expected at most 255 classes of masks .* got 25[67]"):
            card_of(path)
    with pytest.raises(VictimError, match="expected at most 255 classes of masks, got 256"):
        class_masks(torch.zeros(1, 256, 2, 2))
    assert class_masks(torch.eye(255)[-1].view(1, 255, 1, 1)).item() == 254


@pytest.mark.parametrize("tail", [(), (1,), (3,)])
def test_a_last_axis_of_one_entry_is_dropped_of_masks(save: Save, tail: tuple[int, ...]) -> None:
    images = {f"{split}_images": np.zeros((4, 8, 6, *tail), np.uint8) for split in SPLITS}
    field_of_view = np.ones((4, 8, 6, 1), np.uint8)
    field_of_view[:, 0] = 0
    data = load_dataset(str(masked(save, lesions(1), test_fov=field_of_view, **images)))
    assert (data.card.size, data.card.channels) == ((8, 6), 3 if tail == (3,) else 1)
    expected = lesions().astype(np.int16)
    expected[:, 0] = -1
    assert np.array_equal(data.arrays("test").labels, expected)
    assert data.batch("test").x.shape[2:] == (8, 6)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_one_hot_masks_do_not_make_a_volume_of_colour_images(save: Save, k: int) -> None:
    images = {f"{split}_images": np.zeros((4, 8, 6, 3), np.uint8) for split in SPLITS}
    with pytest.raises(DataError, match=r"expected class ids of shape \(n, h, w\), got \(4, 8, 6"):
        card_of(masked(save, lesions(k), **images))
    volumes = {f"{split}_images": np.zeros((4, 8, 6, 5), np.uint8) for split in SPLITS}
    assert card_of(masked(save, lesions(5), **volumes)).size == (8, 6, 5)


@pytest.mark.parametrize("mm", ["Infinity", "NaN", "true", "0", "1" + "0" * 400])
def test_a_spacing_that_is_no_length_is_refused(save: Save, mm: str) -> None:
    with pytest.raises(DataError, match="expected spacing as 2 numbers > 0"):
        card_of(masked(save, lesions(), info=f'{{"spacing": [1, {mm}]}}'))
    assert card_of(masked(save, lesions(), info='{"spacing": [1, 0.5]}')).spacing == (1.0, 0.5)


@pytest.mark.parametrize("name", ["all", "T1+T2", "T1=", " T1", ""])
def test_a_channel_name_that_no_case_can_choose_is_refused(save: Save, name: str) -> None:
    images = {f"{split}_images": np.zeros((4, 8, 6, 2), np.uint8) for split in SPLITS}
    with pytest.raises(DataError, match=f"expected channel names .* got {re.escape(repr(name))}"):
        card_of(masked(save, lesions(), info=json.dumps({"channels": ["T2", name]}), **images))


@pytest.mark.parametrize("lacking", SPLITS)
def test_the_split_that_lacks_masks_is_named(save: Save, lacking: str) -> None:
    path = masked(save, lesions(), **{f"{lacking}_masks": None})
    with pytest.raises(DataError, match=f"expected the key '{lacking}_masks'"):
        card_of(path)
