"""Exported images: equal when read back, without identity, and judged from the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels.processing import apply_rescale
from typer.testing import CliRunner

from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from robustbench_med.cards import NativeRange
from robustbench_med.cli import app
from robustbench_med.errors import BenchError, DataError, ResultsError, SpecError
from robustbench_med.export import dicom_files, nifti_files, png_files
from robustbench_med.export.export import KINDS, export
from robustbench_med.export.form import WARNING, Form, Mark
from robustbench_med.export.read_back import read_back

HU = NativeRange(unit="HU", low=-1024, high=3071)
HU_BY_2 = NativeRange(unit="HU", low=-1024, high=3070, step=2)
GREY = NativeRange(unit="grey level", low=0, high=255)
SIXTEEN = NativeRange(unit="grey level", low=0, high=65535)
SUV = NativeRange(unit="SUV", low=0, high=20, step=0.1)
MARK = Mark(1, "0123456789abcdef", "pgd, linf 10 HU")
FORMS = {
    "grey": Form(GREY, (5, 7), 1, None),
    "colours": Form(GREY, (5, 7), 3, None),
    "hu": Form(HU, (5, 7), 1, (0.7, 0.8)),
    "hu in steps of 2": Form(HU_BY_2, (5, 7), 1, (0.7, 0.8)),
    "hu volume": Form(HU, (3, 5, 7), 1, (2.5, 0.7, 0.8)),
    "volume of unknown spacing": Form(SIXTEEN, (3, 4, 6), 1, None),
    "channels": Form(SIXTEEN, (3, 4, 6), 4, (1.0, 1.0, 1.0)),
    "suv": Form(SUV, (5, 7), 1, (4.0, 4.0)),
}
FITS = {
    "dicom": (
        dicom_files,
        {"grey", "colours", "hu", "hu in steps of 2", "hu volume", "suv"},
    ),
    "nifti": (nifti_files, set(FORMS)),
    "png": (png_files, {"grey", "colours", "hu", "hu in steps of 2", "suv"}),
}


def steps_of(form: Form) -> NDArray[np.int64]:
    """Return steps with both ends of the range among them."""
    shape = (form.channels, *form.size)
    steps = np.random.default_rng(0).integers(0, form.native.levels + 1, shape)
    steps.flat[:2] = 0, form.native.levels
    return steps


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_is_read_back(tmp_path: Path, kind: str, name: str) -> None:
    form, (writer, fitting) = FORMS[name], FITS[kind]
    if name not in fitting:
        with pytest.raises(DataError, match="use --as nifti"):
            writer.check(form)
        return
    writer.check(form)
    steps = steps_of(form)
    paths = writer.write(steps, form, MARK, tmp_path)
    files = tuple(path.relative_to(tmp_path).as_posix() for path in paths)
    (back,) = read_back(tmp_path, kind, [files], [form])
    assert torch.equal(back, torch.from_numpy(steps).float() / form.native.levels)


def test_other_software_sees_hounsfield_units(tmp_path: Path) -> None:
    form = FORMS["hu volume"]
    steps = steps_of(form)
    expected = steps[0] - 1024
    paths = dicom_files.write(steps, form, MARK, tmp_path)
    datasets = [pydicom.dcmread(path) for path in paths]
    for index, dataset in enumerate(datasets):
        hu = apply_rescale(dataset.pixel_array, dataset)
        assert np.array_equal(hu, expected[index])
        assert dataset.SOPClassUID == pydicom.uid.CTImageStorage
        assert [float(mm) for mm in dataset.PixelSpacing] == [0.7, 0.8]
        assert float(dataset.ImagePositionPatient[2]) == 2.5 * index
    assert len({dataset.SOPInstanceUID for dataset in datasets}) == 3
    assert len({dataset.SeriesInstanceUID for dataset in datasets}) == 1
    (path,) = nifti_files.write(steps, form, MARK, tmp_path)
    volume: Any = nibabel.Nifti1Image.from_filename(path)
    assert np.array_equal(volume.get_fdata(), expected)
    assert np.allclose(volume.header.get_zooms(), (2.5, 0.7, 0.8))
    assert volume.get_data_dtype() == np.int16


def test_every_file_is_marked_and_holds_listed_tags_alone(tmp_path: Path) -> None:
    (path,) = dicom_files.write(steps_of(FORMS["grey"]), FORMS["grey"], MARK, tmp_path)
    dataset = pydicom.dcmread(path)
    source = Path(dicom_files.__file__).read_text(encoding="utf-8")
    for element in dataset:
        assert re.search(rf"\b{element.keyword}\b", source), element
    assert WARNING in dataset.SeriesDescription
    assert MARK.case_id in dataset.ImageComments
    assert "ADVERSARIAL" in dataset.ImageType
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.PatientBirthDate == ""
    for uid in (dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID):
        assert uid.is_valid
        assert uid.startswith("2.25.")
    (volume,) = nifti_files.write(steps_of(FORMS["grey"]), FORMS["grey"], MARK, tmp_path)
    assert WARNING in bytes(nibabel.Nifti1Image.from_filename(volume).header["descrip"]).decode()
    (picture,) = png_files.write(steps_of(FORMS["grey"]), FORMS["grey"], MARK, tmp_path)
    assert WARNING in Image.open(picture).text["Comment"]  # type: ignore[attr-defined]


# --- from a record -------------------------------------------------------------------------------

CANARY = "Kanarienvogel"
NETWORK = """
import torch
from torch import nn
class Mean(nn.Module):
    def forward(self, x):
        above = (x.flatten(1).mean(1) * 400 - 160 - 50.4) / 10
        return torch.stack([-above, above], 1)
def make():
    return Mean()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run FGSM at 5.45 HU on images that are 5.4 or 4.6 HU from the boundary; keep its images."""
    home = tmp_path_factory.mktemp("run")
    rng, arrays = np.random.default_rng(0), dict[str, Any]()
    for split in ("val", "test"):
        half = rng.integers(0, 20, (8, 4, 4))
        means = np.array([45, 55] * 4)
        around = np.concatenate([half, -half], axis=2)
        arrays[f"{split}_images"] = (means[:, None, None] + around).astype(np.int16)
        arrays[f"{split}_labels"] = (means > 50).astype(np.int64)
        arrays[f"{split}_ids"] = np.array([f"{CANARY}_{i}" for i in range(8)])
        arrays[f"{split}_patients"] = np.array([f"{CANARY}^{i}" for i in range(8)])
    info = {"native": HU.model_dump(), "spacing": [0.7, 0.7]}
    np.savez(home / "ct.npz", info=np.array(json.dumps(info)), **arrays)
    (home / "net.py").write_text(NETWORK)
    words = ["run", "quick", "--operating-point", "argmax", "--attack", "fgsm", "--save-images"]
    words += ["--eps", "2HU,5.45HU", "--dataset", str(home / "ct.npz")]
    words += ["--model", f"{home / 'net.py'}:make", "--preprocess", "window(40, 400)"]
    done = CliRunner().invoke(app, [*words, "--results", str(home / "results")])
    assert done.exit_code == 0, done.output
    return home


def record_of(run: Path) -> Stored:
    (stored,), _ = store.read_all(run / "results" / "custom")
    return stored


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_still_succeeds_from_the_file(
    run: Path, tmp_path: Path, kind: str
) -> None:
    stored = record_of(run)
    made = export(stored, kind, tmp_path / "out", code=True)
    assert stored.record.audit is not None
    # from 45 HU, 5.45 HU is rounded to 5 and falls short; from 55 HU, 5 is enough
    assert (made.written, made.succeed, made.over_budget) == (8, 4, 0)
    assert stored.record.audit.survives_rounding.value == made.succeed / made.written
    assert [image.succeeds for image in made.images] == [False, True] * 4
    assert {image.largest_change for image in made.images} == {5}
    assert made.attack == "fgsm, linf 0.001331 (5.45 HU)"
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert written == {name for image in made.images for name in image.files} | {"export.json"}


def test_images_that_were_not_saved_are_made_again(run: Path, tmp_path: Path) -> None:
    stored = record_of(run)
    saved = export(stored, "png", tmp_path / "saved", code=True)
    bare = stored._replace(record=stored.record.model_copy(update={"images": None}))
    assert export(bare, "png", tmp_path / "again", code=True) == saved
    for path in (tmp_path / "saved").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_of_a_patient_or_a_file_is_exported(run: Path, tmp_path: Path, kind: str) -> None:
    words = ["export", record_of(run).record.case_id, "--as", kind, "--out", str(tmp_path / "out")]
    words += ["--results", str(run / "results"), "--run-code"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "still succeed from the file: 4 of 8" in done.output
    contents = [done.output.encode()]
    for path in (tmp_path / "out").rglob("*.*"):
        contents.append(path.name.encode() + path.read_bytes())
        if path.suffix == ".gz":
            contents.append(nibabel.Nifti1Image.from_filename(path).to_bytes())
    assert CANARY.encode() not in b"".join(contents)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kind": "jpeg"}, SpecError, "expected --as dicom, nifti, png, got 'jpeg'"),
        (
            {"eps": "3HU"},
            SpecError,
            "to be a radius of the record (0.0004884, 0.00133089), got 3HU",
        ),
        ({"eps": "3mm"}, SpecError, "expected eps in a unit that ct has, which is HU"),
        ({"eps": "2HU"}, ResultsError, "expected a successful attack to export, got none"),
        ({"code": False}, SpecError, "pass --run-code if you trust it"),
        ({"out": "taken"}, ResultsError, "expected an empty folder for --out"),
    ],
)
def test_wrong_requests_are_one_line(
    run: Path, tmp_path: Path, options: dict[str, Any], error: type[BenchError], text: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    request = {"kind": "png", "code": True, "out": "out", **options}
    out = tmp_path / request.pop("out")
    with pytest.raises(error, match=re.escape(text)) as caught:
        export(record_of(run), request.pop("kind"), out, **request)
    assert "\n" not in str(caught.value)


def test_weights_that_changed_are_not_exported(run: Path, tmp_path: Path) -> None:
    stored = record_of(run)
    case = stored.record.case.model_copy(update={"victim_sha256": "0" * 64})
    changed = stored._replace(record=stored.record.model_copy(update={"case": case}))
    with pytest.raises(ResultsError, match="the weights of .* are not those of the record"):
        export(changed, "png", tmp_path / "out", code=True)
