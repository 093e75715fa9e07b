"""Compressed DICOM: equal to what was encoded, and refused where a stream states other sides."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from robustbench_med.datasets.sources import dicom
from robustbench_med.datasets.sources.code_stream import shape_of
from robustbench_med.datasets.sources.refs import UnreadableError
from tests.datasets.sources.dicoms import write

ROWS, COLUMNS = 40, 48
GREY = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS)).astype(np.uint8)
COLOUR = np.stack([np.indices((ROWS, COLUMNS))[k % 2] * (4 + k) for k in range(3)], -1)


def encoded(values: np.ndarray, kind: str) -> bytes:
    """Return the code stream, or the JP2 file, that Pillow makes."""
    stream = io.BytesIO()
    picture = Image.fromarray(values.astype(np.uint8))
    if kind == "JPEG":
        picture.save(stream, kind, quality=95, subsampling=0)
    else:
        picture.save(stream, "JPEG2000", no_jp2=kind == "j2k")
    return stream.getvalue()


def wrapped(path: Path, values: np.ndarray, streams: list[bytes], syntax: str) -> Path:
    """Write a DICOM file with code streams; its header states the shape of `values`."""
    image = pydicom.dcmread(write(path, values, Modality="US"))
    image.PixelData = encapsulate(streams)
    image["PixelData"].is_undefined_length = True
    if values.shape[-1] == 3:
        image.PhotometricInterpretation = "YBR_FULL" if syntax == JPEGBaseline8Bit else "RGB"
    image.file_meta.TransferSyntaxUID = UID(syntax)
    image.save_as(path, enforce_file_format=True)
    return path


def decoded(path: Path) -> np.ndarray:
    refs = dicom.slice_refs(dicom.read_header(path.parent, path.name))
    return np.squeeze([dicom.decode(path.parent, ref) for ref in refs])


@pytest.mark.parametrize("values", [GREY, COLOUR.astype(np.uint8)], ids=["grey", "colour"])
def test_jpeg_baseline_is_what_pillow_decodes(tmp_path: Path, values: np.ndarray) -> None:
    stream = encoded(values, "JPEG")
    path = wrapped(tmp_path / "a.dcm", values, [stream], JPEGBaseline8Bit)
    expected = np.asarray(Image.open(io.BytesIO(stream))).astype(int)
    # decoders round the luma, and each colour difference, to one of two neighbours
    most = 1 if values.ndim == 2 else 1 + 1.772 + 0.5
    assert np.abs(decoded(path).astype(int) - expected).max() <= most
    assert shape_of(stream) == (ROWS, COLUMNS, 3 if values.ndim == 3 else 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_jpeg_ls_is_lossless(tmp_path: Path, dtype: str) -> None:
    stored = np.random.default_rng(1).integers(0, 256, (ROWS, COLUMNS)).astype(dtype)
    path = write(tmp_path / "a.dcm", stored, compress=JPEGLSLossless, Modality="US")
    np.testing.assert_array_equal(decoded(path), stored)


@pytest.mark.parametrize("kind", ["j2k", "jp2"])
def test_every_frame_of_jpeg_2000(tmp_path: Path, kind: str) -> None:
    frames = np.stack([GREY, GREY[::-1], 255 - GREY])
    streams = [encoded(frame, kind) for frame in frames]
    path = wrapped(tmp_path / "a.dcm", frames, streams, JPEG2000Lossless)
    np.testing.assert_array_equal(decoded(path), frames)
    assert {shape_of(stream) for stream in streams} == {(ROWS, COLUMNS, 1)}


def _jpeg_sides(stream: bytes) -> bytes:
    place = stream.index(b"\xff\xc0") + 5
    return stream[:place] + b"\xff\xff\xff\xff" + stream[place + 4 :]


def _j2k_sides(stream: bytes) -> bytes:
    place = stream.index(b"\xff\x4f\xff\x51") + 8
    return stream[:place] + b"\x00\x01\x00\x00" * 2 + stream[place + 8 :]


HOSTILE = [
    ("JPEG", JPEGBaseline8Bit, _jpeg_sides, "states 65535x65535x1, its header 40x48x1"),
    ("j2k", JPEG2000, _j2k_sides, "states 65536x65536x1, its header 40x48x1"),
    ("jp2", JPEG2000, _j2k_sides, "states 65536x65536x1, its header 40x48x1"),
    ("JPEG", JPEGBaseline8Bit, lambda stream: stream[:4] + bytes(len(stream)), "states no size"),
    ("j2k", JPEG2000, lambda stream: b"\0" * len(stream), "states no size"),
]


@pytest.mark.parametrize(("kind", "syntax", "change", "message"), HOSTILE)
def test_other_sides_are_refused_before_they_are_decoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    syntax: str,
    change: object,
    message: str,
) -> None:
    def decoder(*_: object, **__: object) -> None:
        raise AssertionError("the decoder was called")

    assert callable(change)
    path = wrapped(tmp_path / "a.dcm", GREY, [change(encoded(GREY, kind))], syntax)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", decoder)
    with pytest.raises(UnreadableError, match=f"its code stream {message}"):
        decoded(path)
