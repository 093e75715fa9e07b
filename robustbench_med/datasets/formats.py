"""Recognise the format of a file that is no `.npz`, and advise how to convert it."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

_HEAD = 4096  # bytes that are inspected
_SHORTEST = 4  # bytes; a shorter file is a truncated one and not a text
_SAVE = (
    "numpy.savez_compressed('mine.npz', test_images=..., test_labels=...), see "
    "docs/add_a_dataset.md"
)


class Format(NamedTuple):
    """A file format, and the function that reads it."""

    name: str
    reader: str


_PICTURES = "read them with PIL.Image.open and stack the arrays"
_MAGIC: tuple[tuple[int, bytes, Format], ...] = (
    (128, b"DICM", Format("a DICOM file", "read the series with pydicom and stack pixel_array")),
    (344, b"n+1\0", Format("a NIfTI volume", "read it with nibabel.load(...).get_fdata()")),
    (344, b"ni1\0", Format("a NIfTI header", "read it with nibabel.load(...).get_fdata()")),
    (4, b"n+2\0", Format("a NIfTI-2 volume", "read it with nibabel.load(...).get_fdata()")),
    (4, b"ni2\0", Format("a NIfTI-2 header", "read it with nibabel.load(...).get_fdata()")),
    (0, b"\x89PNG\r\n", Format("a PNG picture", _PICTURES)),
    (0, b"\xff\xd8\xff", Format("a JPEG picture", _PICTURES)),
    (0, b"\0\0\0\x0cjP  ", Format("a JPEG 2000 picture", _PICTURES)),
    (0, b"II*\0", Format("a TIFF picture", "read it with tifffile.imread")),
    (0, b"MM\0*", Format("a TIFF picture", "read it with tifffile.imread")),
    (0, b"II+\0", Format("a BigTIFF picture", "read it with tifffile.imread")),
    (0, b"MM\0+", Format("a BigTIFF picture", "read it with tifffile.imread")),
    (0, b"GIF8", Format("a GIF picture", _PICTURES)),
    (0, b"BM", Format("a BMP picture", _PICTURES)),
    (0, b"RIFF", Format("a WebP picture", _PICTURES)),
    (0, b"MATLAB 7.3", Format("a MATLAB 7.3 (.mat) file", "read it with h5py.File")),
    (0, b"MATLAB", Format("a MATLAB (.mat) file", "read it with scipy.io.loadmat")),
    (0, b"\x89HDF\r\n\x1a\n", Format("an HDF5 file", "read its datasets with h5py.File")),
    (512, b"\x89HDF\r\n\x1a\n", Format("an HDF5 file", "read its datasets with h5py.File")),
    (0, b"CDF", Format("a NetCDF file", "read it with xarray.open_dataset")),
    (0, b"NRRD", Format("an NRRD volume", "read it with SimpleITK.ReadImage")),
    (0, b"ObjectType", Format("a MetaImage (.mha) volume", "read it with SimpleITK.ReadImage")),
    (0, b"\x93NUMPY", Format("a single array (.npy)", "load it with numpy.load")),
    (0, b"PAR1", Format("a Parquet table", "read it with pandas.read_parquet")),
    (0, b"ARROW1", Format("an Arrow table", "read it with pyarrow")),
    (0, b"SQLite format 3", Format("an SQLite database", "read the images out of it")),
    (0, b"%PDF", Format("a PDF document", "take the images themselves")),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7-zip archive", "unpack it and read what is inside")),
    (0, b"Rar!", Format("a RAR archive", "unpack it and read what is inside")),
    (257, b"ustar", Format("a tar archive", "unpack it and read what is inside")),
)
_PICKLE = Format(
    "a Python pickle, which can run code and is never read",
    "load it yourself if you trust it",
)
_TORCH = Format(
    "a torch file (.pt), which holds a pickle and is never read",
    "load it with torch.load(..., weights_only=True) and take its arrays by .numpy()",
)
_GZIP = Format("a gzip file", "unpack it and read what is inside")
_SUFFIXES = {  # formats without a signature
    ".dcm": Format("a DICOM file without preamble", "read it with pydicom.dcmread(force=True)"),
    ".tga": Format("a TGA picture", _PICTURES),
}


def foreign(path: Path) -> str | None:
    """Return the format of a file and how to make an `.npz` of it; None if it is unknown.

    None is also returned for an `.npz` file, sound or damaged.

    Args:
        path: a file or a folder.
    """
    if path.is_dir():
        return _folder(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return None
    format_ = _of_zip(path) if head[:4] == b"PK\x03\x04" else _of_bytes(head)
    if format_ is None and len(head) >= _SHORTEST and head[:2] != b"PK":
        format_ = _SUFFIXES.get(path.suffix.lower()) or _of_text(path, head)
    return None if format_ is None else _advice(format_)


def _advice(format_: Format) -> str:
    return f"{format_.name}: {format_.reader}, then {_SAVE}"


def _of_bytes(head: bytes) -> Format | None:
    for offset, magic, format_ in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return format_
    if head[:2] == b"\x1f\x8b":
        return _of_gzip(head)
    if len(head) > 2 and head[0] == 0x80 and head[1] in (2, 3, 4, 5):
        return _PICKLE
    return None


def _of_gzip(head: bytes) -> Format:
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        inside = unpacker.decompress(head, _HEAD)
    except (zlib.error, gzip.BadGzipFile):
        return _GZIP
    format_ = _of_bytes(inside) if inside[:2] != b"\x1f\x8b" else None
    if format_ is None:
        return _GZIP
    return Format(f"{format_.name}, compressed by gzip", format_.reader)


def _of_zip(path: Path) -> Format | None:
    """Return the format of a sound zip archive that holds no array; else None."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, RuntimeError):
        return None
    if any(name.endswith(".npy") for name in names):
        return None
    if any(name.endswith("data.pkl") for name in names):
        return _TORCH
    if "[Content_Types].xml" in names:
        return Format("an Office document", "read a table with pandas.read_excel")
    return Format("a zip archive without arrays", "unpack it and read what is inside")


def _of_text(path: Path, head: bytes) -> Format | None:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character in "\r\n\t\f\ufeff" for character in text):
        return None
    first = text.lstrip("\ufeff \r\n\t")[:1]
    suffix = path.suffix.lower()
    if suffix == ".json" or first in ("{", "["):
        return Format("a JSON text", "read it with json.load")
    if suffix in (".csv", ".tsv") or any(mark in text for mark in ",;\t"):
        table = "a CSV table" if suffix != ".tsv" else "a TSV table"
        return Format(table, "read the images that it names and its labels into arrays")
    return Format("a text file", "read the images and labels into arrays")


def _folder(path: Path) -> str:
    """Return the most frequent file type of a folder, with advice."""
    kinds: dict[str, int] = {}
    for entry in sorted(path.iterdir())[:1000] if path.is_dir() else ():
        if entry.is_file():
            kinds[entry.suffix.lower()] = kinds.get(entry.suffix.lower(), 0) + 1
    if not kinds:
        inside = ""
    else:
        most = max(kinds, key=lambda suffix: kinds[suffix])
        inside = f" of {kinds[most]} {most or 'unnamed'} files"
        if most == ".npz":
            return f"a folder{inside}: give the path of one of them"
    return f"a folder{inside}: read its images and labels into arrays, then {_SAVE}"
