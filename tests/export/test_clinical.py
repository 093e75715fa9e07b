"""From a folder of clinical files to attacked files: names planted in headers come out nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from robustbench_med.cli import app
from tests.datasets.sources.dicoms import uid
from tests.datasets.sources.dicoms import write as write_dicom

CANARY = "Kanarienvogel"
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
TEXT_TAGS = (
    *("PatientName", "PatientComments", "OtherPatientNames", "InstitutionName", "StationName"),
    *("ReferringPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription"),
    *("ImageComments", "AccessionNumber", "StudyID", "ProtocolName", "PatientID"),
)


def slice_of(label: int, seed: int) -> NDArray[np.int16]:
    """Return a slice (8, 12) of HU whose mean is 40 or 60, with a border of air."""
    half = np.random.default_rng(seed).integers(0, 30, (8, 6))
    body = np.concatenate([half, -half], axis=1) + (60 if label else 40)
    return body.astype(np.int16)


def dicom_folder(root: Path) -> Path:
    for i in range(24):
        label = i % 2
        tags = {tag: f"{CANARY}^{i}" for tag in TEXT_TAGS}
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
            **tags,
        )
    return root


def nifti_folder(root: Path) -> Path:
    for i in range(24):
        label = i % 2
        values = np.stack([slice_of(label, i), slice_of(label, i + 100)])
        values[0, 0, 0], values[1, 0, 0] = -1024, 1000  # air and bone, by which a CT is known
        image = nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 0.7, 1]))
        image.header["descrip"] = CANARY.encode()
        image.header["aux_file"] = CANARY.encode()
        extension = nibabel.nifti1.Nifti1Extension("comment", CANARY.encode() * 4)
        image.header.extensions.append(extension)
        path = root / ("benign", "malignant")[label] / f"{i:03d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)
    return root


def words_of(output: Path) -> bytes:
    """Return the names and contents of all files below a folder, unpacked."""
    contents = []
    for path in output.rglob("*"):
        contents.append(path.name.encode())
        if path.suffix == ".gz":
            contents.append(nibabel.Nifti1Image.from_filename(path).to_bytes())
        elif path.is_file():
            contents.append(path.read_bytes())
    return b"".join(contents)


@pytest.mark.parametrize(
    ("make", "kind"), [(dicom_folder, "dicom"), (nifti_folder, "nifti")], ids=["dicom", "nifti"]
)
def test_names_in_headers_come_out_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], Path],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "scans")
    (tmp_path / "net.py").write_text(NETWORK)
    said = []

    def run(*words: str) -> None:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        said.append(done.output)

    run("inspect", "scans")
    steps = ["--preprocess", "window(40, 400)", "--operating-point", "argmax", "--save-images"]
    attack = ["--attack", "fgsm", "--eps", "5HU,30HU"]
    run("run", "quick", "--dataset", "mine.toml", "--model", "net.py:make", *steps, *attack)
    (record,) = (tmp_path / "results").rglob("record.json")
    run("report", str(record.parent.parent))
    (report,) = (tmp_path / "results").rglob("report-*.html")
    assert "Before the network" in report.read_text()
    assert "window(40, 400)" in report.read_text()
    run("export", str(record.parent), "--as", kind, "--out", "attacked", "--run-code")
    assert "still succeed from the file" in said[-1]
    written = words_of(tmp_path / "results") + words_of(tmp_path / "attacked")
    written += (tmp_path / "mine.toml").read_bytes()
    assert b"30 HU" in written
    assert CANARY.encode() not in written
    assert CANARY not in "".join(said) + caplog.text
