"""The format of other files is recognised, with advice on how to make an .npz of them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import DataError


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, kind)
    return stream.getvalue()


def torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, stream)
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def zipped(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, b"content")
    return stream.getvalue()


NIFTI = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(100)
FILES = [
    ("scan.dcm", bytes(128) + b"DICM" + bytes(64), "a DICOM file: read the series with pydicom"),
    ("scan.dcm", bytes([8, 0, 5, 0]) * 20, "a DICOM file without preamble"),
    ("brain.nii", NIFTI, "a NIfTI volume: read it with nibabel"),
    ("brain.nii.gz", gzip.compress(NIFTI), "a NIfTI volume, compressed by gzip"),
    ("notes.gz", gzip.compress(b"nothing"), "a gzip file: unpack"),
    ("a.png", picture("PNG"), "a PNG picture: read them with PIL"),
    ("a.jpg", picture("JPEG"), "a JPEG picture"),
    ("a.tif", picture("TIFF"), "a TIFF picture: read it with tifffile"),
    ("a.gif", picture("GIF"), "a GIF picture"),
    ("a.bmp", picture("BMP"), "a BMP picture"),
    ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file: read its datasets with h5py"),
    (
        "a.mat",
        b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(90),
        "a MATLAB .* scipy.io.loadmat",
    ),
    ("a.mat", b"MATLAB 7.3 MAT-file" + bytes(600), "a MATLAB 7.3 .* h5py"),
    ("a.nrrd", b"NRRD0004\ntype: short\n", "an NRRD volume"),
    ("a.mha", b"ObjectType = Image\nNDims = 3\n", "a MetaImage"),
    ("a.pkl", pickle.dumps([1, 2]), "a Python pickle, which can run code and is never read"),
    ("a.pt", torch_file(), "a torch file .* never read"),
    ("a.npy", npy(), "a single array .*: load it with numpy.load"),
    ("a.csv", b"image,label\na.png,1\n", "a CSV table"),
    ("a.json", json.dumps({"images": []}).encode(), "a JSON text"),
    ("a.txt", b"hello there", "a text file"),
    ("a.parquet", b"PAR1" + bytes(20), "a Parquet table"),
    ("a.zip", zipped("a.png"), "a zip archive without arrays: unpack"),
    ("a.xlsx", zipped("[Content_Types].xml"), "an Office document"),
]


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize(  # the ids leave out the content: an archive holds the time it was made
    ("name", "content", "message"), FILES, ids=[name for name, *_ in FILES]
)
def test_another_format_is_named(
    tmp_path: Path, name: str, content: bytes, message: str, renamed: bool
) -> None:
    if renamed and "preamble" in message:
        pytest.skip("known by its name alone")
    path = tmp_path / ("renamed.npz" if renamed else name)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"expected a \.npz file, got {message}") as caught:
        load_dataset(path)
    text = str(caught.value)
    assert "numpy.savez_compressed" in text
    assert "damaged" not in text
    assert "\n" not in text


def test_a_folder_is_named_by_what_it_holds(tmp_path: Path) -> None:
    for row in range(3):
        (tmp_path / f"{row}.png").write_bytes(picture("PNG"))
    with pytest.raises(DataError, match=r"got a folder of 3 \.png files: read its images"):
        load_dataset(tmp_path)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "a.npz", test_images=np.zeros(3))
    with pytest.raises(DataError, match=r"got a folder of 1 \.npz files: give the path of one"):
        load_dataset(tmp_path / "data")


@pytest.mark.parametrize("kept", [10, 200])
def test_a_damaged_npz_is_no_other_format(tmp_path: Path, kept: int) -> None:
    np.savez(tmp_path / "a.npz", test_images=np.zeros((4, 8, 8)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:kept])
    with pytest.raises(DataError, match=r"expected a sound \.npz file, got: .*fetch it again"):
        load_dataset(tmp_path / "a.npz")
