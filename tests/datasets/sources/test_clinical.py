"""`inspect` is right on every real clinical file: against the README that describes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_med.errors import DataError
from tests.datasets.sources.conftest import Inspect, edit, loaded, write_table

pytestmark = pytest.mark.data

# file or folder, lines that `inspect` prints
FILES = {
    "dicom_pydicom/CT_small.dcm": ("CT", "128x128", "-896..1167", "slope 1, intercept -1024"),
    "dicom_pydicom/MR_small.dcm": ("MR", "64x64", "127..2145", "600/1600", "Explicit VR Little"),
    "dicom_pydicom/MR_small_implicit.dcm": ("MR", "64x64", "127..2145", "Implicit VR Little"),
    "dicom_pydicom/MR_small_bigendian.dcm": ("MR", "64x64", "127..2145", "Explicit VR Big"),
    "dicom_pydicom/J2K_pixelrep_mismatch.dcm": (
        *("CT", "512x512", "-2000..1896", "40/100, 40/200", "13 of 16, signed", "JPEG 2000"),
        "-2000..1896: clip = true clips them to HU -1024..3071",
    ),
    "dicom_pydicom/ExplVR_BigEnd.dcm": ("ultrasound", "60x80", "RGB", "Explicit VR Big Endian"),
    "dicom_pydicom/examples_rgb_color.dcm": ("ultrasound", "240x320", "RGB", "8 of 8, unsigned"),
    "dicom_mr_t1": ("MR", "5 images", "384x274", "0..173", "Implicit VR", "0.666667 x 0.699988"),
    "nifti_nibabel/anatomical.nii": ("33x41x25", "int16, big endian", "LAS", "-610..30393"),
    "nifti_nibabel/anatomical_label.nii.gz": ("33x41x25", "uint16", "2 x 2 x 2 mm", "0..1"),
    "nifti_nibabel/example4d.nii.gz": ("128x96x24", "int16", "channels    2", "0..1162"),
    "nifti_ct_totalseg/example_ct_sm.nii.gz": (
        *("122x101x30", "3 x 3 x 3 mm", "RAS", "-1100..1207 are taken for HU"),
        "clip = true clips them to HU -1024..3071",
    ),
    "nifti_ct_totalseg/example_seg.nii.gz": ("122x101x30", "uint8", "RAS"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_printed_of_a_file(real: Path, inspect: Inspect, tmp_path: Path, name: str) -> None:
    printed = inspect(real / "clinical" / name)
    for text in FILES[name]:
        assert text in printed
    assert ("window  " in printed) == ("MR_small" in name or "J2K" in name)
    with pytest.raises(DataError, match="expected labels or masks, got neither"):
        loaded(tmp_path)


def test_a_long_series_of_volumes_is_refused(real: Path, inspect: Inspect) -> None:
    with pytest.raises(DataError, match="functional.nii: it has 17x21x3x20 values: a series of 20"):
        inspect(real / "clinical" / "nifti_nibabel" / "functional.nii")


def test_equal_pixels_in_three_encodings_are_copies(
    real: Path, inspect: Inspect, tmp_path: Path
) -> None:
    """A table beside links to the files gives their labels: the three MR files hold one image."""
    rows: list[tuple[object, ...]] = [("file", "label")]
    (tmp_path / "mr").mkdir()
    for k, name in enumerate(("MR_small", "MR_small_implicit", "MR_small_bigendian")):
        content = (real / "clinical" / "dicom_pydicom" / f"{name}.dcm").read_bytes()
        (tmp_path / "mr" / f"{name}.dcm").write_bytes(content)
        rows.append((name, k % 2))
    for path in sorted((real / "clinical" / "dicom_mr_t1").glob("*.dcm")):
        (tmp_path / "mr" / path.name).write_bytes(path.read_bytes())
        rows.append((path.stem, 1))
    write_table(tmp_path / "mr" / "labels.csv", rows)
    printed = inspect(tmp_path / "mr", "--size", "64")
    assert "MR_small.dcm" in printed
    assert "stand under different labels" in printed
    assert "Doe" not in printed
    dataset = loaded(tmp_path)
    assert "resized from 64x64 to 384x274" not in dataset.card.notes
    assert any("5 of 8 images were resized from 384x274 to 64x64" in n for n in dataset.card.notes)


def test_the_slices_of_a_series_are_one_volume(
    real: Path, inspect: Inspect, tmp_path: Path
) -> None:
    printed = inspect(real / "clinical" / "dicom_ct_liver_seg", "--volumes")
    assert "size        3x512x512" in printed
    assert "spacing     1 x 0.810547 x 0.810547 mm" in printed
    volume = loaded(tmp_path).arrays("test")
    edit(tmp_path / "mine.toml", 'images_as = "volumes"', 'images_as = "slices"')
    edit(tmp_path / "mine.toml", "size = [3, 512, 512]", "size = [512, 512]")
    edit(tmp_path / "mine.toml", "spacing = [1.0, ", "spacing = [")
    slices = loaded(tmp_path).arrays("test")
    # by position: 03.dcm lies lowest, 01.dcm highest
    assert (volume.images[:][0] == slices.images[:][::-1]).all()
    assert (volume.labels[0] == slices.labels[::-1]).all()
    assert volume.labels.sum() == 35220 + 35645 + 36233


def test_a_table_names_images_and_masks(real: Path, inspect: Inspect, tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    folder.mkdir()
    for name in ("example_ct_sm.nii.gz", "example_seg.nii.gz"):
        content = (real / "clinical" / "nifti_ct_totalseg" / name).read_bytes()
        (folder / name).write_bytes(content)
    write_table(folder / "t.csv", [("image", "mask"), ("example_ct_sm", "example_seg")])
    printed = inspect(folder)
    assert "masks hold the values 0, 1, 2, 3" in printed
    dataset = loaded(tmp_path)
    assert len(dataset.card.classes) == 42
    arrays = dataset.arrays("test")
    liver = dataset.card.classes.index("region 5")
    values = arrays.images[:][0][arrays.labels[0] == liver]
    assert abs(float(values.mean()) - 45) < 5  # HU, as the README says
