"""`load_dataset` loads the right file, or says how to get it."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from torch import float32

from robustbench_med import registry
from robustbench_med.cards import DatasetCard
from robustbench_med.datasets import load
from robustbench_med.datasets.dataset import Arrays, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import ChecksumError, DataError, UnknownNameError

Save = Callable[..., Path]
Describe = Callable[..., DatasetCard]
Register = Callable[[DatasetCard], None]
REAL = (
    "mednist_64",
    "busi_128",
    "isic_uda1_128",
    "lc25000_lung_64",
)


@pytest.fixture
def register() -> Iterator[Register]:
    with ExitStack() as stack:

        def add(card: DatasetCard) -> None:
            stack.enter_context(registry.register("datasets", card, replace=True))

        yield add


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(card: DatasetCard) -> Path:
        raise DataError(f"{card.name}: would be downloaded")

    monkeypatch.setattr(load, "download", refuse)


def test_a_path_is_a_users_own_data(save: Save) -> None:
    batch = load_dataset(str(save(test_patients=np.array(["p", "p", "q", "q"])))).batch("test")
    assert batch.x.shape == (4, 1, 8, 6)
    assert batch.x.dtype == float32
    assert batch.patients is not None
    assert batch.patients.tolist() == ["p", "p", "q", "q"]


def test_a_path_may_begin_with_the_home_folder(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(save().parent))
    assert len(load_dataset("~/toy.npz").batch("test")) == 4


def test_a_path_without_ending_is_a_users_own_data(save: Save) -> None:
    assert len(load_dataset(str(save().rename(save().parent / "bare"))).batch("test")) == 4


def test_a_missing_path_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got nothing there"):
        load_dataset(str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match="got a folder"):
        load_dataset(str(tmp_path))
    with pytest.raises(UnknownNameError, match="did you mean 'mednist_64'"):
        load_dataset("mednist64")


def test_a_folder_of_a_datasets_name_does_not_hide_it(
    save: Save,
    card_for: Describe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    register: Register,
) -> None:
    path = save()
    register(card_for(path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    assert load_dataset("toy", data=tmp_path).card.classes == ("a", "b", "c")


def test_a_phantom_is_drawn_by_its_function(
    monkeypatch: pytest.MonkeyPatch, save: Save, card_for: Describe, register: Register
) -> None:
    splits_drawn: list[str] = []

    def draw(split: SplitName) -> Arrays:
        splits_drawn.append(split)
        return Arrays(np.zeros((2, 8, 6), np.uint8), np.array([0, 2]), np.array(["a", "b"]))

    module = types.ModuleType("robustbench_med.drawn_for_a_test")
    module.__dict__["draw"] = draw
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register(card_for(save(), name="drawn", function="drawn_for_a_test:draw"))
    dataset = load_dataset("drawn")
    assert splits_drawn == []
    assert len(dataset.batch("val")) == 2
    assert splits_drawn == ["val"]


@pytest.mark.parametrize("folder_kind", ["data", "file", "environment", "cache"])
def test_a_file_is_found_in_each_place(
    folder_kind: str,
    save: Save,
    card_for: Describe,
    monkeypatch: pytest.MonkeyPatch,
    register: Register,
) -> None:
    path = save()
    register(card_for(path))
    if folder_kind == "environment":
        monkeypatch.setenv("ROBUSTBENCH_MED_DATA", str(path.parent))
    if folder_kind == "cache":
        monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(path.parent))
        (path.parent / "datasets").mkdir()
        path.rename(path.parent / "datasets" / path.name)
    data = {"data": path.parent, "file": path}.get(folder_kind)
    assert len(load_dataset("toy", data=data).batch("train")) == 4


def test_data_wins_over_the_environment(
    save: Save,
    card_for: Describe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    register: Register,
) -> None:
    register(card_for(save()))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "toy.npz").write_bytes(b"another")
    monkeypatch.setenv("ROBUSTBENCH_MED_DATA", str(tmp_path / "other"))
    load_dataset("toy", data=tmp_path)
    with pytest.raises(ChecksumError, match="other/toy.npz"):
        load_dataset("toy")


@pytest.mark.usefixtures("no_download")
def test_a_file_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_DATA", str(tmp_path / "gone"))
    with pytest.raises(
        DataError, match=r"no official address: pass the folder of mednist_64\.npz as --data DIR"
    ):
        load_dataset("mednist_64", data=tmp_path)
    with pytest.raises(DataError, match="bloodmnist_64: would be downloaded"):
        load_dataset("bloodmnist_64", data=tmp_path)


def test_data_must_exist_and_have_the_name(save: Save, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder or mednist_64\.npz, got .*\(nothing there\)"):
        load_dataset("mednist_64", data=tmp_path / "gone")
    with pytest.raises(DataError, match=r"\(a file with another name\); to use a file as your own"):
        load_dataset("mednist_64", data=save())


def test_either_checksum_will_do(save: Save, card_for: Describe, register: Register) -> None:
    path = save()
    for changed in ({"md5": "0" * 32}, {"sha256": ()}, {"sha256": ("0" * 64,)}):
        register(card_for(path, **changed))
        assert len(load_dataset("toy", data=path).batch("test")) == 4


def test_a_wrong_checksum_is_refused(save: Save, card_for: Describe, register: Register) -> None:
    path = save()
    card = card_for(path)
    register(card)
    path.write_bytes(path.read_bytes() + b"\0")
    stated = (
        rf"toy: expected MD5 {card.md5} or SHA-256 {card.sha256[0]}, got MD5 .*unchecked as your"
    )
    with pytest.raises(ChecksumError, match=stated):
        load_dataset("toy", data=path)
    register(card_for(path, md5="", sha256=()))
    with pytest.raises(ChecksumError, match="expected a checksum on its card, got MD5"):
        load_dataset("toy", data=path)


def test_a_file_replaced_after_it_was_loaded_is_refused(
    save: Save, card_for: Describe, register: Register
) -> None:
    path = save()
    register(card_for(path))
    dataset = load_dataset("toy", data=path)
    dataset.arrays("train")
    save("new.npz", test_labels=np.zeros(4, np.uint8))
    os.replace(path.parent / "new.npz", path)
    with pytest.raises(ChecksumError, match="toy: expected MD5"):
        dataset.arrays("test")


def test_a_card_may_join_the_classes_of_its_file(
    save: Save, card_for: Describe, register: Register
) -> None:
    path = save(test_labels=np.array([[2], [0], [1], [0]], dtype=np.uint8))
    register(card_for(path, name="joined", classes=("a or b", "c"), stored_ids=((0, 1), (2,))))
    register(card_for(path, name="some", classes=("a", "b"), stored_ids=((0,), (1,))))
    joined = load_dataset("joined", data=path)
    assert joined.arrays("test").labels.tolist() == [1, 0, 0, 0]
    assert joined.batch("train").y.tolist() == [0, 0, 1, 0]
    with pytest.raises(
        DataError, match=r"some \(test\): expected labels in stored_ids \[0, 1\] or -1, got 2"
    ):
        load_dataset("some", data=path).arrays("test")


@pytest.mark.data
@pytest.mark.parametrize("name", [*REAL, "pneumoniamnist", "ham10000_128"])
def test_real_images_keep_the_contract(name: str, real: Path) -> None:
    dataset = load_dataset(name, data=real)
    sizes = {}
    for split in ("train", "val", "test"):
        arrays = dataset.arrays(split)
        sizes[split] = len(arrays)
        assert set(np.unique(arrays.labels)) == set(range(len(dataset.card.classes)))
    batch = dataset.batch("test", n=8)
    assert batch.x.shape == (8, dataset.card.channels, *dataset.card.size)
    assert 0 <= float(batch.x.min()) < float(batch.x.max()) <= 1
    if name == "pneumoniamnist":
        assert sizes == {"train": 4708, "val": 524, "test": 624}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_images_say_of_themselves_what_their_card_says(name: str, real: Path) -> None:
    own_card, card = load_dataset(str(real / f"{name}.npz")).card, registry.find("datasets", name)
    for field in ("name", "classes", "size", "channels", "task", "bit_depth"):
        assert getattr(own_card, field) == getattr(card, field)


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["hippocampus_3d", "cxr_lungs_128", "dsb2018_nuclei_128", "lgg_mri_128"]
)
def test_real_masks_say_of_themselves_what_their_card_says(name: str, real: Path) -> None:
    own_card, data = load_dataset(str(real / f"{name}.npz")).card, load_dataset(name, data=real)
    for field in ("name", "classes", "size", "channels", "task", "bit_depth"):
        assert getattr(own_card, field) == getattr(data.card, field)
    batch = data.batch("val")
    assert batch.x.shape == (len(batch), own_card.channels, *own_card.size)
    assert batch.y.shape == (len(batch), *own_card.size)
    ids = set(batch.y.unique().tolist())
    assert ids == set(range(len(own_card.classes)))


@pytest.mark.data
def test_the_channels_of_real_sequences_have_the_names_of_the_file(real: Path) -> None:
    own_card = load_dataset(str(real / "lgg_mri_128.npz")).card
    assert own_card.channel_names == registry.find("datasets", "lgg_mri_128").channel_names
    assert own_card.channel_names == ("pre-contrast", "FLAIR", "post-contrast")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "val", "test"),
    [
        ("lgg_mri_128", 46, 6, 20),
        ("ham10000_128", 105, 21, 42),
    ],
)
def test_real_patients_are_in_one_split(
    name: str, train: int, val: int | None, test: int, real: Path
) -> None:
    dataset, before = load_dataset(name, data=real), set[str]()
    splits: tuple[SplitName, ...] = ("train", "val", "test")
    for split, count in zip(splits, (train, val, test), strict=True):
        patients = dataset.arrays(split).patients
        if count is None:
            assert patients is None
            continue
        assert patients is not None
        assert "" not in patients
        names = set(patients.tolist())
        assert len(names) == count
        assert not names & before
        before |= names
