"""A checksum is remembered as long as its file is certainly the same, and no longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from robustbench_med.datasets import file_state, npz, row_file
from robustbench_med.datasets.file_state import checked_in_full, remembered
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.errors import DataError


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROBUSTBENCH_MED_CHECK_DATA", raising=False)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let a time pass, as far as the age of files is concerned."""
    now = time.time_ns() + int(seconds * 1e9)
    monkeypatch.setattr(time, "time_ns", lambda: now)


class Reader:
    """Returns the content of a file, and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __call__(self) -> str:
        self.count += 1
        return self.path.read_text()

    def value(self) -> str:
        return remembered(self.path, "content", self)


def test_an_old_file_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    later(monkeypatch, 3)
    assert [read.value() for _ in range(3)] == ["one"] * 3
    assert read.count == 1
    assert remembered(read.path, "another value", lambda: "other") == "other"


def test_a_file_that_just_changed_is_read_every_time(tmp_path: Path) -> None:
    """It may change again within the same tick of the clock: git's racy files."""
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    assert [read.value(), read.value()] == ["one", "one"]
    assert read.count == 2


@pytest.mark.parametrize("way", ["write", "replace", "keep the time"])
def test_a_change_of_the_same_size_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    later(monkeypatch, 3)
    assert read.value() == "one"
    before = read.path.stat()
    if way == "replace":
        (tmp_path / "y").write_text("two")
        (tmp_path / "y").replace(read.path)
    else:
        read.path.write_text("two")
    if way == "keep the time":
        os.utime(read.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert read.path.stat().st_mtime_ns == before.st_mtime_ns
    assert read.value() == "two"


def test_a_change_while_the_file_is_read_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    later(monkeypatch, 3)

    def changed() -> str:
        read.path.write_text("two")
        return "one"

    assert remembered(read.path, "content", changed) == "one"
    later(monkeypatch, 6)
    assert read.value() == "two"


def test_everything_is_read_again_on_demand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    later(monkeypatch, 3)
    read.value()
    with checked_in_full():
        read.value()
        assert os.environ["ROBUSTBENCH_MED_CHECK_DATA"]  # workers inherit it
    assert read.count == 2
    assert "ROBUSTBENCH_MED_CHECK_DATA" not in os.environ
    with checked_in_full(needed=False):
        read.value()
    assert read.count == 2


@pytest.mark.parametrize("content", ["", "[]", '{"state": 1}', "\x00"])
def test_a_damaged_entry_is_written_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    later(monkeypatch, 3)
    read.value()
    (entry,) = (tmp_path / "cache" / "checksums").iterdir()
    entry.write_text(content)
    assert read.value() == "one"
    read.value()
    assert read.count == 2


def test_a_cache_folder_that_cannot_be_written_costs_time_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("in the way")
    read = Reader(tmp_path / "x")
    read.path.write_text("one")
    later(monkeypatch, 3)
    assert read.value() == "one"


@pytest.mark.parametrize("compressed", [False, True])
def test_images_in_a_file_are_hashed_once_and_checked_on_demand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compressed: bool
) -> None:
    monkeypatch.setattr(row_file, "LEAST_BYTES", 0)
    x = np.random.default_rng(0).integers(0, 256, (20, 40, 50), dtype=np.uint8)
    path, y = tmp_path / "x.npz", np.arange(20) % 2
    save = np.savez_compressed if compressed else np.savez
    save(path, test_images=x, test_labels=y)
    later(monkeypatch, 3)
    first = npz.read(path, "test")
    assert isinstance(first.images, RowFile)
    fingerprint = first.fingerprint()
    first.fingerprint()
    later(monkeypatch, 6)  # the unpacked file is old by now
    npz.read(path, "test").fingerprint()
    rows_read: list[int] = []
    stored = RowFile.__getitem__

    def watched(self: RowFile, rows: np.ndarray | slice) -> np.ndarray:
        rows_read.append(1)
        return stored(self, rows)

    monkeypatch.setattr(RowFile, "__getitem__", watched)
    again = npz.read(path, "test")
    assert again.fingerprint() == fingerprint
    assert not rows_read
    with checked_in_full():
        assert again.fingerprint() == fingerprint
    assert rows_read
    # a disk that flips a bit tells nobody: no time and no size changes
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    state = str(file_state.file_state(path))
    path.write_bytes(raw)
    monkeypatch.setattr(file_state, "file_state", lambda _: state)
    if not compressed:
        npz.read(path, "test")
        with checked_in_full(), pytest.raises(DataError, match="damaged"):
            npz.read(path, "test")


def test_other_labels_have_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The labels are no part of the remembered file where the images are unpacked."""
    monkeypatch.setattr(row_file, "LEAST_BYTES", 0)
    x = np.random.default_rng(0).integers(0, 256, (20, 40, 50), dtype=np.uint8)
    prints = set()
    for i, labels in enumerate((np.arange(20) % 2, np.arange(20) % 3)):
        path = tmp_path / "x.npz"
        np.savez_compressed(path, test_images=x, test_labels=labels)
        later(monkeypatch, 10 * (i + 1))
        prints.add(npz.read(path, "test").fingerprint())
    assert len(prints) == 2
