"""Folders of pictures with a CSV table: inspected, written as a card file, and read."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustbench_med.datasets.file_state import State, checked_in_full
from robustbench_med.datasets.sources import decoded
from robustbench_med.datasets.sources.load import SPLITS
from robustbench_med.errors import BenchError, DataError, SpecError
from tests.datasets.sources.conftest import (
    SIZE,
    Inspect,
    edit,
    loaded,
    picture,
    save,
    write_table,
)


def test_a_folder_and_a_table_become_a_dataset(
    films: Path, inspect: Inspect, tmp_path: Path
) -> None:
    printed = inspect(films)
    for line in (
        "files       30 images (30 .png)",
        "size        10x12",
        "patients    15, 0 images of unknown patient",
        "label: column diagnosis",
        "groups: column sex",
        "run --dataset mine.toml",
    ):
        assert line in printed
    dataset = loaded(tmp_path)
    card = dataset.card
    assert (card.classes, card.normal, card.size, card.channels) == (
        ("normal", "pneumonia"),
        0,
        SIZE,
        1,
    )
    seen_ids: set[str] = set()
    for split in SPLITS:
        arrays = dataset.arrays(split)
        for row, name in enumerate(arrays.ids.tolist()):
            number = int(name[-6:-4])
            np.testing.assert_array_equal(
                arrays.images[np.array([row])][0], picture(number % 2, number)
            )
            assert arrays.labels[row] == number % 2
            assert arrays.patients is not None
            assert arrays.patients[row].startswith("patient-")
        seen_ids |= set(arrays.ids.tolist())
    assert len(seen_ids) == 30


def test_patients_stay_together_and_keep_no_name(
    films: Path, inspect: Inspect, tmp_path: Path
) -> None:
    inspect(films)
    dataset = loaded(tmp_path)
    splits = {split: dataset.arrays(split) for split in SPLITS}
    owners = {split: set(np.atleast_1d(arrays.patients)) for split, arrays in splits.items()}  # type: ignore[arg-type]
    assert sum(map(len, owners.values())) == len(set.union(*owners.values())) == 15
    assert {split: len(arrays) for split, arrays in splits.items()} == {
        "train": 18,
        "val": 6,
        "test": 6,
    }
    assert all((arrays.labels == 1).mean() == 0.5 for arrays in splits.values())
    assert "Doe" not in str(owners)


def test_a_card_file_is_never_overwritten_unless_asked(films: Path, inspect: Inspect) -> None:
    inspect(films)
    with pytest.raises(SpecError, match="which exists: pass --force"):
        inspect(films)
    inspect(films, "--force")


def test_decoded_images_are_read_again_where_a_file_changed(
    films: Path, inspect: Inspect, tmp_path: Path
) -> None:
    inspect(films)
    before = loaded(tmp_path).arrays("test")
    name = str(before.ids[0])
    save(films / name, np.full((*SIZE,), 7, np.uint8) + np.arange(12, dtype=np.uint8))
    after = loaded(tmp_path).arrays("test")
    row = after.ids.tolist().index(name)
    assert after.images[np.array([row])][0, 0].tolist() == list(range(7, 19))
    assert before.fingerprint() != after.fingerprint()


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass, as far as the age of files is concerned."""
    now = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)


def first_image(folder: Path) -> NDArray[Any]:
    """Return the first image of the test split, read anew."""
    images: NDArray[Any] = loaded(folder).arrays("test").images[:1]
    return np.asarray(images[0])


def test_a_change_of_a_file_is_seen_where_size_and_time_are_kept(
    films: Path, inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, path in enumerate(sorted(films.rglob("*.png"))):
        save(path.with_suffix(".bmp"), picture(seed % 2, seed))
        path.unlink()
    table = films / "labels.csv"
    table.write_text(table.read_text().replace(".png", ".bmp"))
    inspect(films)
    later(monkeypatch)
    before, path = first_image(tmp_path), films / str(loaded(tmp_path).arrays("test").ids[0])
    stat = path.stat()
    save(path, 255 - before)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    np.testing.assert_array_equal(first_image(tmp_path), 255 - before)


@pytest.mark.parametrize("is_certain", [True, False])
def test_files_are_read_again_on_demand_or_while_they_are_young(
    films: Path,
    inspect: Inspect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_certain: bool,
) -> None:
    inspect(films)
    monkeypatch.setattr(decoded, "look_up", lambda _: State("same", is_certain))
    before, path = first_image(tmp_path), films / str(loaded(tmp_path).arrays("test").ids[0])
    save(path, 255 - before)
    seen = before if is_certain else 255 - before
    np.testing.assert_array_equal(first_image(tmp_path), seen)
    caplog.clear()
    with checked_in_full():
        np.testing.assert_array_equal(first_image(tmp_path), 255 - before)
    assert ("files changed although" in caplog.text) == is_certain
    caplog.clear()
    save(path, picture(0, 0, (9, 9)))
    with checked_in_full():
        assert any("1 of 30 images were resized" in note for note in loaded(tmp_path).card.notes)
    assert caplog.text.count("files changed although") == 1
    with checked_in_full():
        first_image(tmp_path)
        caplog.clear()
        first_image(tmp_path)
    assert "files changed although" not in caplog.text


def test_a_damaged_cache_is_decoded_again(
    films: Path, inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(films)
    later(monkeypatch)
    expected = loaded(tmp_path).arrays("test").images[:]
    for path in (tmp_path / "cache" / "decoded").glob("*.rows"):
        content = bytearray(path.read_bytes())
        content[5] ^= 255
        path.write_bytes(content)
    np.testing.assert_array_equal(loaded(tmp_path).arrays("test").images[:], expected)


def test_without_a_cache_images_are_decoded_where_they_are_read(
    films: Path, inspect: Inspect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect(films)
    expected = loaded(tmp_path).arrays("test").images[:]
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setattr(decoded, "_folder", lambda: blocked)
    images = loaded(tmp_path).arrays("test").images
    assert type(images).__name__ == "FileImages"
    np.testing.assert_array_equal(images[:], expected)
    np.testing.assert_array_equal(images[np.array([2, 0])], expected[[2, 0]])


def test_classes_of_folders_in_splits(inspect: Inspect, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label, name in enumerate(("NORMAL", "PNEUMONIA")):
            for i in range(3):
                seed = 10 * label + i + 100 * ord(split[0])
                save(tmp_path / "xray" / split / name / f"{i}.png", picture(label, seed))
    printed = inspect(tmp_path / "xray")
    assert "splits: folders test, train, val" in printed
    dataset = loaded(tmp_path)
    arrays = dataset.arrays("test")
    assert arrays.patients is None
    assert dataset.card.classes == ("NORMAL", "PNEUMONIA")
    assert arrays.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays.ids[4] == "test/PNEUMONIA/1.png"


@pytest.mark.parametrize("suffix", ["", "_seg"])
def test_pairs_of_images_and_masks(inspect: Inspect, tmp_path: Path, suffix: str) -> None:
    for i in range(10):
        save(tmp_path / "set" / "images" / f"{i}.png", picture(0, i))
        mask = np.zeros(SIZE, np.uint8)
        mask[2 : 3 + i % 3, 3:6] = 255
        save(tmp_path / "set" / "masks" / f"{i}{suffix}.png", mask)
    printed = inspect(tmp_path / "set")
    assert "masks hold 0 and 255: `mask_values` reads 255 as class 1" in printed
    dataset = loaded(tmp_path)
    arrays = dataset.arrays("test")
    for name, mask in zip(arrays.ids.tolist(), arrays.labels, strict=True):
        assert mask.sum() == 3 * (1 + int(Path(name).stem) % 3)
    edit(tmp_path / "mine.toml", "mask_values = [0, 255]", "")
    with pytest.raises(DataError, match=r"only 0 and 255 .* mask_values = \[0, 255\]"):
        loaded(tmp_path).arrays("test")


def test_masks_beside_their_images(inspect: Inspect, tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / "busi" / f"case ({i}).png", picture(0, i))
        mask = np.zeros(SIZE, np.uint8)
        mask[i, :4], mask[i, 4:6] = 1, 2
        save(tmp_path / "busi" / f"case ({i})_mask.png", mask)
    printed = inspect(tmp_path / "busi")
    assert "files whose name ends with _mask" in printed
    dataset = loaded(tmp_path)
    assert dataset.card.classes == ("background", "region 1", "region 2")
    assert np.bincount(dataset.arrays("train").labels[0].ravel()).tolist() == [114, 4, 2]


def test_unequal_sizes_need_a_size(inspect: Inspect, films: Path, tmp_path: Path) -> None:
    save(films / "images" / "film03.png", picture(1, 3, (20, 24)))
    with pytest.raises(DataError, match=r"2 sizes from 10x12 to 20x24: add --size native, .*10x12"):
        inspect(films)
    assert not (tmp_path / "mine.toml").exists()
    assert "30 images keep their own size, 2 different sizes from 10x12 to 20x24" in inspect(
        films, "--size", "native"
    )
    assert loaded(tmp_path).card.sizes == ((20, 24), (10, 12))
    inspect(films, "--force", "--size", "10x12")
    card = loaded(tmp_path).card
    assert "1 of 30 images were resized from 20x24 to 10x12 pixels, bilinearly" in card.notes[1]


def test_colours_and_grey_pictures_are_mixed(inspect: Inspect, films: Path, tmp_path: Path) -> None:
    grey = picture(1, 3)
    save(films / "images" / "film03.png", np.repeat(grey[..., None], 3, -1))
    assert "29 images are grey and 1 have 3 channels, all equal: channels = 1" in inspect(films)
    dataset = loaded(tmp_path)
    assert "1 of 30 images are of 3 channels in their files and made grey" in dataset.card.notes
    rows = {str(n): (s, r) for s in SPLITS for r, n in enumerate(dataset.arrays(s).ids)}
    split, row = rows["images/film03.png"]
    np.testing.assert_array_equal(dataset.arrays(split).images[np.array([row])][0], grey)


def test_findings_of_columns_and_of_one_cell(inspect: Inspect, tmp_path: Path) -> None:
    columns: list[tuple[object, ...]] = [("name", "edema", "nodule")]
    cells: list[tuple[object, ...]] = [("Image Index", "Finding Labels")]
    words = ("No Finding", "edema", "nodule", "edema|nodule")
    for i in range(12):
        save(tmp_path / "nih" / f"{i}.png", picture(i % 2, i))
        columns.append((f"{i}.png", i % 2, (i // 2) % 2 if i else ""))
        cells.append((f"{i}.png", words[i % 4]))
    table = write_table(tmp_path / "nih" / "table.csv", columns)
    inspect(tmp_path / "nih")
    dataset = loaded(tmp_path)
    assert (dataset.card.task, dataset.card.classes) == ("multi_label", ("edema", "nodule"))
    rows = {
        str(name): label.tolist()
        for split in SPLITS
        for name, label in zip(
            dataset.arrays(split).ids,
            dataset.arrays(split).labels,
            strict=True,
        )
    }
    assert rows["0.png"] == [0, -1]
    assert all(rows[f"{i}.png"] == [i % 2, (i // 2) % 2] for i in range(1, 12))
    table.unlink()
    write_table(table, cells)
    inspect(tmp_path / "nih", "--force")
    arrays = loaded(tmp_path).arrays("test")
    for name, label in zip(arrays.ids.tolist(), arrays.labels.tolist(), strict=True):
        number = int(Path(name).stem) % 4
        assert label == [int(number in (1, 3)), int(number in (2, 3))]


def test_labels_of_other_numbers_are_written_as_values(inspect: Inspect, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("file", "grade")]
    for i in range(9):
        save(tmp_path / "dr" / f"{i}.png", picture(i % 3, i))
        rows.append((f"{i}", f"{i % 3 + 1}.0"))
    write_table(tmp_path / "dr" / "t.csv", rows)
    assert "labels are 1, 2, 3 and not 0..2" in inspect(tmp_path / "dr")
    dataset = loaded(tmp_path)
    assert dataset.card.classes == ("class 1", "class 2", "class 3")
    arrays = dataset.arrays("train")
    assert [int(Path(n).stem) % 3 for n in arrays.ids.tolist()] == arrays.labels.tolist()


def test_a_table_with_splits(inspect: Inspect, films: Path, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("file", "label", "patient", "split")]
    words = ("training", "validation", "test")
    rows += [(f"images/film{i:02d}.png", i % 2, f"p{i // 4}", words[i % 3]) for i in range(30)]
    write_table(films / "labels.csv", rows)
    printed = inspect(films)
    assert "patients are in several splits: clean scores are too good" in printed
    arrays = loaded(tmp_path).arrays("val")
    assert [int(name[-6:-4]) % 3 for name in arrays.ids.tolist()] == [1] * 10


def test_a_file_of_arrays_is_inspected(inspect: Inspect, tmp_path: Path) -> None:
    images = np.stack([picture(k % 2, k) for k in range(6)])
    np.savez(tmp_path / "a.npz", test_images=images, test_labels=np.arange(6) % 2)
    printed = inspect(tmp_path / "a.npz")
    assert "test        6 images: class 0 3, class 1 3" in printed
    assert "run --dataset" in printed
    assert not (tmp_path / "mine.toml").exists()


def test_copies_are_named(inspect: Inspect, films: Path) -> None:
    save(films / "images" / "film01.png", picture(0, 0))
    assert "1 images stand under different labels, e.g. images/film00.png" in inspect(films)


def _palette(path: Path, seed: int) -> None:
    image = Image.fromarray(picture(0, seed) % 4)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_palettes_are_colours_in_images_and_ids_in_masks(inspect: Inspect, tmp_path: Path) -> None:
    for i in range(5):
        _palette(tmp_path / "set" / "images" / f"{i}.png", i)
        _palette(tmp_path / "set" / "masks" / f"{i}.png", i)
    inspect(tmp_path / "set")
    dataset = loaded(tmp_path)
    arrays = dataset.arrays("test")
    assert dataset.card.channels == 3
    ids = picture(0, int(Path(str(arrays.ids[0])).stem)) % 4
    np.testing.assert_array_equal(arrays.labels[0], ids)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    np.testing.assert_array_equal(arrays.images[np.array([0])][0], colours[ids])


WRONG = [
    ('classes = ["normal", "pneumonia"]', "classes = 3", SpecError, "classes: .* got 3"),
    ('format = "pictures"', 'format = "tea"', SpecError, "format: .* got 'tea'"),
    ("seed = 0", "seed = 0\nhat = 1", SpecError, "expected no 'hat'"),
    ("train = 0.6", "train = 0.7", SpecError, r"expected train \+ val \+ test to be 1, got 1.1"),
    ('name = "films"', 'name = "films"\nsha256 = ["a"]', SpecError, "expected no 'sha256'"),
    ('values = ["normal"', 'values = ["fine"', DataError, "expected labels fine, pneumonia"),
    ('csv = "labels.csv"', 'csv = "../mine.toml"', DataError, "expected a file inside"),
    ('label = "diagnosis"', 'label = "colour"', DataError, "expected a column 'colour', got file"),
    ("size = [10, 12]", "size = [0, 12]", SpecError, r"expected size = \[h, w\]"),
    ('path = "films"', 'path = "nowhere"', DataError, "expected the folder of the data"),
    ('task = "single_label"', "task = ", DataError, "expected TOML"),
]


@pytest.mark.parametrize(("old", "new", "error", "message"), WRONG)
def test_wrong_settings_are_refused_in_one_line(
    films: Path,
    inspect: Inspect,
    tmp_path: Path,
    old: str,
    new: str,
    error: type[BenchError],
    message: str,
) -> None:
    inspect(films)
    edit(tmp_path / "mine.toml", old, new)
    with pytest.raises(error, match=message) as caught:
        loaded(tmp_path).arrays("test")
    assert "\n" not in str(caught.value)


WRONG_ROWS = [
    (("../secret.png", "normal", "a", "M"), "expected a file inside .* got '../secret.png'"),
    (("/etc/passwd", "normal", "a", "M"), "expected a file inside .* got '/etc/passwd'"),
    (("film99.png", "normal", "a", "M"), "got 'film99.png', which is not there"),
    (("film00.png", "normal", "a", "M"), "expected every image once, got 'film00.png' in row 2"),
    (("film00.png", "normal"), "row 32: expected 4 cells, got 2"),
]


@pytest.mark.parametrize(("row", "message"), WRONG_ROWS)
def test_wrong_rows_are_refused(
    films: Path, inspect: Inspect, tmp_path: Path, row: tuple[str, ...], message: str
) -> None:
    inspect(films)
    with (films / "labels.csv").open("a") as file:
        file.write(",".join(row) + "\n")
    with pytest.raises(DataError, match=message):
        loaded(tmp_path)


def test_a_link_that_leads_out_of_the_folder_is_refused(
    films: Path, inspect: Inspect, tmp_path: Path
) -> None:
    inspect(films)
    outside = save(tmp_path / "outside.png", picture(0, 0))
    (films / "images" / "film00.png").unlink()
    (films / "images" / "film00.png").symlink_to(outside)
    with pytest.raises(DataError, match="film00.png: it is a link to a file outside the folder"):
        loaded(tmp_path)


def test_cut_and_odd_pictures_are_named(films: Path, inspect: Inspect, tmp_path: Path) -> None:
    inspect(films)
    path = films / "images" / "film07.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"got 1 of \d+ that cannot: images/film07.png: it is cut"):
        inspect(films, "--force")
    alpha = np.dstack([picture(0, 0)] * 3 + [np.full(SIZE, 9, np.uint8)])
    save(path, alpha)
    with pytest.raises(DataError, match="film07.png: it is transparent in places"):
        inspect(films, "--force", "--size", "10x12")
    edit(tmp_path / "mine.toml", 'csv = "labels.csv"', 'csv = "labels.csv"\nskip = ["x"]')
    Image.new("CMYK", (12, 10)).save(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match="film07.jpg: its colours are CMYK"):
        inspect(films, "--force")
