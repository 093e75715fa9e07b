"""DICOM files: values in their own unit, series in order of place, masks matched by identifier."""

from __future__ import annotations

import logging
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless

from robustbench_med.datasets.sources import deflated, dicom
from robustbench_med.datasets.sources.readers import scan
from robustbench_med.datasets.sources.refs import UnreadableError
from robustbench_med.errors import DataError
from tests.datasets.sources.conftest import Inspect, loaded, write_table
from tests.datasets.sources.dicoms import BIG, IMPLICIT, uid, write

RNG = np.random.default_rng(0)
SHAPE = (40, 48)


def drawn(low: int, high: int, dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return values of a type in [low, high)."""
    return RNG.integers(low, high, shape).astype(dtype)


def decoded(path: Path) -> np.ndarray:
    """Return the values that the reader finds in a file."""
    (ref,) = dicom.slice_refs(dicom.read_header(path.parent, path.name))
    values = dicom.decode(path.parent, ref)
    assert values.shape == ref.shape
    assert str(values.dtype) == ref.dtype
    return values


ENCODINGS: list[tuple[str, dict[str, Any]]] = [
    ("explicit", {}),
    ("implicit", {"syntax": IMPLICIT}),
    ("big endian", {"syntax": BIG}),
    ("RLE", {"compress": RLELossless}),
    ("JPEG 2000", {"compress": JPEG2000Lossless}),
]
TYPES: list[tuple[str, np.ndarray, dict[str, Any], float, float]] = [
    ("16 bit signed", drawn(-2000, 3000, "int16"), {"RescaleIntercept": "-1024"}, 1, -1024),
    ("12 bit", drawn(0, 4096, "uint16"), {"BitsStored": 12, "RescaleSlope": "2"}, 2, 0),
    ("8 bit", drawn(0, 256, "uint8"), {"Modality": "US"}, 1, 0),
    ("fractions", drawn(0, 4096, "uint16"), {"BitsStored": 12, "RescaleSlope": "0.25"}, 0.25, 0),
]


@pytest.mark.parametrize("encoding", [e for _, e in ENCODINGS], ids=[n for n, _ in ENCODINGS])
@pytest.mark.parametrize(
    ("stored", "tags", "slope", "intercept"), [t[1:] for t in TYPES], ids=[t[0] for t in TYPES]
)
def test_values_are_those_of_the_formula(
    tmp_path: Path,
    encoding: dict[str, Any],
    stored: np.ndarray,
    tags: dict[str, Any],
    slope: float,
    intercept: float,
) -> None:
    path = write(tmp_path / "a.dcm", stored, **encoding, **tags)
    np.testing.assert_array_equal(decoded(path), stored * slope + intercept)


def test_monochrome1_is_inverted_before_it_is_rescaled(tmp_path: Path) -> None:
    stored = drawn(0, 4096, "uint16")
    tags: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME1",
        "BitsStored": 12,
        "Modality": "DX",
    }
    path = write(tmp_path / "a.dcm", stored, RescaleIntercept="7", **tags)
    np.testing.assert_array_equal(decoded(path), 4095 - stored.astype(int) + 7)


def test_bits_above_those_stored_are_an_overlay(tmp_path: Path) -> None:
    signed = drawn(-2048, 2048, "int16")
    stored = (signed.astype(np.uint16) & 0x0FFF) | 0x7000
    path = write(tmp_path / "a.dcm", stored.view(np.int16), BitsStored=12)
    np.testing.assert_array_equal(decoded(path), signed)


def test_padding_gets_the_lowest_other_value(tmp_path: Path) -> None:
    stored = drawn(100, 200, "int16")
    stored[:5] = -2000
    path = write(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000)
    assert set(decoded(path)[:5].ravel()) == {stored[5:].min()}
    np.testing.assert_array_equal(decoded(path)[5:], stored[5:])


def test_colours_become_rgb(tmp_path: Path) -> None:
    red = np.zeros((*SHAPE, 3), np.uint8)
    red[..., 0] = 200
    planes = np.ascontiguousarray(np.moveaxis(red, -1, 0))
    np.testing.assert_array_equal(decoded(write(tmp_path / "a.dcm", red, Modality="US")), red)
    by_plane = write(tmp_path / "b.dcm", red, Modality="US", PlanarConfiguration=1)
    by_plane.write_bytes(by_plane.read_bytes().replace(red.tobytes(), planes.tobytes()))
    np.testing.assert_array_equal(decoded(by_plane), red)
    luma = np.full((*SHAPE, 3), (60, 90, 240), np.uint8)  # by ITU-R BT.601: (217, -, -)
    ybr = write(tmp_path / "c.dcm", luma, Modality="US", PhotometricInterpretation="YBR_FULL")
    y, cb, cr = 60, 90 - 128, 240 - 128
    expected = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    np.testing.assert_allclose(decoded(ybr)[0, 0], np.clip(np.rint(expected), 0, 255), atol=1)


def test_a_palette_becomes_colours(tmp_path: Path) -> None:
    stored = drawn(0, 4, "uint8")
    table = np.arange(256, dtype=np.uint16) * 257
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = (table * factor).astype("<u2").tobytes()
    path = write(tmp_path / "a.dcm", stored, **tags)
    np.testing.assert_array_equal(decoded(path), stored[..., None] * np.array([1, 2, 3]))


def series(folder: Path, count: int = 4, **tags: Any) -> list[np.ndarray]:  # noqa: ANN401
    """Write a series whose files are named against the order of their places; return its slices."""
    slices = [drawn(-1000, 1000, "int16") for _ in range(count)]
    slices[0][0, 0] = -1000
    for place, stored in enumerate(slices):
        write(
            folder / f"{count - place}.dcm",
            stored,
            ImagePositionPatient=[0, 0, 2.5 * place],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[0.5, 0.75],
            WindowCenter="40",
            WindowWidth="400",
            **tags,
        )
    return slices


def test_a_series_is_one_volume_in_the_order_of_its_places(
    inspect: Inspect, tmp_path: Path
) -> None:
    volumes = {}
    rows: list[tuple[object, ...]] = [("file", "label")]
    for patient in range(6):
        name = f"p{patient}"
        volumes[patient] = series(
            tmp_path / "ct" / name, SeriesInstanceUID=uid(name), PatientID=name
        )
        rows.append((name, patient % 2))
    write_table(tmp_path / "ct" / "labels.csv", rows)
    printed = inspect(tmp_path / "ct", "--volumes")
    for line in (
        "size        4x40x48",
        "modality    CT",
        "window      40/400",
        "spacing     2.5 x 0.5 x 0.75 mm",
    ):
        assert line in printed
    dataset = loaded(tmp_path)
    assert dataset.card.native is not None
    assert dataset.card.native.text == "HU -1024..3071"
    assert dataset.card.spacing == (2.5, 0.5, 0.75)
    arrays = dataset.arrays("train")
    assert arrays.images.dtype == np.int16
    for row, name in enumerate(arrays.ids.tolist()):
        number = int(name[-6:])
        image = arrays.images[np.array([row])][0]
        np.testing.assert_array_equal(image, np.stack(volumes[number]))
        assert arrays.labels[row] == number % 2


def test_a_missing_slice_is_named(inspect: Inspect, tmp_path: Path) -> None:
    series(tmp_path / "ct", 6)
    (tmp_path / "ct" / "3.dcm").unlink()
    with pytest.raises(DataError, match="a slice is missing .* 4.dcm and 2.dcm are 5 mm apart"):
        inspect(tmp_path / "ct", "--volumes")
    listing = scan(tmp_path / "ct", sorted(p.name for p in (tmp_path / "ct").iterdir()), "dicom")
    assert len(listing.refs) == 5
    assert "a slice is missing in the series of" in listing.remarks[0]


VOLUME_RULES: list[tuple[dict[str, Any], str]] = [
    ({"ImagePositionPatient": [0, 0, 0]}, "two slices of a series are at one place"),
    ({"ImagePositionPatient": None}, "slices whose position is not stated"),
    ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "slices of different orientation"),
    ({"PixelSpacing": [1, 1]}, "slices of different spacing"),
]


@pytest.mark.parametrize(("changed", "message"), VOLUME_RULES)
def test_a_series_that_is_no_volume_is_refused(
    inspect: Inspect, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    series(tmp_path / "ct")
    plain: dict[str, Any] = {
        "ImagePositionPatient": [0, 0, 10],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.75],
    }
    write(tmp_path / "ct" / "x.dcm", drawn(0, 9, "int16"), **(plain | changed))
    with pytest.raises(DataError, match=message):
        inspect(tmp_path / "ct", "--volumes")


def test_slices_of_two_sizes_are_no_volume(inspect: Inspect, tmp_path: Path) -> None:
    series(tmp_path / "ct")
    write(tmp_path / "ct" / "x.dcm", drawn(0, 9, "int16", (32, 48)))
    with pytest.raises(DataError, match="slices of .*32x48"):
        inspect(tmp_path / "ct", "--volumes")


def test_frames_are_images_or_a_volume(tmp_path: Path) -> None:
    stored = drawn(0, 4096, "uint16", (3, *SHAPE))
    items = []
    for frame in range(3):
        item, plane, values = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, 10 - frame]
        values.RescaleSlope, values.RescaleIntercept = str(frame + 1), "5"
        item.PlanePositionSequence = [plane]
        item.PixelValueTransformationSequence = [values]
        items.append(item)
    turn, shared = Dataset(), Dataset()
    turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [turn]
    write(
        tmp_path / "a.dcm",
        stored,
        BitsStored=12,
        PerFrameFunctionalGroupsSequence=items,
        SharedFunctionalGroupsSequence=[shared],
    )
    expected = [stored[k] * (k + 1) + 5 for k in range(3)]
    frames = scan(tmp_path, ["a.dcm"], "dicom").refs
    for k, ref in enumerate(frames):
        np.testing.assert_array_equal(dicom.decode(tmp_path, ref), expected[k])
    (volume,) = scan(tmp_path, ["a.dcm"], "dicom", volumes=True).refs
    np.testing.assert_array_equal(dicom.decode(tmp_path, volume), expected[::-1])


def test_patients_become_numbers_and_a_placeholder_is_noticed(tmp_path: Path) -> None:
    for k in range(4):
        name = f"{k}.dcm"
        study = uid("study", k // 2)
        write(tmp_path / name, drawn(0, 9, "int16"), PatientID="ANON", StudyInstanceUID=study)
    names = [f"{k}.dcm" for k in range(4)]
    listing = scan(tmp_path, names, "dicom")
    assert [ref.patient for ref in listing.refs] == ["1"] * 4
    assert "all 2 studies state one PatientID" in " ".join(listing.remarks)
    by_study = scan(tmp_path, names, "dicom", by_study=True)
    assert [ref.patient for ref in by_study.refs] == ["1", "1", "2", "2"]


def _huge(path: Path) -> None:
    write(path, drawn(0, 9, "uint16"), Rows=65535, Columns=65535)


def _cut(path: Path) -> None:
    write(path, drawn(0, 9, "uint16"))
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_compressed(path: Path) -> None:
    write(path, drawn(0, 255, "uint8"), compress=JPEG2000Lossless, Modality="US")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\0" * (len(content) // 2))


def _table(path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [1, 0, 16], "US", b"\0\0"
    write(path, drawn(0, 9, "uint16"), ModalityLUTSequence=[table])


def _deflated(path: Path) -> None:
    import pydicom

    image = pydicom.dcmread(write(path, drawn(0, 9, "uint16")))
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)


def _cut_deflated(path: Path) -> None:
    _deflated(path)
    path.write_bytes(path.read_bytes()[:-20])


def _video(path: Path) -> None:
    image = pydicom.dcmread(write(path, drawn(0, 9, "uint8"), compress=RLELossless))
    image.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.102")
    image.save_as(path, enforce_file_format=True)


def test_deflated_files_hold_the_same_values(tmp_path: Path) -> None:
    stored = np.arange(3 * 8 * 12, dtype=np.uint16).reshape(3, 8, 12)
    write(tmp_path / "plain.dcm", stored, RescaleSlope=2, RescaleIntercept=-1024)
    image = pydicom.dcmread(tmp_path / "plain.dcm")
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    values = []
    for name in ("plain.dcm", "deflated.dcm"):
        refs = dicom.slice_refs(dicom.read_header(tmp_path, name))
        assert len(refs) == 3
        values.append(np.stack([dicom.decode(tmp_path, ref) for ref in refs]))
    assert np.array_equal(values[0], values[1])
    assert values[0][0, 0, 1] == 2 - 1024


def test_a_deflated_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", drawn(0, 9, "uint16"))
    _deflated(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(bytes(deflated.MOST + 1)) + packer.flush()
    (tmp_path / "a.dcm").write_bytes(content[:start] + body)
    assert len(body) < 2**20
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"more than 128 MiB: save it as Explicit VR Little"):
        dicom.read_header(tmp_path, "a.dcm")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


DAMAGE = [
    (_huge, "its header states 65535x65535x1 values, more than"),
    (_cut, "it is cut: .* bytes hold fewer than its 3840 of pixels"),
    (_cut_compressed, "it is cut or damaged"),
    (_cut_deflated, "it is cut or damaged"),
    (
        _video,
        r"its transfer syntax \(MPEG-4 AVC/H.264 High Profile / Level 4.1\) is not read: save",
    ),
    (_table, r"a table \(Modality LUT\)"),
    (lambda path: path.write_bytes(b"\0" * 500), "it is no DICOM file"),
    (lambda path: write(path, drawn(0, 9, "uint16"), RescaleSlope="0"), "its rescale slope"),
    (
        lambda path: write(path, drawn(0, 9, "uint32"), BitsStored=32),
        "it stores 32 bits a pixel",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_file_is_named(
    inspect: Inspect,
    tmp_path: Path,
    damage: Any,  # noqa: ANN401
    message: str,
) -> None:
    series(tmp_path / "ct")
    (tmp_path / "ct").mkdir(exist_ok=True)
    damage(tmp_path / "ct" / "odd.dcm")
    with pytest.raises(DataError, match=f"got 1 of 5 that cannot: odd.dcm: {message}"):
        inspect(tmp_path / "ct")


CANARY = "KANARIENVOGEL"


TEXT_TAGS = (
    *("PatientName", "PatientID", "InstitutionName", "StudyDescription", "SeriesDescription"),
    *("ReferringPhysicianName", "PatientComments", "ImageComments", "StudyID", "AccessionNumber"),
    *("ProtocolName", "BodyPartExamined", "StationName", "WindowCenterWidthExplanation"),
    *("DerivationDescription", "OperatorsName", "ManufacturerModelName", "RequestedProcedureID"),
)


def _with_canaries(path: Path) -> None:
    """Write a canary into tags of a file whose value is text, a private one too."""
    import pydicom

    image = pydicom.dcmread(path)
    for tag in TEXT_TAGS:
        setattr(image, tag, CANARY)
    image.PatientID = f"{CANARY} {path.stem}"
    block = image.private_block(0x0011, CANARY, create=True)
    block.add_new(0x01, "LO", CANARY)
    image.save_as(path, enforce_file_format=True)


def test_no_text_of_a_file_is_printed_logged_or_stored(
    inspect: Inspect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows: list[tuple[object, ...]] = [("file", "label")]
    for patient in range(6):
        series(tmp_path / "ct", 1, PatientID=str(patient), SeriesInstanceUID=uid(patient))
        path = (tmp_path / "ct" / "1.dcm").rename(tmp_path / "ct" / f"s{patient}.dcm")
        _with_canaries(path)
        rows.append((path.name, patient % 2))
    write_table(tmp_path / "ct" / "labels.csv", rows)
    printed = inspect(tmp_path / "ct")
    dataset = loaded(tmp_path)
    texts = [printed, caplog.text, repr(dataset.card), (tmp_path / "mine.toml").read_text()]
    arrays = dataset.arrays("test")
    texts += [str(arrays.ids), str(arrays.patients)]
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert len(files) == 7, printed
    texts += [path.read_bytes().decode("latin-1") for path in files]
    assert not [text for text in texts if CANARY in text]


# --- the real files ------------------------------------------------------------------------------


@pytest.mark.data
def test_a_mask_is_matched_by_identifier(real: Path, inspect: Inspect, tmp_path: Path) -> None:
    """The frames of the mask refer to the slices in reverse order."""
    import pydicom

    folder = real / "clinical" / "dicom_ct_liver_seg"
    printed = inspect(folder)
    assert "3 images and 1 masks" in printed
    assert "test        3 images: liver 3; 1 patient" in printed
    dataset = loaded(tmp_path)
    arrays = dataset.arrays("test")
    assert dataset.card.classes == ("background", "liver")
    mask = pydicom.dcmread(folder / "liver_seg.dcm")
    frames, groups = mask.pixel_array, mask.PerFrameFunctionalGroupsSequence
    references = [
        str(g.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        for g in groups
    ]
    for row, name in enumerate(("01.dcm", "02.dcm", "03.dcm")):
        image = pydicom.dcmread(folder / name)
        frame = references.index(str(image.SOPInstanceUID))
        assert frame == 2 - row  # reversed
        np.testing.assert_array_equal(arrays.labels[row], frames[frame])
        values = image.pixel_array.astype(int) - 1024
        inside = values >= -1024
        stored = arrays.images[np.array([row])][0]
        np.testing.assert_array_equal(stored[inside], values[inside])
        assert set(stored[~inside]) == {-1024}
        liver = stored[arrays.labels[row] == 1]
        assert 40 < np.median(liver) < 140  # HU of liver after contrast
