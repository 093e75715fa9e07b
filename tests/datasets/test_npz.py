"""Sound files are read, and all others are refused with one line."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustbench_med.datasets.archive import Npz, opened
from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.npz import read
from robustbench_med.datasets.own import card_of
from robustbench_med.errors import DataError

Save = Callable[..., Path]
RULES = [
    ({"test_labels": None}, "expected the key 'test_labels', got test_images, .*save images"),
    ({"test_images": None}, "expected the key 'test_images', got test_labels"),
    ({"test_images": np.zeros((4, 8, 6), np.int16)}, "expected uint8 or float in .* got int16"),
    ({"test_images": np.zeros((4, 8, 6), complex)}, "expected uint8 or float in .* got complex128"),
    ({"test_images": np.zeros((4, 8), np.uint8)}, r"expected shape \(n, h, w\), .* got \(4, 8\)"),
    ({"test_images": np.zeros((4, 8, 0), np.uint8)}, r"expected shape .* got \(4, 8, 0\)"),
    ({"test_images": np.zeros((4, 8, 6, 3, 2, 1), np.uint8)}, r"expected shape .* got \(4, 8, 6"),
    ({"test_images": np.zeros((3, 8, 6), np.uint8)}, "expected 3 rows, one per image, got 4"),
    ({"test_labels": np.zeros(4, complex)}, "expected integers or bool, got complex128"),
    ({"test_labels": np.full(4, 2**63, np.uint64)}, "expected integers or bool, got uint64"),
    ({"test_labels": np.full(4, 0.05)}, "expected class ids, got fractions such as 0.05"),
    ({"test_labels": np.full((4, 2), 0.95)}, "expected class ids, got fractions such as 0.95"),
    ({"test_labels": np.array([0, 1, np.nan, 0])}, "expected class ids, got NaN in 1 of 4"),
    ({"test_labels": np.array([0, 1, np.inf, 0])}, "expected class ids, got fractions such as inf"),
    ({"test_labels": np.array(list("abca"))}, "expected class ids as numbers, got text"),
    ({"test_labels": np.zeros((4, 2, 2), np.uint8)}, r"expected shape .* got \(4, 2, 2\)"),
    ({"test_labels": np.zeros((4, 0), np.uint8)}, r"expected shape .* got \(4, 0\)"),
    ({"test_ids": np.array(["a"])}, r"test_ids: expected 4 names .* got <U1 of shape \(1,\)"),
    ({"test_ids": np.zeros(4)}, "test_ids: expected 4 names .* got float64"),
    ({"test_patients": np.array(["a"])}, "test_patients: expected 4 names"),
]
CONTRACT = [
    ({"test_images": np.full((4, 8, 6), np.nan, np.float32)}, "expected finite images"),
    ({"test_images": np.full((4, 8, 6), 1e300)}, "expected finite images"),
    (
        {"test_images": np.full((4, 8, 6), 1.5)},
        r"expected float images in \[0,1\], got 1.5..1.5; divide grey levels",
    ),
    ({"test_images": np.full((4, 8, 6), -0.1)}, r"expected float images in \[0,1\], got -0.1"),
    ({"test_images": np.zeros((4, 8, 7), np.uint8)}, r"expected images of shape \(8, 6\)"),
    (
        {"test_images": np.zeros((0, 8, 6), np.uint8), "test_labels": np.zeros(0, int)},
        "at least one",
    ),
    ({"test_labels": np.array([0, 1, 3, 0])}, r"expected labels in 0\.\.2 .* got 0\.\.3"),
    ({"test_labels": np.array([0, -2, 2, 0])}, r"expected labels in 0\.\.2 .* got -2\.\.2"),
    ({"test_labels": np.eye(4, 2, dtype=int)}, r"expected labels of shape"),
    ({"test_ids": np.array(["a", "b", "b", "c"])}, "expected one id per image, got 3 for 4"),
]


def npz_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(shape: str, dtype: str = "|u1", body: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def test_reads_a_split_with_default_ids(save: Save) -> None:
    arrays = read(save(), "test")
    assert arrays.images.shape == (4, 8, 6)
    assert arrays.images.dtype == np.uint8
    assert arrays.labels.tolist() == [0, 1, 2, 1]
    assert arrays.labels.dtype == np.int64
    assert arrays.ids.tolist() == [f"test-00000{row}" for row in range(4)]
    assert arrays.patients is None


def test_reads_ids_and_patients_of_any_text(save: Save) -> None:
    arrays = read(
        save(test_ids=np.array([[7], [8], [9], [10]]), test_patients=np.array([b"p"] * 4)), "test"
    )
    assert arrays.ids.tolist() == ["7", "8", "9", "10"]
    assert arrays.patients is not None
    assert arrays.patients.tolist() == ["p"] * 4


def test_an_image_of_unknown_patient_is_a_patient_of_its_own(save: Save) -> None:
    path = save(
        test_patients=np.array(["p", "", "p", ""]),
        val_patients=np.array(["", "", "q", ""]),
        train_patients=np.array([""] * 4),
    )
    patients = read(path, "test").patients
    assert patients is not None
    assert patients[0] == patients[2] == "p"
    assert len(set(patients.tolist())) == 3
    others = read(path, "val").patients
    assert others is not None
    assert not set(patients.tolist()) & set(others.tolist())
    assert read(path, "train").patients is None


@pytest.mark.parametrize("dtype", [">f2", "<f4", ">f8"])
def test_floats_are_read_as_float32_in_c_order(save: Save, dtype: str) -> None:
    images = np.asfortranarray(np.linspace(0, 1, 4 * 8 * 6).reshape(4, 8, 6).astype(dtype))
    arrays = read(save(test_images=images), "test").images
    assert arrays.dtype == np.dtype("=f4")
    assert arrays.flags.c_contiguous
    np.testing.assert_array_equal(arrays, images.astype(np.float32))


def test_an_axis_of_one_channel_is_dropped_and_colour_is_not(save: Save) -> None:
    assert read(save(test_images=np.zeros((4, 8, 6, 1), np.uint8)), "test").images.ndim == 3
    assert read(save(test_images=np.zeros((4, 8, 6, 3), np.uint8)), "test").images.shape[3] == 3


def test_only_the_requested_split_is_read(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    keys_read: list[str] = []
    array = Npz.array

    def spy(file: Npz, key: str) -> Any:  # noqa: ANN401 - as the method
        keys_read.append(key)
        return array(file, key)

    monkeypatch.setattr(Npz, "array", spy)
    read(save(train_images=np.zeros((4, 8, 6), np.int16)), "test")
    assert sorted(keys_read) == ["test_images", "test_labels"]


@pytest.mark.parametrize(("changed", "message"), RULES)
def test_what_is_no_image_label_or_id_is_refused(
    save: Save, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(save(**changed), "test")


@pytest.mark.parametrize(("changed", "message"), CONTRACT)
def test_the_data_contract_is_held(save: Save, changed: dict[str, Any], message: str) -> None:
    info = json.dumps({"classes": ["a", "b", "c"]})
    plain = save("plain.npz", info=info)
    own_file = save(**changed, info=info)
    dataset = load_dataset(str(plain))
    broken = type(dataset)(dataset.card, lambda split: read(own_file, split))
    with pytest.raises(DataError, match=message):
        broken.arrays("test")


def test_pickled_objects_are_refused_and_run_no_code(save: Save, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    evil = np.array([Harm()] * 4, dtype=object)
    np.load(save("control.npz", test_ids=evil), allow_pickle=True)["test_ids"]
    assert (tmp_path / "harm").exists(), "the pickle must be able to do harm"
    (tmp_path / "harm").rmdir()
    for key in ("test_ids", "test_images", "test_labels", "info"):
        path = save(**{key: evil})
        with pytest.raises(DataError, match=r"expected numbers or text, got Python objects"):
            read(path, "test") if key != "info" else card_of(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("present", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(save: Save, present: float) -> None:
    path = save()
    content = path.read_bytes()
    path.write_bytes(
        content[: int(present * len(content)) if isinstance(present, float) else present]
    )
    with pytest.raises(DataError, match=r"expected a sound \.npz file, got: .*fetch it again"):
        read(path, "test")


def test_every_flipped_byte_is_noticed_or_harmless(save: Save) -> None:
    path = save()
    sound = read(path, "test")
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            arrays = read(path, "test")
        except DataError:
            refused += 1
        else:
            assert arrays.fingerprint() == sound.fingerprint()
    assert refused > 50


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            npy("(1000000, 1000000, 1000000)"),
            "expected at most 17179869184 bytes, got 1000000000000",
        ),
        (npy("(4, 8, 6)", body=b"\0" * 191), "expected 192 bytes as its header says, got 191"),
        (npy("(4, 8, 6)", body=b"\0" * 193), "expected 192 bytes as its header says, got 193"),
        (npy("(-4, -8, 6)", body=b"\0" * 192), "expected 192 bytes as its header says"),
        (npy("__import__('os').getcwd()"), "expected a sound .npz file"),
        (npy("(" * 5000 + "4,8,6" + ")" * 5000), "expected a sound .npz file"),
        (npy("(4, 8, 6)", dtype="|U0"), r"expected uint8 or float in \[0,1\], got <U0"),
        (b"\x93NUMPY\x09\x00", "expected a sound .npz file"),
        (b"no array", "expected a sound .npz file"),
        (b"", "expected a sound .npz file"),
    ],
)
def test_headers_are_not_believed(tmp_path: Path, member: bytes, message: str) -> None:
    path = npz_of(tmp_path / "a.npz", {"test_images.npy": member, "test_labels.npy": npy("(4,)")})
    with pytest.raises(DataError, match=message):
        read(path, "test")


def test_a_bomb_is_refused_before_it_is_unpacked(save: Save) -> None:
    path = save(test_images=np.zeros((1000, 64, 64), np.uint8))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"expected at most 1000000 bytes, got 4096000; split"):
        read(path, "test", cap=1_000_000)


def test_an_encrypted_or_oddly_packed_member_is_refused(tmp_path: Path) -> None:
    path = npz_of(tmp_path / "a.npz", {"test_images.npy": npy("(1, 1, 1)", body=b"\0")})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    for field, value in ((6, 1), (8, 97)):
        changed = bytearray(content)
        changed[field] = changed[directory + field + 2] = value
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"expected a sound \.npz file, got: "):
            read(path, "test")


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected a \.npz file, got nothing there; check the path"
    ):
        read(tmp_path / "none.npz", "test")
    with pytest.raises(DataError, match=r"expected a \.npz file, got a folder"):
        card_of(tmp_path)


def test_a_plain_npy_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    (tmp_path / "a.npz").write_bytes(stream.getvalue())
    with (
        pytest.raises(
            DataError, match=r"expected a \.npz file, got a single array \(\.npy\): load it"
        ),
        opened(tmp_path / "a.npz"),
    ):
        pass
