"""Images in their own unit: the values of a file, [0,1] and back, and what a card refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import DataError
from robustbench_med.stored_images import StoredImages, as_floats, to_image_units, to_stored

HU = NativeRange(unit="HU", low=-1024, high=3071)
RANGES = (
    (HU, np.int16),
    (NativeRange(unit="grey level", low=0, high=4095), np.uint16),
    (NativeRange(unit="grey level", low=0, high=65535), np.int32),
    (NativeRange(unit="grey level", low=0, high=255), np.uint8),
    (NativeRange(unit="SUV", low=0, high=20, step=0.1), np.float32),
)
NAMES = ["hu", "12 bit", "16 bit", "8 bit", "suv"]


def every_value(native: NativeRange, dtype: type[np.generic]) -> NDArray[Any]:
    return (native.low + np.arange(native.levels + 1) * native.step).astype(dtype)


@pytest.mark.parametrize(("native", "dtype"), RANGES, ids=NAMES)
def test_every_stored_value_comes_back(native: NativeRange, dtype: type[np.generic]) -> None:
    stored = every_value(native, dtype)
    x = to_image_units(torch.from_numpy(stored), native)
    assert x.dtype == torch.float32
    assert float(x[0]) == 0
    assert float(x[-1]) == 1
    assert np.array_equal(to_stored(x, native).numpy().astype(dtype), stored)


@pytest.mark.parametrize(("native", "dtype"), RANGES, ids=NAMES)
def test_rounding_gives_the_very_float_that_is_read(
    native: NativeRange, dtype: type[np.generic]
) -> None:
    x = to_image_units(torch.from_numpy(every_value(native, dtype)), native)
    beside = (x + 0.3 / native.levels).clamp(0, 1)
    assert torch.equal((beside * native.levels).round() / native.levels, x)


def test_uint8_with_a_native_range_is_read_as_without() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    native = NativeRange(unit="grey level", low=0, high=255)
    read = StoredImages(stored, np.arange(1), native=native)[:]
    assert torch.equal(read, as_floats(stored, 1))


def test_stored_images_of_several_channels_keep_their_native_range() -> None:
    stored = np.array([[[[-1024, 3071], [0, 1000]]]], dtype=np.int16)  # (1, h=1, w=2, c=2)
    images = StoredImages(stored, np.arange(1), 2, native=HU).select(torch.tensor([0]))
    expected = torch.tensor([[[[0.0, 1024 / 4095]], [[1.0, 2024 / 4095]]]])
    assert torch.equal(images[:], expected)


def test_the_card_derives_words_and_bits() -> None:
    card = card_of(native={"unit": "HU", "low": -1024, "high": 3071})
    assert (card.native_range, card.bit_depth, card.levels) == ("HU -1024..3071", 12, 4095)
    assert DatasetCard.model_validate(card.model_dump()) == card
    assert "native" not in card_of().model_dump()
    assert card_of().levels == 255


def card_of(**fields: Any) -> DatasetCard:  # noqa: ANN401 - any field
    usual = {"name": "toy", "title": "Toy", "modality": "CT", "task": "single_label"}
    return DatasetCard.model_validate(
        {**usual, "classes": ("a", "b"), "channels": 1, "size": (8, 6), **fields}
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"low": 5, "high": 5}, "expected low < high, got 5 and 5"),
        ({"low": 0, "high": 1, "step": 0.3}, "a whole number of steps, got 3.33333 steps"),
        ({"low": 0, "high": 2**31}, "float32 holds exactly, at most 16777216 steps"),
        ({"low": float("nan"), "high": 1}, "finite"),
        ({"low": 0, "high": 1, "step": 0}, "greater than 0"),
    ],
)
def test_a_range_that_floats_cannot_hold_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        NativeRange(unit="HU", **fields)


def test_a_card_that_states_two_ranges_is_refused() -> None:
    native = {"unit": "HU", "low": -1024, "high": 3071}
    with pytest.raises(ValueError, match="expected bit_depth 12 of native, got 8"):
        card_of(native=native, bit_depth=8)


def save(path: Path, info: dict[str, Any], **changed: Any) -> Path:  # noqa: ANN401 - any array
    arrays: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(-1024, 3072, (4, 8, 6)).astype(np.int16)
        arrays[f"{split}_labels"] = np.array([0, 1, 0, 1])
    np.savez(path, info=np.array(json.dumps(info)), **(arrays | changed))
    return path


NATIVE = {"native": {"unit": "HU", "low": -1024, "high": 3071}}


def test_an_npz_of_hu_is_read_in_its_stored_type(tmp_path: Path) -> None:
    data = load_dataset(save(tmp_path / "ct.npz", NATIVE)).scored_on("test")
    stored = data.arrays("test").images
    assert stored.dtype == np.int16
    batch = data.batch("test", stored=True)
    expected = (torch.from_numpy(stored).double() + 1024) / 4095
    assert torch.allclose(batch.x[:][:, 0].double(), expected, atol=1e-7)
    assert data.card.native_range == "HU -1024..3071"
    assert not [note for note in data.card.notes if "scaled" in note]


@pytest.mark.parametrize(
    ("info", "changed", "text"),
    [
        ({}, {}, 'state what is stored in info, native as {"unit": "HU", "low": -1024'),
        ({"native": "HU"}, {}, "info: expected native as {"),
        ({"native": {"unit": "HU"}}, {}, "info: native: expected low, got none"),
        ({**NATIVE, "bit_depth": 12}, {}, "expected native or bit_depth, got both"),
        (
            NATIVE,
            {"test_images": np.full((4, 8, 6), 3072, np.int16)},
            "expected values in HU -1024..3071, the range that the card states, got 3072..3072",
        ),
        (
            NATIVE,
            {"test_images": np.full((4, 8, 6), np.nan, np.float32)},
            "expected finite images, got NaN or Inf",
        ),
    ],
)
def test_a_file_whose_values_are_not_its_range_is_refused(
    tmp_path: Path, info: dict[str, Any], changed: dict[str, Any], text: str
) -> None:
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        load_dataset(save(tmp_path / "ct.npz", info, **changed)).arrays("test")
    assert "\n" not in str(caught.value)
