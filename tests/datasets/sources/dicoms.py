"""Write small DICOM files for tests."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

IMPLICIT, BIG = ImplicitVRLittleEndian, ExplicitVRBigEndian


def uid(*names: object) -> str:
    """Return an identifier that depends on names alone."""
    return generate_uid(entropy_srcs=[str(name) for name in names])


def dicom(stored: np.ndarray, **tags: Any) -> Dataset:  # noqa: ANN401 - any tag
    """Return an image with stored values; further tags replace those of a plain CT slice."""
    image = Dataset()
    colour = stored.ndim == 3 and stored.shape[-1] == 3
    plain = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": uid(stored.tobytes(), sorted(map(str, tags.items()))),
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series"),
        "PatientID": "p1",
        "Modality": "CT",
        "Rows": stored.shape[-3] if colour else stored.shape[-2],
        "Columns": stored.shape[-2] if colour else stored.shape[-1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": 8 * stored.dtype.itemsize,
        "BitsStored": 8 * stored.dtype.itemsize,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
    }
    if colour:
        plain["PlanarConfiguration"] = 0
    if stored.ndim == 3 and not colour:
        plain["NumberOfFrames"] = len(stored)
    for key, value in (plain | tags).items():
        if value is not None:
            setattr(image, key, value)
    image.HighBit = image.BitsStored - 1
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def write(
    path: Path,
    stored: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    *,
    compress: str = "",
    **tags: Any,  # noqa: ANN401
) -> Path:
    """Write an image; `compress` is a transfer syntax that pydicom can encode."""
    image = dicom(stored, **tags)
    big = syntax == BIG
    values = stored.astype(stored.dtype.newbyteorder(">")) if big else stored
    content = values.tobytes()
    image.PixelData = content + b"\0" * (len(content) % 2)
    image["PixelData"].VR = "OW" if stored.dtype.itemsize > 1 else "OB"
    image.file_meta.TransferSyntaxUID = UID(syntax)
    if compress:
        image.compress(compress, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True, **_encoding(compress or syntax))
    return path


def _encoding(syntax: str) -> dict[str, bool]:
    return {"implicit_vr": syntax == IMPLICIT, "little_endian": syntax != BIG}


def deflated_bomb(path: Path) -> None:
    """Let a file unpack to 256 MiB of zeros."""
    image = dcmread(path)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(path, enforce_file_format=True)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**24)
    body = b"".join([*(packer.compress(zeros) for _ in range(2**4)), packer.flush()])
    content = path.read_bytes()
    path.write_bytes(content[: 144 + int.from_bytes(content[140:144], "little")] + body)
