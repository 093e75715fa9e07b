"""Map-style datasets from Python: torch's, those of MAITE, and those of Hugging Face."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from robustbench_med import api
from robustbench_med.cli import app
from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.saved_data import SavedPictures
from robustbench_med.errors import DataError

N = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 10, 12, 3)).astype(np.uint8)
LABELS = np.arange(N) % 2


class Items:
    """A map-style dataset of whatever a function returns."""

    def __init__(self, item: Any, n: int = N, **attributes: Any) -> None:  # noqa: ANN401
        self.item, self.n = item, n
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> Any:  # noqa: ANN401
        return self.item(row)


def _floats(row: int) -> torch.Tensor:
    return torch.from_numpy(IMAGES[row]).permute(2, 0, 1).float() / 255


FORMS = {
    "torch": lambda k: (_floats(k), int(LABELS[k])),
    "pillow": lambda k: (Image.fromarray(IMAGES[k]), torch.tensor(LABELS[k])),
    "MAITE": lambda k: (_floats(k).numpy(), np.eye(2)[LABELS[k]], {"id": f"scan {k}"}),
    "dict": lambda k: {"image": IMAGES[k], "label": torch.tensor([LABELS[k]])},
}


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_are_those_of_the_items(form: str) -> None:
    dataset = load_dataset(Items(FORMS[form]))
    batch = dataset.batch("test")
    expected = torch.from_numpy(IMAGES).movedim(-1, 1).float() / 255
    torch.testing.assert_close(batch.x, expected)
    assert batch.y.tolist() == LABELS.tolist()
    assert dataset.card.classes == ("class 0", "class 1")
    assert dataset.card.size == (10, 12)
    assert batch.ids[3] == ("scan 3" if form == "MAITE" else "test-000003")


def test_masks_and_volumes() -> None:
    volume = np.random.default_rng(1).random((N, 1, 6, 7, 8)).astype(np.float32)
    masks = (volume[:, 0] > 0.5).astype(np.int64) + (volume[:, 0] > 0.8)
    dataset = load_dataset(Items(lambda k: {"image": volume[k], "mask": masks[k][None]}))
    assert (dataset.card.task, dataset.card.size) == ("segmentation", (6, 7, 8))
    np.testing.assert_array_equal(dataset.arrays("test").labels, masks)


def test_splits_findings_and_names() -> None:
    def item(k: int) -> tuple[Any, Any]:
        return IMAGES[k], np.array([k % 2, 1, 0])

    dataset = load_dataset(
        {"val": Items(item, 4), "test": Items(item)}, classes=["edema", "mass", "cyst"]
    )
    assert (dataset.card.task, dataset.card.classes[0]) == ("multi_label", "edema")
    assert len(dataset.arrays("val")) == 4
    with pytest.raises(DataError, match="expected a split, got only val, test"):
        dataset.arrays("train")
    stated = Items(FORMS["torch"], classes=["fine", "ill"])
    assert load_dataset(stated).card.classes == ("fine", "ill")
    by_index = {"id": "My set", "index2label": {0: "fine", 1: "ill"}}
    card = load_dataset(Items(FORMS["MAITE"], metadata=by_index)).card
    assert (card.name, card.classes) == ("my_set", ("fine", "ill"))


def test_a_dataset_of_hugging_face() -> None:
    arrays = load_dataset(hugging_face()).arrays("test")
    np.testing.assert_array_equal(arrays.images[:], IMAGES)
    assert arrays.labels.tolist() == LABELS.tolist()


def hugging_face(**changed: Any) -> Any:  # noqa: ANN401 - datasets has no types
    """Return a dataset of Hugging Face's library, with other columns if they are given."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    columns = {"image": [Image.fromarray(image) for image in IMAGES], "label": LABELS.tolist()}
    return datasets.Dataset.from_dict(columns | changed, features=features)


def test_a_dataset_that_hugging_face_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = hugging_face()
    splits = datasets.DatasetDict({"validation": data.select(range(4)), "test": data})
    splits.save_to_disk(tmp_path / "My-set")
    dataset = load_dataset(tmp_path / "My-set")
    assert (dataset.card.name, dataset.card.classes) == ("my_set", ("a", "b"))
    np.testing.assert_array_equal(dataset.arrays("test").images[:], IMAGES)
    assert dataset.arrays("val").labels.tolist() == LABELS[:4].tolist()
    (tmp_path / "My-set" / "test" / "state.json").write_text("{")
    with pytest.raises(DataError, match="got one that is damaged"):
        load_dataset(tmp_path / "My-set")


def test_inspect_prints_what_is_in_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = hugging_face()
    splits = datasets.DatasetDict({"validation": data.select(range(4)), "test": data})
    splits.save_to_disk(tmp_path / "saved")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "saved")])
    assert result.exit_code == 0, result.output
    counts = np.bincount(LABELS).tolist()
    assert f"test        {N} images: a {counts[0]}, b {counts[1]}" in result.output
    assert "val         4 images: " in result.output
    assert "train " not in result.output
    assert f"run --dataset {tmp_path / 'saved'} --model" in result.output
    (tmp_path / "saved" / "test" / "state.json").write_text("{")
    damaged = CliRunner().invoke(app, ["inspect", str(tmp_path / "saved")])
    assert isinstance(damaged.exception, DataError)


def test_a_saved_dataset_opens_no_other_file(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.fromarray(IMAGES[0]).save(outside)
    data = hugging_face(image=[{"path": str(outside), "bytes": None}] * N)
    with pytest.raises(DataError, match="row 0: expected the bytes of a picture, got the name of"):
        SavedPictures(data, "set")[0]


WRONG = [
    (lambda k: IMAGES[k], r"item 0: expected \(image, label\)"),
    (lambda k: (IMAGES[k].astype(int), 0), r"expected uint8, or floats in \[0,1\], got int64"),
    (lambda k: (_floats(k) * 5 - 1, 0), r"expected float images in \[0,1\]"),
    (lambda k: (IMAGES[k][k:], 0), r"expected images of one shape and type, .* \(item 1\)"),
    (lambda k: (IMAGES[k], 0.5), "got fractions such as 0.5"),
    (lambda k: (IMAGES[k], k % 2 + 1), "labels counted from 0, got 1, 2 without 0; subtract 1"),
    (lambda k: (IMAGES[k], "a"), "item 0: expected numbers, got str"),
    (
        lambda k: (np.zeros((20, 10, 12)), 0),
        r"expected an image \(c, h, w\), .* got \(20, 10, 12\)",
    ),
    (lambda k: {"image": IMAGES[k]}, "expected one of label, target"),
    (lambda k: (IMAGES[k], [0] * (k + 1)), "expected labels of one shape"),
]


@pytest.mark.parametrize(("item", "message"), WRONG)
def test_wrong_items_are_named(item: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match=message):
        load_dataset(Items(item)).arrays("test")


def test_the_temporary_file_lives_as_long_as_the_dataset(tmp_path: Path) -> None:
    dataset = load_dataset(Items(FORMS["torch"]))
    path = Path(str(dataset.arrays("test").images.path))  # type: ignore[union-attr]
    assert path.is_file()
    del dataset
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize("data", [{}, {"x": Items(FORMS["torch"])}, Items(FORMS["torch"], 0)])
def test_no_dataset_is_refused(data: Any) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match="expected"):
        load_dataset(data)


def test_a_map_style_dataset_is_evaluated() -> None:
    class Brightness(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            margin = x.flatten(1).mean(1) - 0.5
            return torch.stack([-margin, margin], 1) * 50

    def item(k: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(k)) / 10
        return 0.3 + 0.3 * (k % 2) + noise, k % 2

    data: Any = {"val": Items(item), "test": Items(item)}
    record = api.evaluate(Brightness(), data, "fgsm", eps="8/255,128/255").records[0].record
    accuracy = {round(r.eps * 255): r.metrics["accuracy"].value for r in record.rungs}
    assert accuracy == {0: 1, 8: 1, 128: 0}
    assert record.case.dataset == "items"
