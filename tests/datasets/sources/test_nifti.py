"""NIfTI volumes: axes to right, front and head; spacing, scale and masks as the files say."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from robustbench_med.datasets.sources import nifti
from robustbench_med.datasets.sources.native import CT
from robustbench_med.datasets.sources.spec import EACH
from robustbench_med.errors import DataError, SpecError
from robustbench_med.native_units import to_image_radius
from tests.datasets.sources.conftest import Inspect, edit, loaded, write_table

SHAPE = (5, 6, 7)
RAS = np.diag([1.0, 2.0, 3.0, 1.0])


def values_of(seed: int, low: int = 0, high: int = 1000, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, SHAPE).astype(dtype)


def write(path: Path, values: np.ndarray, affine: np.ndarray = RAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def decoded(path: Path) -> np.ndarray:
    ref = nifti.head(path.parent, path.name)
    values = nifti.decode(path.parent, ref)
    assert values.shape == ref.shape
    assert str(values.dtype) == ref.dtype
    return values


def _turned(axes: tuple[int, int, int], signs: tuple[int, int, int]) -> tuple[Any, np.ndarray]:
    """Return the transposition and flips that store a RAS volume along other axes, with affine."""

    def store(values: np.ndarray) -> np.ndarray:
        stored = values.transpose(*axes, *range(3, values.ndim))
        return stored[tuple(slice(None, None, sign) for sign in signs)]

    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, column] = sign * (axis + 1)
    return store, affine


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_every_orientation_becomes_one(
    tmp_path: Path, axes: tuple[int, int, int], signs: tuple[int, int, int], channels: int
) -> None:
    expected = values_of(0)
    if channels > 1:
        expected = np.stack([expected, values_of(1)], -1)
    store, affine = _turned(axes, signs)
    path = write(tmp_path / "a.nii.gz", store(expected), affine)
    np.testing.assert_array_equal(decoded(path), expected)
    ref = nifti.head(tmp_path, "a.nii.gz")
    assert (ref.size, ref.channels) == (SHAPE, channels)
    assert ref.spacing == (1, 2, 3)


def test_big_endian_float64_and_scaled_values(tmp_path: Path) -> None:
    values = values_of(0)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    big = nibabel.Nifti1Image(values.astype(">i2"), RAS, header)
    nibabel.save(big, tmp_path / "big.nii")
    np.testing.assert_array_equal(decoded(tmp_path / "big.nii"), values)
    assert dict(nifti.head(tmp_path, "big.nii").facts)["type"] == "int16, big endian"
    np.testing.assert_array_equal(decoded(write(tmp_path / "f.nii", values / 4)), values / 4)
    scaled = nibabel.Nifti1Image(values, RAS)
    scaled.header.set_slope_inter(0.5, -10)
    nibabel.save(scaled, tmp_path / "s.nii")
    np.testing.assert_array_equal(decoded(tmp_path / "s.nii"), values * 0.5 - 10)


def test_a_flat_volume_is_a_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", values_of(0)[:, :, :1])
    assert decoded(path).shape == SHAPE[:2]


def pairs(folder: Path, n: int = 6, **changed: Any) -> None:  # noqa: ANN401
    for k in range(n):
        write(folder / "images" / f"c{k}.nii.gz", values_of(k, -1000, 1000))
        mask = np.zeros(SHAPE, np.uint8)
        mask[k % 5, 2:4] = 1
        mask[k % 5, 4] = 2
        write(folder / "labels" / f"c{k}.nii.gz", mask, **changed)


def test_volumes_and_masks(inspect: Inspect, tmp_path: Path) -> None:
    pairs(tmp_path / "ct")
    printed = inspect(tmp_path / "ct")
    assert "are taken for HU of a CT" in printed
    dataset = loaded(tmp_path)
    card = dataset.card
    assert (card.native, card.size, card.spacing) == (CT, SHAPE, (1, 2, 3))
    assert (card.task, card.classes) == ("segmentation", ("background", "region 1", "region 2"))
    arrays = dataset.arrays("train")
    for row, name in enumerate(arrays.ids.tolist()):
        number = int(name[-6:])
        np.testing.assert_array_equal(
            arrays.images[np.array([row])][0], values_of(number, -1000, 1000)
        )
        assert np.bincount(arrays.labels[row].ravel()).tolist()[1:] == [14, 7]
        assert (arrays.labels[row][number % 5, 4] == 2).all()


def test_a_mask_of_another_grid_is_refused(inspect: Inspect, tmp_path: Path) -> None:
    pairs(tmp_path / "ct", affine=np.diag([1.0, 2.0, 3.1, 1.0]))
    with pytest.raises(DataError, match="labels/c.*its affine is not that of its image"):
        inspect(tmp_path / "ct")


def test_ranges_that_no_scale_fits_are_scaled_each(inspect: Inspect, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("file", "label")]
    for k in range(6):
        write(tmp_path / "mr" / f"{k}.nii", values_of(k, 0, 200 * 10 ** (k % 3)).astype("float32"))
        rows.append((f"{k}.nii", k % 2))
    write_table(tmp_path / "mr" / "t.csv", rows)
    assert 'scale = "each" scales each image by its own range' in inspect(tmp_path / "mr")
    arrays = loaded(tmp_path).arrays("train")
    number = int(str(arrays.ids[0])[-6:])
    values = values_of(number, 0, 200 * 10 ** (number % 3)).astype(np.float64)
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(arrays.images[np.array([0])][0], expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bits"), [("int16", 15), ("float32", 15)])
def test_images_scaled_each_have_no_common_unit(
    inspect: Inspect, tmp_path: Path, dtype: str, bits: int
) -> None:
    for k in range(6):
        write(tmp_path / "mr" / f"{k}.nii", values_of(k, 0, 200 * 10 ** (k % 3)).astype(dtype))
    write_table(
        tmp_path / "mr" / "t.csv",
        [("file", "label"), *((f"{k}.nii", k % 2) for k in range(6))],
    )
    inspect(tmp_path / "mr")
    card = loaded(tmp_path).card
    assert card.native_range == EACH
    assert card.bit_depth == bits  # of the widest range, 0..19999
    text = (tmp_path / "mine.toml").read_text()
    plain = "".join(
        line for line in text.splitlines(True) if not line.startswith(("native_range", "bit_depth"))
    )
    (tmp_path / "mine.toml").write_text(plain)  # as a person writes it
    card = loaded(tmp_path).card
    assert (card.native_range, card.bit_depth) == (EACH, 16)
    assert any("rounded to 16 bits" in note for note in card.notes)
    for radius in ("4gl", "4 grey level", "10HU"):
        with pytest.raises(SpecError, match=rf"which is none \({EACH}\)") as caught:
            to_image_radius(radius, card)
        assert "\n" not in str(caught.value)
    assert to_image_radius("4/255", card) == 4 / 255
    for key, line in (
        ("native_range", 'native_range = "grey level 0..255"\n'),
        (r"\[native\]", 'native = {unit = "HU", low = 0, high = 1}\n'),
    ):
        (tmp_path / "mine.toml").write_text(line + plain)
        with pytest.raises(SpecError, match=f'expected {key} or scale = "each"'):
            loaded(tmp_path)


def test_values_outside_the_range_are_refused_or_clipped(inspect: Inspect, tmp_path: Path) -> None:
    for k in range(6):
        write(tmp_path / "ct" / f"{k}.nii", values_of(k, -1500, 1000))
    rows = [("file", "label"), *((f"{k}.nii", k % 2) for k in range(6))]
    write_table(tmp_path / "ct" / "t.csv", rows)
    assert "clip = true clips them to HU -1024..3071" in inspect(tmp_path / "ct")
    dataset = loaded(tmp_path)
    assert "values outside HU -1024..3071 were clipped to it" in dataset.card.notes
    assert dataset.arrays("train").images[:].min() == -1024
    edit(tmp_path / "mine.toml", "clip = true", "clip = false")
    with pytest.raises(DataError, match=r"its values -1[45].* are outside HU .* clip = true"):
        loaded(tmp_path).arrays("train")


def _header(path: Path, offset: int, content: bytes) -> None:
    write(path, values_of(0))
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(bytes(raw))


def _bomb(path: Path) -> None:
    _header(path, 40, np.array([3, 32000, 32000, 32000], "<i2").tobytes())
    content = path.read_bytes()
    path.unlink()
    with gzip.open(path.with_suffix(".nii.gz"), "wb") as file:
        file.write(content + bytes(2**22))


DAMAGE = [
    (lambda p: _header(p, 40, np.array([3, 32000, 32000, 32000], "<i2").tobytes()), "32000x32000"),
    (_bomb, "32000x32000x32000 values, more than"),
    (lambda p: _header(p, 40, np.array([3, -5, 4, 4], "<i2").tobytes()), "."),
    (lambda p: _header(p, 40, np.array([4, 5, 6, 7, 20], "<i2").tobytes()), "a series of 20"),
    (lambda p: _header(p, 344, b"abc\0"), "it is "),
    (lambda p: _header(p, 70, np.array([1792], "<i2").tobytes()), "its values are no integers"),
    (lambda p: p.write_bytes(write(p, values_of(0)).read_bytes()[:-50]), "it is cut or damaged"),
    (lambda p: write(p, np.full(SHAPE, np.nan, np.float32)), "210 of its 210 values are NaN"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_volume_is_named(
    inspect: Inspect,
    tmp_path: Path,
    damage: Any,  # noqa: ANN401
    message: str,
) -> None:
    rows: list[tuple[object, ...]] = [("file", "label")]
    for k in range(4):
        write(tmp_path / "mr" / f"{k}.nii", values_of(k))
        rows.append((f"{k}", k % 2))
    damage(tmp_path / "mr" / "odd.nii")
    write_table(tmp_path / "mr" / "t.csv", [*rows, ("odd", 1)])
    with pytest.raises(DataError, match=f"got 1 of 5 that cannot: odd.nii.*{message}"):
        inspect(tmp_path / "mr")


CANARY = "KANARIENVOGEL"


def test_no_text_of_a_header_is_printed_logged_or_stored(
    inspect: Inspect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows: list[tuple[object, ...]] = [("file", "label")]
    for k in range(6):
        image = nibabel.Nifti1Image(values_of(k), RAS)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[field] = CANARY.encode()
        comment = nibabel.nifti1.Nifti1Extension("comment", CANARY.encode())
        image.header.extensions.append(comment)
        (tmp_path / "mr").mkdir(exist_ok=True)
        nibabel.save(image, tmp_path / "mr" / f"{k}.nii")
        assert CANARY.encode() in (tmp_path / "mr" / f"{k}.nii").read_bytes()
        rows.append((f"{k}", k % 2))
    write_table(tmp_path / "mr" / "t.csv", rows)
    texts = [inspect(tmp_path / "mr"), caplog.text, (tmp_path / "mine.toml").read_text()]
    dataset = loaded(tmp_path)
    texts += [repr(dataset.card), str(dataset.arrays("test").ids)]
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert len(files) == 7
    texts += [path.read_bytes().decode("latin-1") for path in files]
    assert not [text for text in texts if CANARY in text]


@pytest.mark.data
def test_the_real_volumes(real: Path, inspect: Inspect, tmp_path: Path) -> None:
    folder = real / "clinical" / "nifti_msd_hippocampus"
    printed = inspect(folder, "--size", "48x64x48")
    assert "8 images and 8 masks" in printed
    assert "values reach 121 in one image and 544587 in another" in printed
    arrays = loaded(tmp_path).arrays("test")
    assert set(np.unique(arrays.labels)) == {0, 1, 2}
    assert arrays.images[:].max() > 0.8
    single = folder.parent / "nifti_nibabel" / "anatomical.nii"
    image = nibabel.load(single)
    expected = np.asarray(image.dataobj)[::-1]  # type: ignore[attr-defined]  # stored to the left
    np.testing.assert_array_equal(decoded(single), expected)
