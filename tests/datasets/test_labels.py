"""Unambiguous labels and masks are read and noted; ambiguous ones are refused in one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robustbench_med.datasets.dataset import Dataset, SplitName
from robustbench_med.datasets.labels import join_classes
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import DataError

Save = Callable[..., Path]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
IDS = np.array([0, 1, 2, 1])
ONE_HOT = np.eye(3)[IDS]


def labelled(save: Save, *labels: NDArray[Any], **changed: Any) -> Path:  # noqa: ANN401
    """Save a file with these labels: of all splits, or of train, val and test."""
    every = labels * 3 if len(labels) == 1 else labels
    return save(
        **{f"{split}_labels": labels for split, labels in zip(SPLITS, every, strict=True)},
        **changed,
    )


def masked(save: Save, masks: NDArray[Any], **changed: Any) -> Path:  # noqa: ANN401
    every = {f"{split}_masks": masks for split in SPLITS}
    return save(**({f"{split}_labels": None for split in SPLITS} | every | changed))


def lesions() -> NDArray[np.uint8]:
    masks = np.zeros((4, 8, 6), np.uint8)
    masks[:, 2:5, 1:4] = 1
    return masks


def info(**stated: object) -> str:
    return json.dumps(stated)


def scored(path: Path) -> Dataset:
    return load_dataset(path).scored_on("test")


def notes_of(path: Path) -> str:
    return " | ".join(scored(path).card.notes)


# --- one-hot and findings -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.bool_, np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_one_hot_rows_are_class_labels(save: Save, kind: type[np.generic], k: int) -> None:
    ids = np.array([0, 1, 1, 0]) if k == 2 else np.array([0, 1, 2, k - 1])
    path = labelled(save, np.eye(k)[ids].astype(kind))
    data = load_dataset(path)
    assert (data.card.task, len(data.card.classes)) == ("single_label", k)
    assert all(data.arrays(split).labels.tolist() == ids.tolist() for split in SPLITS)
    assert f"labels of {k} columns are one-hot" in notes_of(path)


def test_one_hot_rows_of_every_split_alone_are_class_labels(save: Save) -> None:
    findings = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    for at in range(3):
        every = [ONE_HOT.astype(int)] * 3
        every[at] = findings
        assert load_dataset(labelled(save, *every)).card.task == "multi_label"
    empty = np.zeros((4, 3), int)  # an image without any finding
    assert load_dataset(labelled(save, empty, ONE_HOT, ONE_HOT)).card.task == "multi_label"


@pytest.mark.parametrize("task", ["multi-label", "multi_label", "Multi-Label, binary-class"])
def test_info_says_that_rows_are_findings(save: Save, task: str) -> None:
    data = load_dataset(labelled(save, ONE_HOT, info=info(task=task)))
    assert data.card.task == "multi_label"
    assert data.arrays("test").labels.tolist() == ONE_HOT.astype(int).tolist()


def test_a_one_hot_row_of_minus_one_has_no_label(save: Save) -> None:
    some = ONE_HOT.astype(int)
    some[1] = -1
    path = labelled(save, some)
    assert load_dataset(path).arrays("test").labels.tolist() == [0, -1, 2, 1]
    assert "1 of 4 images of test have no label" in notes_of(path)


@pytest.mark.parametrize(
    ("labels", "stated", "message"),
    [
        ((ONE_HOT * 0.9 + 0.03,), {}, "got fractions such as 0.93; soft labels"),
        ((np.tri(4, 3),), {"task": "single-label"}, "states single-label, got rows that do not"),
        ((ONE_HOT, ONE_HOT, IDS), {}, r"labels of one kind .* train \(4, 3\), val .* test \(4,\)"),
        ((ONE_HOT, ONE_HOT, ONE_HOT[:, :2]), {}, "expected labels of one kind in all splits"),
        ((ONE_HOT,), {"classes": ["a", "b"]}, "got 2 names for 3 columns"),
        ((np.tri(4, 3),), {"classes": ["a", "b"]}, "got 2 names for 3 columns"),
    ],
)
def test_rows_of_two_meanings_are_refused(
    save: Save, labels: tuple[NDArray[Any], ...], stated: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(labelled(save, *labels, info=info(**stated)))


# --- class ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_whole_floats_are_class_ids_with_a_note(save: Save, kind: type[np.floating[Any]]) -> None:
    path = labelled(save, IDS.astype(kind))
    assert load_dataset(path).arrays("test").labels.tolist() == IDS.tolist()
    assert "test_labels: whole float" in notes_of(path)


def test_what_torch_ignores_has_no_label_and_is_counted(save: Save) -> None:
    path = labelled(save, np.array([0, -100, 1, -1]))
    assert load_dataset(path).arrays("test").labels.tolist() == [0, -1, 1, -1]
    assert "2 of 4 images of test have no label (-1) and are not scored" in notes_of(path)


TWO = {"classes": ["healthy", "ill"]}


@pytest.mark.parametrize(
    ("labels", "stated", "message"),
    [
        ([-1, 1, 1, -1], {}, r"got only -1 and 1: -1 means unlabelled"),
        ([-1, 1, 1, -1], TWO, r"got only -1 and 1: -1 means unlabelled"),
        ([-1.0, 1.0, 1.0, -1.0], TWO, r"got only -1 and 1: -1 means unlabelled"),
        ([[-1, 1], [1, -1], [1, 1], [-1, -1]], {}, r"got only -1 and 1: -1 means unlabelled"),
        ([1, 2, 3, 1], {}, r"counted from 0, got 1, 2, 3 without 0; subtract 1"),
        ([1, 2, 2, 1], {}, r"counted from 0, got 1, 2 without 0; subtract 1"),
        ([1, 2, 2, 1], TWO, r"expected labels in 0\.\.1 .* got 1\.\.2"),
        ([5, 6, 7, -1], {}, r"counted from 0, got 5, 6, 7 without 0"),
        ([0, 255, 0, 255], {}, r"without large gaps, got 0, 255; 255 means ignored only in masks"),
        ([0, 1, 255, 0], {}, r"without large gaps, got 0, 1, 255; 255 means ignored only in masks"),
        ([0, 100, 200, 300], {}, r"without large gaps, got 0, 100, 200, 300; count"),
        ([0, -2, 1, 1], {}, r"expected labels in 0\.\.1 .* got -2\.\.1"),
    ],
)
def test_codes_that_would_hide_a_class_are_refused(
    save: Save, labels: list[Any], stated: dict[str, Any], message: str
) -> None:
    path = labelled(save, np.array(labels), info=info(**stated))
    with pytest.raises(DataError, match=message):
        load_dataset(path).arrays("test")


def test_minus_one_beside_two_classes_is_unlabelled(save: Save) -> None:
    labels = np.array([-1, 1, 0, -1])
    assert "2 of 4 images of test have no label" in notes_of(labelled(save, labels))
    # of three classes 1 alone may be labelled in a split
    some = labelled(save, IDS, IDS, np.array([-1, 1, 1, -1]))
    assert "no image of test is of class 0, class 2" in notes_of(some)


def test_unknown_findings_are_counted(save: Save) -> None:
    labels = np.array([[1, -1, 1], [0, 1, 1], [-1, -1, -1], [0, 0, -1]])
    text = notes_of(labelled(save, labels))
    assert "1 of 4 images of test have no label" in text
    assert "2 findings of 2 of 4 images of test are not known (-1) and not counted" in text


def test_a_class_that_a_split_lacks_is_noted_and_stays_a_class(save: Save) -> None:
    dataset = scored(labelled(save, IDS, IDS, np.array([0, 1, 1, 0])))
    assert dataset.card.absent == ("class 2",)
    assert len(dataset.card.classes) == 3
    assert "no image of test is of class 2: left out of means over classes" in dataset.card.notes


# --- masks --------------------------------------------------------------------------------------


def planes(ids: NDArray[Any], k: int, axis: int) -> NDArray[Any]:
    return np.moveaxis(np.eye(k, dtype=np.uint8)[ids], -1, axis)


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("kind", [np.uint8, np.bool_, np.float32])
@pytest.mark.parametrize("tail", [(), (3,)])
def test_one_hot_masks_are_class_ids(
    save: Save, axis: int, kind: type[np.generic], tail: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, *tail), dtype=np.uint8)
    every = {f"{split}_images": images for split in SPLITS}
    for k in (2, 3):
        ids = lesions() * (k - 1)
        path = masked(save, planes(ids, k, axis).astype(kind), **every)
        data = load_dataset(path)
        assert (data.card.size, len(data.card.classes)) == ((8, 6), k)
        assert np.array_equal(data.arrays("test").labels, ids)
        assert f"{k} one-hot planes read as class ids" in notes_of(path)


@pytest.mark.parametrize("axis", [1, -1])
def test_one_hot_masks_of_volumes_are_class_ids(save: Save, axis: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 7), dtype=np.uint8)
    ids = (images > 127).astype(np.uint8)
    path = masked(save, planes(ids, 2, axis), **{f"{split}_images": images for split in SPLITS})
    assert load_dataset(path).card.size == (6, 8, 7)
    assert np.array_equal(load_dataset(path).arrays("test").labels, ids)


def some_as(value: int) -> NDArray[np.uint8]:
    """Return masks of which the first two hold their lesion as another value."""
    masks = lesions()
    masks[:2] = masks[:2] * value
    return masks


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            some_as(255),
            "got only 0 and 255 in 2 of 4 masks: 255 means ignored; save the lesion as 1",
        ),
        (
            lesions() * 255,
            "got only 0 and 255 in the masks: 255 means ignored; save the lesion as 1",
        ),
        (lesions() * 127, "without large gaps, got 0, 127"),
        (lesions().astype(np.int16) * 2 - 1, "expected masks of 0 and 1|whose background is 0"),
        (lesions() + 1, "expected masks whose background is 0, got 1, 2 without 0"),
        (lesions() * 0.5, "got fractions such as 0.5"),
        (np.stack([lesions()] * 2, 1), r"expected class ids of shape \(n, h, w\), got \(4, 2, 8"),
        (lesions()[:, :7], r"expected class ids of shape \(n, h, w\), got \(4, 7, 6\)"),
    ],
)
def test_masks_that_would_hide_a_class_are_refused(
    save: Save, masks: NDArray[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(masked(save, masks)).arrays("test")


def test_a_border_of_255_is_ignored_and_counted(save: Save) -> None:
    masks = lesions()
    masks[:, 0] = 255
    masks[3, 2:5, 1:4] = 0  # no lesion here: 0 and 255 alone
    dataset = scored(masked(save, masks))
    assert np.unique(dataset.arrays("test").labels).tolist() == [-1, 0, 1]
    text = "12.50% of the pixels of 4 of 4 masks of test are ignored"
    assert any(note.startswith(text) for note in dataset.card.notes)


def test_masks_without_any_label_are_counted(save: Save) -> None:
    masks = lesions().astype(np.int16)
    masks[1] = -100
    assert "1 of 4 images of test have no mask" in notes_of(masked(save, masks))


def test_regions_that_no_mask_of_the_split_holds_count_nowhere(save: Save) -> None:
    names = ["background", "lesion", "oedema", "necrosis"]
    dataset = scored(masked(save, lesions(), info=info(classes=names)))
    assert dataset.card.parts == {"lesion": (1,)}
    assert dataset.card.classes == tuple(names)
    assert "in no mask of test, and counted nowhere: oedema, necrosis" in dataset.card.notes
    whole = {"whole": [1, 2], "oedema": [2]}
    dataset = scored(masked(save, lesions(), info=info(classes=names, regions=whole)))
    assert dataset.card.parts == {"whole": (1, 2)}
    assert "in no region and not scored: necrosis" in dataset.card.notes


def test_a_split_without_any_region_is_noted(save: Save) -> None:
    path = masked(save, lesions(), test_masks=np.zeros((4, 8, 6), np.uint8))
    assert scored(path).card.parts == {"class 1": (1,)}
    assert "no mask of test holds a region (class 1)" in notes_of(path)


def test_masks_have_names_of_their_own(save: Save) -> None:
    stated = info(classes=["nevus", "melanoma", "other"], mask_classes=["background", "lesion"])
    every = {f"{split}_labels": IDS for split in SPLITS}
    path = masked(save, lesions(), info=stated, **every)
    card = load_dataset(path).card
    assert (card.task, card.classes) == ("segmentation", ("background", "lesion"))
    assert any("labels beside its masks" in note for note in card.notes)
    stated = info(classes=["nevus", "melanoma", "other"], task="single-label")
    card = load_dataset(masked(save, lesions(), info=stated, **every)).card
    assert (card.task, card.classes) == ("single_label", ("nevus", "melanoma", "other"))


def test_notes_are_logged_once(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    path = labelled(save, ONE_HOT)
    path = path.rename(path.with_name("said_once.npz"))
    for _ in range(2):
        scored(path).log_notes()
    lines = [line for line in caplog.messages if line.startswith("said_once: ")]
    assert len([line for line in lines if "one-hot" in line]) == 1
    assert all(record.levelno == logging.WARNING for record in caplog.records)


# --- joined classes ------------------------------------------------------------------------------


def test_joined_classes_keep_what_is_unlabelled() -> None:
    labels = np.array([2, -1, 0, 1], dtype=np.int64)
    assert join_classes(labels, ((1,), (0, 2)), "toy").tolist() == [1, -1, 1, 0]
    assert labels.tolist() == [2, -1, 0, 1]


@pytest.mark.parametrize(
    ("stored_ids", "message"),
    [
        (((0,), (1, 0)), "toy: expected stored_ids each in one class, got 0 twice"),
        (((0,), (1, 2)), r"toy: expected labels in stored_ids \[0, 1, 2\] or -1, got 3"),
    ],
)
def test_joined_classes_that_are_wrong(
    stored_ids: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        join_classes(np.array([0, 3]), stored_ids, "toy")
