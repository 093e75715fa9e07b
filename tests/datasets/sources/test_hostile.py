"""Damaged and hostile files: each one line, exit code 2, under 5 s and 1 GiB, nothing executed."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.datasets.sources.conftest import picture, save, write_table
from tests.datasets.sources.dicoms import deflated_bomb
from tests.datasets.sources.dicoms import write as write_dicom

Make = Callable[[Path], None]
GIB = 2**30
SECONDS = 5.0


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(
    width: int = 12, height: int = 10, *, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    """Return a grey PNG whose header states a size, with other content if it is given."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"\0" * ((width + 1) * height) if rows is None else rows
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), extra]
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def jpeg() -> bytes:
    """Return a JPEG picture."""
    stream = io.BytesIO()
    Image.fromarray(picture(0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def _pictures(folder: Path) -> None:
    """Write a sound folder of four pictures and a table."""
    rows: list[tuple[object, ...]] = [("file", "label")]
    for k in range(4):
        save(folder / f"{k}.png", picture(k % 2, k))
        rows.append((f"{k}.png", k % 2))
    write_table(folder / "t.csv", rows)


def _odd(name: str, content: bytes) -> Make:
    """Return a maker of a folder in which one file has odd content."""

    def make(folder: Path) -> None:
        _pictures(folder)
        (folder / name).write_bytes(content)

    return make


def _cell(cell: str) -> Make:
    def make(folder: Path) -> None:
        _pictures(folder)
        with (folder / "t.csv").open("a") as file:
            file.write(f"{cell},1\n")

    return make


def _table(content: bytes) -> Make:
    def make(folder: Path) -> None:
        _pictures(folder)
        (folder / "t.csv").write_bytes(content)

    return make


def _volume(change: Callable[[bytearray], object], *, packed: bool = False) -> Make:
    """Return a maker of NIfTI volumes of which one has changed bytes."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[tuple[object, ...]] = [("file", "label")]
        for k in range(4):
            values = np.random.default_rng(k).integers(0, 99, (5, 6, 7)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{k}.nii")
            rows.append((f"{k}", k % 2))
        raw = bytearray((folder / "3.nii").read_bytes())
        change(raw)
        (folder / "3.nii").write_bytes(bytes(raw))
        if packed:
            (folder / "3.nii").unlink()
            with gzip.open(folder / "3.nii.gz", "wb") as file:
                file.write(bytes(raw))
        write_table(folder / "t.csv", rows)

    return make


def _at(offset: int, content: bytes) -> Callable[[bytearray], object]:
    def change(raw: bytearray) -> None:
        raw[offset : offset + len(content)] = content

    return change


def _dims(*dims: int) -> Callable[[bytearray], object]:
    return _at(40, np.array(dims, "<i2").tobytes())


def _cut_gzip(folder: Path) -> None:
    _volume(lambda raw: None, packed=True)(folder)
    path = folder / "3.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])


def _nan_affine(raw: bytearray) -> None:
    _at(254, b"\1\0")(raw)
    _at(280, np.full(12, np.nan, "<f4").tobytes())(raw)


def _slices(change: Callable[[Path], object], **tags: Any) -> Make:  # noqa: ANN401
    """Return a maker of DICOM slices of which one is changed."""

    def make(folder: Path) -> None:
        rows: list[tuple[object, ...]] = [("file", "label")]
        for k in range(4):
            stored = np.random.default_rng(k).integers(0, 999, (10, 12)).astype(np.uint16)
            write_dicom(folder / f"{k}.dcm", stored, **(tags if k == 3 else {}))
            rows.append((f"{k}", k % 2))
        change(folder / "3.dcm")
        write_table(folder / "t.csv", rows)

    return make


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return apply


def _nothing(path: Path) -> None:
    """Leave a file as it is."""


def _report(path: Path) -> None:
    """Make a report of an image, which has no pixels."""
    image = pydicom.dcmread(path)
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(image, tag)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.UID(REPORT)
    image.save_as(path, enforce_file_format=True)


class _Runs:
    """A pickle that writes a file where it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def _npz(**members: bytes) -> Make:
    """Return a maker of an archive with members of these bytes."""

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "mine.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    return make


def _array(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def _stated(shape: tuple[int, ...], dtype: str = "|u1", body: bytes = b"") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + body


def _card(text: str) -> Make:
    """Return a maker of a folder with a card file of this text."""

    def make(folder: Path) -> None:
        _pictures(folder / "data")
        (folder / "mine.toml").write_text(text)

    return make


CARD = """
name = "x"
title = "x"
modality = "x"
task = "single_label"
classes = ["a", "b"]
channels = 1
size = [10, 12]
{more}
[source]
path = "data"
format = "pictures"
labels = "csv"
values = ["0", "1"]
csv = "{csv}"
{source}
[source.columns]
file = "file"
label = "{label}"
[source.draw]
"""


def card(more: str = "", csv: str = "t.csv", source: str = "", label: str = "label") -> str:
    return CARD.format(more=more, csv=csv, source=source, label=label)


LABELS = _array(np.arange(2))
OBJECT = np.array([_Runs()], dtype=object)
FLOATS = np.array([[0.5]], "<f4").tobytes()
BOMB_TEXT = zlib.compress(b"a" * 2**26)
NOISE = np.random.default_rng(0).integers(0, 256, (10, 13)).astype(np.uint8)
NOISE[:, 0] = 0  # the filter of each row
SOUND = png()
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
CORPUS: dict[str, tuple[Make, str]] = {
    # pictures
    "empty picture": (_odd("3.png", b""), "3.png: it is no picture"),
    "text as picture": (_odd("3.png", b"hello"), "3.png: it is no picture"),
    "pickle as picture": (_odd("3.png", pickle.dumps(_Runs())), "3.png: it is no picture"),
    "cut picture": (_odd("3.png", png(rows=NOISE.tobytes())[:-60]), "3.png: it is cut"),
    "cut header": (_odd("3.png", SOUND[:20]), "3.png: it is"),
    "wide picture": (_odd("3.png", png(2**31 - 1, 2**31 - 1, rows=b"")), "too large|more than"),
    "huge picture": (_odd("3.png", png(60000, 60000, rows=b"")), "too large|more than"),
    "no pixels": (_odd("3.png", png(0, 10, rows=b"")), "3.png: it is"),
    "cut JPEG": (_odd("3.png", jpeg()[:-60]), "3.png: it is cut"),
    "text bomb": (
        _odd("3.png", png(extra=chunk(b"zTXt", b"abcd\0\0" + BOMB_TEXT))),
        "3.png: it is",
    ),
    "PostScript": (
        _odd("3.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "no picture",
    ),
    "SVG": (_odd("3.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "no picture"),
    "wrong bytes": (_odd("3.png", SOUND[:40] + b"\xff" * 30 + SOUND[70:]), "3.png: it is"),
    "BMP of odd size": (_odd("3.bmp", b"BM" + b"\xff" * 60), "3.bmp"),
    "TIFF loop": (_odd("3.tif", b"II*\0\x08\0\0\0\1\0" + b"\xff" * 12 + b"\x08\0\0\0"), "3.tif"),
    # tables
    "parent in a cell": (_cell("../../etc/passwd"), "expected a file inside"),
    "absolute cell": (_cell("/etc/passwd"), "expected a file inside"),
    "drive in a cell": (_cell(r"C:\\x.png"), "expected a file inside"),
    "unknown file": (_cell("9.png"), "'9.png', which is not there"),
    "bytes in a table": (_table(b"\xff\xfe\0\0"), "expected a CSV table in UTF-8"),
    "zero bytes in a table": (_table(b"file,label\n0.png,\0\n"), "t.csv"),
    "one line": (_table(b"file,label\n"), "expected a row of column names and rows below"),
    "ragged": (_table(b"file,label\n0.png\n"), "row 2: expected 2 cells, got 1"),
    "equal columns": (_table(b"file,file\n0.png,1\n"), "columns of different names"),
    "open quote": (_table(b'file,label\n"0.png,1\n'), "expected a CSV table, got"),
    "long cell": (_table(b"file,label\n" + b"x" * 2**20 + b",1\n"), "t.csv: expected a CSV"),
    "fractions": (_table(b"file,label\n0.png,0.5\n1.png,1.5\n"), "got fractions such as 0.5"),
    "one class": (_table(b"file,label\n0.png,1\n1.png,1\n"), "at least two classes"),
    # volumes
    "32000^3": (_volume(_dims(3, 32000, 32000, 32000)), "32000x32000x32000 values, more than"),
    "packed 32000^3": (_volume(_dims(3, 32000, 32000, 32000), packed=True), "32000x32000x32000"),
    "negative size": (_volume(_dims(3, -5, 6, 7)), "3.nii"),
    "eight axes": (_volume(_dims(9, 5, 6, 7)), "3.nii"),
    "long series": (_volume(_dims(4, 5, 6, 7, 999)), "3.nii: it has .* a series of 999"),
    "no magic": (_volume(_at(344, b"abcd")), "3.nii: it is"),
    "complex": (_volume(_at(70, np.array([32, 64], "<i2").tobytes())), "no integers or real"),
    "unknown type": (_volume(_at(70, np.array([999, 64], "<i2").tobytes())), "3.nii: it is"),
    "cut volume": (_volume(lambda raw: raw.__delitem__(slice(-40, None))), "3.nii: it is cut"),
    "cut header of a volume": (
        _volume(lambda raw: raw.__delitem__(slice(90, None))),
        "3.nii: it is",
    ),
    "offset outside": (_volume(_at(108, np.array([1e9], "<f4").tobytes())), "3.nii: it is"),
    "NaN affine": (_volume(_nan_affine), "3.nii: its affine"),
    "cut gzip": (_cut_gzip, "3.nii.gz: it is"),
    # DICOM
    "empty DICOM": (_slices(_bytes(lambda c: b"")), "3.dcm: it is"),
    "zeros": (_slices(_bytes(lambda c: bytes(len(c)))), "3.dcm: it is no DICOM"),
    "cut DICOM": (_slices(_bytes(lambda c: c[:-50])), "3.dcm: it is cut"),
    "cut DICOM header": (_slices(_bytes(lambda c: c[:420])), "3.dcm: it is cut"),
    "huge Rows": (_slices(_nothing, Rows=65535, Columns=65535), "65535x65535x1 values, more than"),
    "no Rows": (_slices(_nothing, Rows=0), "3.dcm: its header states the size"),
    "a billion frames": (_slices(_nothing, NumberOfFrames="1000000000"), "3.dcm"),
    "odd bits": (_slices(_nothing, BitsStored=30), "3.dcm"),
    "odd colours": (
        _slices(_nothing, PhotometricInterpretation="TEA"),
        "PhotometricInterpretation",
    ),
    "five samples": (_slices(_nothing, SamplesPerPixel=5), "3.dcm"),
    "slope 0": (_slices(_nothing, RescaleSlope="0"), "rescale slope"),
    "unknown syntax": (
        _slices(_bytes(lambda c: c.replace(b"10008.1.2.1", b"10008.1.9.9"))),
        "3.dcm",
    ),
    "deflated bomb": (
        _slices(deflated_bomb),
        "3.dcm: it is deflated and unpacks to more than 128 MiB",
    ),
    "a report": (_slices(_report), "'3', which is not there"),
    # archives
    "pickle in npz": (_npz(test_images=_array(OBJECT), test_labels=LABELS), "Python objects"),
    "pickle in labels": (
        _npz(test_images=_array(np.zeros((2, 8, 8), np.uint8)), test_labels=_array(OBJECT)),
        "Python objects",
    ),
    "bomb in npz": (
        _npz(test_images=_stated((2, 2**20, 2**13), body=bytes(2**26)), test_labels=LABELS),
        "expected at most|as its header says",
    ),
    "wild npz header": (
        _npz(
            test_images=b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('x')   ",
            test_labels=LABELS,
        ),
        "expected a sound .npz",
    ),
    # card files
    "card: parent as table": (_card(card(csv="../../etc/passwd")), "expected a file inside"),
    "card: absolute table": (_card(card(csv="/etc/passwd")), "expected a file inside"),
    "card: code": (_card(card('function = "os:system"')), "expected no 'function'"),
    "card: huge size": (_card(card().replace("[10, 12]", "[65536, 65537]")), "expected size ="),
    "card: nested": (_card("a = " + "[" * 20000), "expected TOML"),
    "card: unknown key": (_card(card(source="run = 1")), "expected no 'run'"),
    "card: no such class": (
        _card(card().replace('["0", "1"]', '["0", "2"]')),
        "expected labels 0, 2",
    ),
}
QUICK = ("wide picture", "parent in a cell", "32000^3", "huge Rows", "pickle in npz", "card: code")


def _target(folder: Path) -> Path:
    for name in ("mine.npz", "mine.toml"):
        if (folder / name).exists():
            return folder / name
    return folder


WORK = """
import json, resource, sys, time
from pathlib import Path
from typer.testing import CliRunner
from robustbench_med import cli
import robustbench_med.datasets.sources.recognise, robustbench_med.datasets.load
import torch, pydicom.pixels, nibabel, highdicom
results = {}
for name, path in json.loads(sys.stdin.read()).items():
    command = ["inspect", path, "--out", "out.toml", "--force"]
    if path.endswith(".npz"):
        command = ["plan", "quick", "--dataset", path, "--victim", "chest_resnet"]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    result = CliRunner().invoke(cli.app, command)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    error = result.exception
    line = f"{type(error).__name__}: {error}" if error else "no error: " + result.output
    results[name] = [line, time.process_time() - start, grown * 1024]
print(json.dumps(results))
"""


def _run(folder: Path, names: list[str]) -> dict[str, tuple[str, float, float]]:
    """Inspect each file in one process of its own; return its message, seconds and bytes."""
    paths: dict[str, str] = {}
    for name in names:
        home = folder / str(len(paths)) / "data"
        CORPUS[name][0](home)
        paths[name] = str(_target(home))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:robustbench_med", "-c", WORK],
        input=json.dumps(paths),
        cwd=folder,
        env={**os.environ, "ROBUSTBENCH_MED_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, tuple[str, float, float]] = json.loads(done.stdout.splitlines()[-1])
    return results


def _check(folder: Path, names: list[str]) -> None:
    faults = []
    for name, (line, seconds, grown) in _run(folder, names).items():
        error, _, message = line.partition(": ")
        if error not in ("DataError", "SpecError") or "\n" in message:
            faults.append(f"{name}: {line[:300]}")
        elif not re.search(CORPUS[name][1], message):
            faults.append(f"{name}: expected {CORPUS[name][1]!r}: {message[:300]}")
        elif seconds > SECONDS or grown > GIB:
            faults.append(f"{name}: {seconds:.1f} s, {grown / 2**20:.0f} MiB")
    assert not faults, "\n".join(faults)
    assert not list(folder.rglob("executed"))


@pytest.mark.slow
def test_each_file_of_the_corpus_is_refused_in_one_line(tmp_path: Path) -> None:
    assert len(CORPUS) >= 60
    _check(tmp_path, list(CORPUS))


def test_some_files_of_the_corpus_are_refused_in_one_line(tmp_path: Path) -> None:
    _check(tmp_path, list(QUICK))


@pytest.mark.parametrize("name", ["32000^3", "cut DICOM", "pickle in npz"])
def test_the_command_ends_with_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    CORPUS[name][0](tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-m", "robustbench_med", "inspect", str(_target(tmp_path / "data"))],
        cwd=tmp_path,
        env={**os.environ, "ROBUSTBENCH_MED_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.search(CORPUS[name][1], line)
    assert not list(tmp_path.rglob("executed"))
    assert not (tmp_path / "mine.toml").exists()
