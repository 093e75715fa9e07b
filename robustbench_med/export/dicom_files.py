"""Write adversarial images as DICOM files, and read them back.

Every file is written anew with the tags set below: no header of a source file is copied, so that
nothing of a patient can be in it.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.geometry import Geometry
from robustbench_med.errors import DataError, NotInstalledError
from robustbench_med.export.form import MAKER, WARNING, Form, Mark

MAX_LEVELS = 2**16 - 1
_CT = "1.2.840.10008.5.1.4.1.1.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def check(form: Form) -> None:
    """Raise DataError if DICOM files cannot hold such images."""
    if form.native.levels > MAX_LEVELS:
        raise DataError(
            f"expected at most 16 bits for DICOM, got {form.native.bits}: use --as nifti"
        )
    if len(form.size) == 3 and form.spacing is None:
        raise DataError(
            "expected a dataset whose card states the spacing, without which slices have no place, "
            "got none: state it, or use --as nifti"
        )
    colours = form.channels == 3 and len(form.size) == 2 and form.native.levels == 255
    if form.channels != 1 and not colours:
        raise DataError(
            f"expected one channel, or 8-bit colours, for DICOM, got {form.channels} channels: use "
            "--as nifti"
        )


def write(steps: NDArray[np.int64], form: Form, mark: Mark, folder: Path) -> list[Path]:
    """Write an image; a volume becomes a folder with one file a slice. Return the files.

    Args:
        steps: `(c, *s)` the steps k of the stored values `low + k * step`.
        form: the form of the images.
        mark: the words that the image carries.
        folder: where it is written.
    """
    if len(form.size) == 2:
        path = folder / f"{mark.stem}.dcm"
        _dataset(steps, form, mark, 0).save_as(path, enforce_file_format=True)
        return [path]
    home = folder / mark.stem
    home.mkdir()
    paths = []
    for index in range(steps.shape[1]):
        path = home / f"slice-{index + 1:04d}.dcm"
        _dataset(steps[:, index], form, mark, index).save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _dataset(steps: NDArray[np.int64], form: Form, mark: Mark, index: int) -> Any:  # noqa: ANN401
    """Return the DICOM dataset of a slice `(c, h, w)`."""
    pydicom = _pydicom()
    placed = form.spacing is not None or form.geometry is not None
    sop_class = _CT if form.is_ct and placed else _SECONDARY_CAPTURE
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    instance = _uid(steps, mark, "instance", index)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    dataset.StudyInstanceUID = _uid(steps[:0], mark, "study")
    dataset.SeriesInstanceUID = _uid(steps[:0], mark, "series")
    _identify(dataset, form, mark, index)
    _locate(dataset, form, mark, index)
    _pixels(dataset, steps, form)
    return dataset


def _identify(dataset: Any, form: Form, mark: Mark, index: int) -> None:  # noqa: ANN401
    """Set the tags that mark a file as adversarial; those of a patient are empty or made up."""
    dataset.PatientName = "Adversarial^Example"
    dataset.PatientID = f"ADVERSARIAL-{mark.number:06d}"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "written anew without any header of the source"
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.StudyID = dataset.ReferringPhysicianName = ""
    dataset.Modality = "CT" if form.is_ct else "OT"
    dataset.Manufacturer = MAKER
    dataset.ConversionType = "WSD"
    dataset.SeriesNumber, dataset.InstanceNumber = mark.number, index + 1
    dataset.ImageType = ["DERIVED", "SECONDARY", "ADVERSARIAL"]
    dataset.SeriesDescription = WARNING
    dataset.ImageComments = mark.text
    dataset.DerivationDescription = f"adversarial perturbation: {mark.attack}"


def _locate(dataset: Any, form: Form, mark: Mark, index: int) -> None:  # noqa: ANN401
    """Set spacing and position: those of the source, or those of a frame of its own.

    The origin of a frame of its own is the first pixel.
    """
    if form.geometry is not None:
        _locate_as_source(dataset, form, form.geometry, mark, index)
        return
    if form.spacing is None:
        return
    decimal = _decimal
    dataset.PixelSpacing = [decimal(mm) for mm in form.spacing[-2:]]
    if len(form.size) == 3 or form.is_ct:
        thickness = form.spacing[0] if len(form.size) == 3 else 1.0
        dataset.SliceThickness = decimal(thickness) if len(form.size) == 3 else None
        dataset.FrameOfReferenceUID = _uid(np.empty(0, np.int64), mark, "frame")
        dataset.PositionReferenceIndicator = ""
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, decimal(index * thickness)]
    if form.is_ct:
        dataset.KVP = dataset.AcquisitionNumber = None


def _locate_as_source(
    dataset: Any,  # noqa: ANN401
    form: Form,
    geometry: Geometry,
    mark: Mark,
    index: int,
) -> None:
    place, turn = of_slice(geometry, index)
    dataset.PixelSpacing = [_decimal(mm) for mm in geometry.spacing[1:]]
    dataset.SliceThickness = _decimal(geometry.spacing[0]) if len(form.size) == 3 else None
    dataset.FrameOfReferenceUID = _uid(np.empty(0, np.int64), mark, "frame")
    dataset.PositionReferenceIndicator = ""
    dataset.ImagePositionPatient = [_decimal(mm) for mm in place]
    dataset.ImageOrientationPatient = [_decimal(cosine) for cosine in turn]
    if form.is_ct:
        dataset.KVP = dataset.AcquisitionNumber = None


def _decimal(value: float) -> Any:  # noqa: ANN401
    return _pydicom().valuerep.DSfloat(value, auto_format=True)


def of_slice(geometry: Geometry, index: int) -> tuple[list[float], list[float]]:
    """Return place and orientation of a slice on the axes of DICOM: to left, back and head."""
    slices, rows, columns = np.array(geometry.steps) * [-1, -1, 1]
    place = np.array(geometry.origin) * [-1, -1, 1] + index * slices
    turn = [*(columns / np.linalg.norm(columns)), *(rows / np.linalg.norm(rows))]
    return place.tolist(), [float(cosine) for cosine in turn]


def _pixels(dataset: Any, steps: NDArray[np.int64], form: Form) -> None:  # noqa: ANN401
    pydicom = _pydicom()
    native, wide = form.native, form.native.levels > 255
    dataset.Rows, dataset.Columns = steps.shape[1:]
    dataset.SamplesPerPixel = form.channels
    dataset.BitsAllocated = 16 if wide else 8
    dataset.BitsStored = max(native.bits, 1)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    if form.channels == 3:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    else:
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.RescaleSlope = pydicom.valuerep.DSfloat(native.step, auto_format=True)
        dataset.RescaleIntercept = pydicom.valuerep.DSfloat(native.low, auto_format=True)
        dataset.RescaleType = "HU" if form.is_ct else "US"
    pixels = np.moveaxis(steps, 0, -1) if form.channels == 3 else steps[0]
    content = np.ascontiguousarray(pixels, dtype="<u2" if wide else "u1").tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW" if wide else "OB"


def _uid(steps: NDArray[np.int64], mark: Mark, kind: str, index: int = 0) -> Any:  # noqa: ANN401
    """Return a new UID, the same whenever the same image is exported."""
    pydicom = _pydicom()
    text = f"{MAKER} {mark.case_id} {mark.attack} {kind} {mark.number} {index} "
    digest = hashlib.sha256(text.encode() + steps.tobytes()).digest()
    # a UUID as a UID: PS3.5 annex B.2
    return pydicom.uid.UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}")


def _pydicom() -> Any:  # noqa: ANN401
    try:
        import pydicom
    except ImportError:
        raise NotInstalledError("pydicom", "DICOM files", "clinical") from None
    return pydicom
