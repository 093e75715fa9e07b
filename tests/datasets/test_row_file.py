"""Row files: a large array is read by rows from its file, the same as from memory."""

from __future__ import annotations

import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from robustbench_med.datasets import npz, row_file
from robustbench_med.datasets.dataset import Arrays, Dataset, check
from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.row_file import RowFile
from robustbench_med.errors import DataError


@pytest.fixture(autouse=True)
def _every_array_is_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(row_file, "LEAST_BYTES", 0)
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))


def images(n: int = 9, *, channels: int = 3, kind: str = "u1") -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (n, 6, 5, channels) if channels > 1 else (n, 6, 5)
    values = rng.integers(0, 256, shape)
    return values.astype(kind) if kind == "u1" else (values / 255).astype(kind)


def saved(path: Path, *, compressed: bool, **arrays: np.ndarray) -> Path:
    save = np.savez_compressed if compressed else np.savez
    save(path, **arrays)  # type: ignore[arg-type]
    return path


def _same(arrays: Arrays, split: str) -> Arrays:  # noqa: ARG001 - any split
    return arrays


def both(path: Path, x: np.ndarray, *, compressed: bool) -> tuple[Arrays, Arrays]:
    """Return a split read by rows, and the same read into memory."""
    y = np.arange(len(x)) % 2
    saved(path, compressed=compressed, test_images=x, test_labels=y)
    by_rows = npz.read(path, "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_file, "LEAST_BYTES", 2**40)
        return by_rows, npz.read(path, "test")


@pytest.mark.parametrize("kind", ["u1", "f4", "f8", "f2"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_rows_of_a_file_are_those_of_the_array(
    tmp_path: Path, kind: str, channels: int, compressed: bool
) -> None:
    x = images(channels=channels, kind=kind)
    by_rows, whole = both(tmp_path / "x.npz", x, compressed=compressed)
    assert isinstance(by_rows.images, RowFile)
    assert isinstance(whole.images, np.ndarray)
    card = load_dataset(str(tmp_path / "x.npz")).card
    for rows in ([4], [0, 1, 2], [8, 2, 3, 2], []):
        picked = by_rows.images[np.array(rows, dtype=np.int64)]
        assert np.array_equal(picked.astype(np.float32), x[rows].astype(np.float32))
    assert np.array_equal(by_rows.images[2:5], x[2:5])
    assert np.array_equal(by_rows.images[7:99], x[7:])
    a, b = (Dataset(card, partial(_same, read)).batch("test", n=5) for read in (by_rows, whole))
    assert np.array_equal(a.x.numpy(), b.x.numpy())
    if kind in ("u1", "f4"):
        assert by_rows.fingerprint() == whole.fingerprint()


def test_a_file_that_changes_is_read_no_further(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    by_rows, _ = both(path, images(), compressed=False)
    there = pickle.loads(pickle.dumps(by_rows)).images  # noqa: S301 - as a worker gets it
    assert np.array_equal(there[:2], by_rows.images[:2])
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(bytes(reversed(content)))  # as long as before
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    for rows in (by_rows.images, there):
        with pytest.raises(DataError, match="expected the file that was opened first"):
            rows[:2]
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert np.array_equal(by_rows.images[:2], images()[:2])
    # a process that opens it again sees what is there now
    changed, _ = both(path, 255 - images(), compressed=False)
    assert np.array_equal(changed.images[:2], 255 - images()[:2])


def test_a_compressed_array_is_unpacked_once(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "x.npz", compressed=True, test_images=images(), test_labels=np.arange(9) % 2
    )
    npz.read(path, "test")
    (unpacked,) = (tmp_path / "cache" / "unpacked").iterdir()
    written = unpacked.stat().st_mtime_ns
    npz.read(path, "test")
    assert unpacked.stat().st_mtime_ns == written
    raw = unpacked.read_bytes()
    for harmed in (raw[:-1], raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]):  # cut, and one bit
        unpacked.write_bytes(harmed)
        again = npz.read(path, "test")
        assert np.array_equal(again.images[:], images())


def test_without_a_cache_folder_the_array_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "file"))
    path = saved(
        tmp_path / "x.npz", compressed=True, test_images=images(), test_labels=np.arange(9) % 2
    )
    assert isinstance(npz.read(path, "test").images, np.ndarray)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_is_found_before_any_row_is_used(tmp_path: Path, compressed: bool) -> None:
    path = saved(
        tmp_path / "x.npz", compressed=compressed, test_images=images(200), test_labels=np.ones(200)
    )
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("test_images.npy")
    raw = bytearray(path.read_bytes())
    raw[info.header_offset + info.compress_size // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="damaged"):
        npz.read(path, "test")
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_file_that_was_cut_after_it_was_opened_is_named(tmp_path: Path) -> None:
    by_rows, _ = both(tmp_path / "x.npz", images(), compressed=True)
    (unpacked,) = (tmp_path / "cache" / "unpacked").iterdir()
    unpacked.write_bytes(unpacked.read_bytes()[:400])
    with pytest.raises(DataError, match="shorter"):
        by_rows.images[:]


@pytest.mark.parametrize(("value", "words"), [(np.nan, "finite"), (7.0, r"in \[0,1\]")])
def test_one_wrong_value_among_many_images_is_found(
    tmp_path: Path, value: float, words: str
) -> None:
    x = images(200, kind="f4")
    x[150, 2, 2, 0] = value
    by_rows, _ = both(tmp_path / "x.npz", x, compressed=False)
    card = load_dataset(str(tmp_path / "x.npz")).card
    with pytest.raises(DataError, match=words):
        check(by_rows, card, "test")


def test_floats_that_leave_the_range_by_rounding_are_clipped(tmp_path: Path) -> None:
    x = images(kind="f4")
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -5e-7, 1 + 5e-7
    by_rows, whole = both(tmp_path / "x.npz", x, compressed=False)
    card = load_dataset(str(tmp_path / "x.npz")).card
    a, b = (Dataset(card, partial(_same, read)).batch("test") for read in (by_rows, whole))
    assert float(a.x.min()) == 0
    assert float(a.x.max()) == 1
    assert np.array_equal(a.x.numpy(), b.x.numpy())
