"""Images without content are refused or noted; copies and common patients are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import DataError

Save = Callable[..., Path]
RNG = np.random.default_rng(1)
GREY = RNG.integers(1, 256, (4, 8, 6), dtype=np.uint8)
UNIT = RNG.uniform(0.2, 0.8, (4, 8, 6))
SINGLE = UNIT.astype(np.float32)


def notes(save: Save, images: NDArray[Any], **changed: Any) -> str:  # noqa: ANN401
    path = save(test_images=images, **changed)
    return " | ".join(load_dataset(path).scored_on("test").card.notes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UNIT.astype(np.uint8), "all 4 images are 0 everywhere as .* cast to uint8"),
        (np.full((4, 8, 6), 7, np.uint8), "all 4 images are 7 everywhere"),
        (np.full((4, 8, 6), 0.5, np.float32), "all 4 images are 0.5 everywhere"),
        (np.ones((4, 8, 6), np.uint8) * np.arange(4, dtype=np.uint8)[:, None, None], "throughout"),
        ((GREY > 99).astype(np.uint8), "got only 0 and 1, as .* cast to uint8; save"),
        (np.round(UNIT).astype(np.uint8), "got only 0 and 1"),
        (SINGLE / 255, "got at most 0.00.*divided by 255 twice"),
        (np.repeat(GREY[:1], 4, 0), "all 4 are copies of one"),
    ],
)
def test_images_without_content_are_refused(save: Save, images: NDArray[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        notes(save, images)
    assert "\n" not in str(caught.value)


def test_a_split_that_a_threshold_is_chosen_on_must_show_something(save: Save) -> None:
    data = load_dataset(save(val_images=np.zeros((4, 8, 6), np.uint8)))
    data.scored_on("test")
    with pytest.raises(DataError, match=r"toy \(val\): expected images with content"):
        data.scored_on("test", also=("val",))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GREY % 11, "the brightest pixel of test is 10 of 255"),
        (SINGLE / 16, "the brightest pixel of test is 0.05 of 1"),
        ((GREY > 99).astype(np.uint8) * 255, "two values alone, 0 and 255"),
        (np.round(SINGLE), "two values alone, 0.0 and 1.0"),
        (np.concatenate([GREY[:3], GREY[:1] * 0]), "1 of 4 images of test are of one value"),
        (np.concatenate([GREY[:3], GREY[:1]]), "1 of 4 images of test are copies of another"),
    ],
)
def test_images_with_little_content_are_noted(
    save: Save, images: NDArray[Any], message: str
) -> None:
    assert any(message in note for note in notes(save, images).split(" | "))


def test_sound_images_are_not_talked_about(save: Save) -> None:
    for images in (GREY, SINGLE, UNIT):
        assert notes(save, images) == "a user's own file, used without a known checksum"


def test_what_splits_have_in_common_is_counted(save: Save) -> None:
    path = save(
        test_images=GREY,
        train_images=np.concatenate([GREY[:2], GREY[:2] // 2]),
        test_patients=np.array(["a", "b", "c", "c"]),
        train_patients=np.array(["c", "d", "a", "e"]),
        val_patients=np.array(["x", "y", "z", "z"]),
    )
    result = load_dataset(path).scored_on("test").card.notes
    assert "2 of 4 images of test are copies of images of train" in result
    assert "2 of 3 patients of test are in train too" in result
    assert not any("val" in note for note in result)


def test_a_defect_of_an_unused_split_does_not_matter(save: Save) -> None:
    path = save(train_images=np.full((4, 8, 6), np.nan, np.float32))
    load_dataset(path).scored_on("test")


# --- range --------------------------------------------------------------------------------------


@pytest.mark.parametrize("extreme", [1 + 1.2e-7, 1 + 9e-7, -1e-9, -9e-7])
def test_rounding_outside_the_range_is_clipped(save: Save, extreme: float) -> None:
    images = SINGLE.copy()
    images[0, 0, 0] = extreme
    result = load_dataset(save(test_images=images)).arrays("test").images
    assert result[0, 0, 0] == np.float32(extreme > 0.5)
    assert result.min() >= 0
    assert result.max() <= 1
    assert np.array_equal(result[1:], images[1:])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            SINGLE.clip(0, 0.5) + np.float32(0.500003),
            r"got 0\.7\d+\.\.1\.000003; clip the images if",
        ),
        (SINGLE * 255, r"got \d+\.\d+\.\.2\d\d\.\d+; divide grey levels 0..255 by 255"),
        (SINGLE * 2 - 1, r"; divide images in \[-1,1\] by 2"),
        ((SINGLE - 0.5) / 0.1, r"; standardised images have lost their range"),
        (SINGLE * 4000 - 1000, r"; rescale all images by one range, such as a window of HU"),
    ],
)
def test_a_range_that_is_not_the_units_is_named(
    save: Save, images: NDArray[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(save(test_images=images)).arrays("test")


# --- what info states of images -----------------------------------------------------------------


def test_info_states_range_depth_channels_and_spacing(save: Save) -> None:
    stated = {
        "native_range": "HU -160..240",
        "bit_depth": 12,
        "channels": ["soft", "bone"],
        "spacing": [0.7, 0.7],
    }
    images = {f"{split}_images": np.stack([SINGLE] * 2, -1) for split in ("train", "val", "test")}
    card = load_dataset(save(info=json.dumps(stated), **images)).card
    assert (card.native_range, card.bit_depth) == ("HU -160..240", 12)
    assert (card.channel_names, card.spacing) == (("soft", "bone"), (0.7, 0.7))
    card = load_dataset(save(info='{"native_range": [-160, 240]}', **images)).card
    assert (card.native_range, card.bit_depth) == ("-160..240", 16)


def volumes(*shape: int) -> dict[str, NDArray[Any]]:
    images = RNG.integers(0, 256, (4, *shape), dtype=np.uint8)
    return {f"{split}_images": images for split in ("train", "val", "test")}


@pytest.mark.parametrize("slices", [5, 12, 16])
def test_slices_are_no_channels_unless_stated(save: Save, slices: int) -> None:
    images = volumes(9, 7, slices)
    both = rf"the last axis of \(9, 7, {slices}\) is {slices} channels or {slices} slices; say so"
    with pytest.raises(DataError, match=both):
        load_dataset(save(**images))
    card = load_dataset(save(info=f'{{"channels": {slices}}}', **images)).card
    assert (card.size, card.channels) == ((9, 7), slices)
    names = json.dumps({"channels": [f"band {i}" for i in range(slices)]})
    assert load_dataset(save(info=names, **images)).card.channels == slices
    data = load_dataset(save(info='{"channels": 1}', **images))
    assert (data.card.size, data.card.channels) == ((9, 7, slices), 1)
    assert data.batch("test").x.shape == (4, 1, 9, 7, slices)
    masks = {f"{split}_masks": (images["test_images"] > 99) for split in ("train", "val", "test")}
    assert load_dataset(save(**images, **masks)).card.size == (9, 7, slices)


@pytest.mark.parametrize("channels", [2, 4])
def test_few_channels_are_noted(save: Save, channels: int) -> None:
    card = load_dataset(save(**volumes(9, 7, channels))).card
    assert (card.size, card.channels) == ((9, 7), channels)
    assert any(f"is taken for {channels} channels" in note for note in card.notes)
    assert not any(
        "taken for" in note for note in load_dataset(save(**volumes(9, 7, 3))).card.notes
    )


def test_a_volume_of_few_slices_is_noted(save: Save) -> None:
    card = load_dataset(save(**volumes(6, 20, 18))).card
    assert (card.size, card.channels) == ((6, 20, 18), 1)
    assert any("are taken for volumes of 6 slices" in note for note in card.notes)


def test_one_channel_first_is_dropped(save: Save) -> None:
    data = load_dataset(save(**volumes(1, 20, 18)))
    assert (data.card.size, data.card.channels) == ((20, 18), 1)
    assert data.batch("test").x.shape == (4, 1, 20, 18)


def test_two_files_of_one_name_have_two_titles(save: Save, tmp_path: Path) -> None:
    first = load_dataset(save()).card.title
    (tmp_path / "elsewhere").mkdir()
    moved = save().rename(tmp_path / "elsewhere" / "toy.npz")
    assert load_dataset(moved).card.title == first
    with np.load(moved) as arrays:
        np.savez(tmp_path / "toy.npz", **arrays)  # the same, packed otherwise
    assert load_dataset(tmp_path / "toy.npz").card.title == first
    assert load_dataset(save(test_images=GREY)).card.title != first


def test_splits_that_are_only_compared_are_not_cached(save: Save) -> None:
    data = load_dataset(save())
    data.scored_on("test", also=("val",))
    assert sorted(data._splits) == ["test", "val"]
