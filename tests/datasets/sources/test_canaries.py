"""From a folder of clinical files to attacked files: names planted in headers come out nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from robustbench_med.cli import app
from tests.datasets.sources.dicoms import uid
from tests.datasets.sources.dicoms import write as write_dicom

CANARY = "Kanarienvogel"
PART = b"kanarien"  # of it, as fits the shortest field of a header
COUNT = 6  # files; each holds a part of all tags
NETWORK = """
import torch
from torch import nn
class Mean(nn.Module):
    def forward(self, x):
        above = (x.flatten(1).mean(1) * 400 - 160 - 50) / 10
        return torch.stack([-above, above], 1)
def make():
    return Mean()
"""
TEXT_TYPES = ("LO", "LT", "PN", "SH", "ST", "UC", "UT", "AE", "CS", "UR")
# without these three codes a file is no image that is read
READ_CODES = ("Modality", "PhotometricInterpretation", "SpecificCharacterSet")
_FIRST_GROUP = 3  # groups 0 and 2 are those of messages and of the file itself


def slice_of(label: int, seed: int) -> NDArray[np.int16]:
    """Return a slice (8, 12) of HU whose mean is 40 or 60."""
    half = np.random.default_rng(seed).integers(0, 30, (8, 6))
    body = np.concatenate([half, -half], axis=1) + (60 if label else 40)
    return body.astype(np.int16)


def text_tags() -> list[tuple[str, str, int]]:
    """Return each tag of DICOM's dictionary whose value is text: keyword, type, values it needs."""
    return [
        (keyword, kind, int(count.split("-")[0]))
        for tag, (kind, count, _, _, keyword) in sorted(DicomDictionary.items())
        if kind in TEXT_TYPES and keyword and keyword not in READ_CODES
        if tag >> 16 >= _FIRST_GROUP
    ]


def dicom_folder(root: Path) -> None:
    """Write slices whose headers hold the canary in every tag of text, each tag in one of them."""
    tags = text_tags()
    assert len(tags) > 1500
    for i in range(COUNT):
        own = tags[i::COUNT]
        text = {
            name: [CANARY.upper() if kind == "CS" else CANARY] * most for name, kind, most in own
        }
        text["PatientID"] = [f"{CANARY}{i % 2}"]
        label = i % 2
        stored = (slice_of(label, i) + 1024).astype(np.uint16)
        stored[0, 0] = 0  # air, by which a CT is known
        path = root / ("benign", "malignant")[label] / f"{i:03d}.dcm"
        write_dicom(
            path,
            stored,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            BitsStored=12,
            PixelSpacing=[0.7, 0.7],
            SeriesInstanceUID=uid("series", i),
            StudyInstanceUID=uid("study", i),
            ImagePositionPatient=[-10.5, 20.25, 3 * i],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],  # sagittal
        )
        image = pydicom.dcmread(path)
        for name, values in text.items():
            setattr(image, name, values if len(values) > 1 else values[0])
        inside = Dataset()
        inside.RequestedProcedureDescription = CANARY
        image.RequestAttributesSequence = [inside]
        image.private_block(0x0011, CANARY, create=True).add_new(1, "LO", CANARY)
        image.preamble = CANARY.encode().ljust(128, b"\0")
        image.save_as(path, enforce_file_format=True)
        assert path.read_bytes().lower().count(PART) > len(own)


def nifti_folder(root: Path) -> None:
    """Write volumes whose headers hold the canary in every field of text."""
    for i in range(COUNT):
        label = i % 2
        values = np.stack([slice_of(label, i), slice_of(label, i + 100)])
        values[0, 0, 0], values[1, 0, 0] = -1024, 1000  # air and bone, by which a CT is known
        affine = np.diag([0.7, 0.7, 0.7, 1])
        affine[:3, 3] = -10.5, 20.25, 3 * i
        image = nibabel.Nifti1Image(values, affine)
        types = {name: image.header[name].dtype for name in image.header}
        fields = [n for n, t in types.items() if t.kind == "S" and t.itemsize > 4]  # no mark
        assert sorted(fields) == ["aux_file", "data_type", "db_name", "descrip", "intent_name"]
        for name in fields:
            image.header[name] = CANARY.encode()[: types[name].itemsize]
        extension = nibabel.nifti1.Nifti1Extension("comment", CANARY.encode() * 4)
        image.header.extensions.append(extension)
        path = root / ("benign", "malignant")[label] / f"{i:03d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)


def words_of(folder: Path) -> bytes:
    """Return the names and contents of all files below a folder, unpacked."""
    contents = []
    for path in folder.rglob("*"):
        contents.append(path.name.encode())
        if path.suffix == ".gz":
            contents.append(nibabel.Nifti1Image.from_filename(path).to_bytes())
        elif path.is_file():
            contents.append(path.read_bytes())
    return b"\n".join(contents)


def places(folder: Path) -> set[tuple[float, ...]]:
    """Return where each image lies in the patient, and how it is turned."""
    found = set()
    for path in folder.rglob("*"):
        if path.suffix == ".dcm":
            image = pydicom.dcmread(path)
            tags = (*image.ImagePositionPatient, *image.ImageOrientationPatient)
            found.add(tuple(round(float(value), 4) for value in tags))
        if path.suffix == ".gz":
            affine = nibabel.Nifti1Image.from_filename(path).affine
            found.add(tuple(affine.flatten().round(4).tolist()))
    return found


@pytest.mark.parametrize(
    ("make", "kind"), [(dicom_folder, "dicom"), (nifti_folder, "nifti")], ids=["dicom", "nifti"]
)
def test_names_in_headers_come_out_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], None],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTBENCH_MED_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "scans")
    caplog.set_level(logging.DEBUG)
    (tmp_path / "net.py").write_text(NETWORK)
    said = []

    def run(*words: str) -> None:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, f"{done.output} {done.exception!r}"
        said.append(done.output)

    run("inspect", "scans")
    card = tmp_path / "mine.toml"
    if "[source.draw]" in (text := card.read_text()) and "test = 1.0" not in text:
        text = text.replace("train = 0.6", "train = 0.0").replace("val = 0.2", "val = 0.0")
        card.write_text(text.replace("test = 0.2", "test = 1.0"))
    steps = ["--preprocess", "window(40, 400)", "--operating-point", "argmax", "--save-images"]
    attack = ["--attack", "fgsm", "--eps", "5HU,30HU"]
    run("run", "quick", "--dataset", "mine.toml", "--model", "net.py:make", *steps, *attack)
    (record,) = (tmp_path / "results").rglob("record.json")
    run("report", str(record.parent.parent))
    (report,) = (tmp_path / "results").rglob("report-*.html")
    assert "Before the network" in report.read_text()
    assert "window(40, 400)" in report.read_text()
    run("verify", str(record.parent), "--run-code")
    run("export", str(record.parent), "--as", kind, "--out", "attacked", "--run-code")
    assert "still succeed from the file" in said[-1]
    assert places(tmp_path / "attacked") <= places(tmp_path / "scans")
    assert len(places(tmp_path / "attacked")) > 1
    written = words_of(tmp_path / "results") + words_of(tmp_path / "attacked")
    assert b"30 HU" in written
    assert b"window(40, 400)" in written
    written += card.read_bytes() + words_of(tmp_path / "cache")
    written += "".join(said).encode() + caplog.text.encode()
    assert PART not in written.lower()


def test_a_refused_file_does_not_tell_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    dicom_folder(tmp_path / "scans")
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "scans" / "benign" / "000.dcm"
    path.write_bytes(path.read_bytes()[:-150])  # of its 192 bytes of pixels
    done = CliRunner().invoke(app, ["inspect", "scans"])
    said = f"{done.output} {done.exception} {caplog.text}"
    assert "benign/000.dcm: it is cut" in said
    assert PART.decode() not in said.lower()
