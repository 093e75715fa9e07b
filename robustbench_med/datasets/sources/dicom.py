"""Read DICOM images with pydicom: values in their own unit, text of the header left in the file.

Only tags that are listed here are read, and of these none is free text. Messages never repeat what
a file holds, since it may be the name of a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.sources import deflated, refs
from robustbench_med.datasets.sources.code_stream import shape_of
from robustbench_med.datasets.sources.refs import ImageRef, UnreadableError, check_volume, times
from robustbench_med.errors import NotInstalledError

MAGIC = b"DICM"
_PREAMBLE = 128
_OTHER_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".csv", ".tsv", ".txt", ".md", ".json", ".xml")
    + (".nii", ".gz", ".toml", ".npz", ".npy", ".zip", ".pdf", ".py", ".html", ".xlsx")
)
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
MAX_FRAMES = 2**16
_LONG_ELEMENT = 12  # bytes of tag, type and length before the value of an element
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("PatientID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth"),
    *("PixelSpacing", "ImagerPixelSpacing", "SpacingBetweenSlices", "SliceThickness"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelPaddingValue"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ReferencedSeriesSequence", "SourceImageSequence", "SegmentSequence"),
)
# the modalities of PS3.3 C.7.3.1.1.1 that hold images
MODALITIES = {
    **{"CT": "CT", "MR": "MR", "US": "ultrasound", "CR": "radiograph", "DX": "radiograph"},
    **{"RG": "radiograph", "MG": "mammogram", "PT": "PET", "NM": "scintigram", "XA": "angiogram"},
    **{"RF": "fluoroscopy", "OP": "eye photograph", "OPT": "OCT", "ES": "endoscopy"},
    **{"XC": "photograph", "DMS": "dermoscopy", "SM": "slide microscopy", "GM": "microscopy"},
    **{"IO": "dental radiograph", "PX": "panoramic radiograph", "IVUS": "ultrasound"},
}
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_EVERY = 1e-3  # mm by which positions and spacings may differ


class Header(NamedTuple):
    """What a DICOM file states about its pixels, without text.

    Attributes:
        name: the file, relative to the folder of the data.
        series: identifies the series among the headers of one scan.
        patient: identifies the patient among them; "" = not stated.
        study: identifies the study.
        instance: identifies the image, by which masks refer to it.
        image: the dataset with the listed tags.
    """

    name: str
    series: str
    patient: str
    study: str
    instance: str
    image: Any


def is_dicom(root: Path, name: str) -> bool:
    """Whether a file says that it is DICOM; a folder's index (DICOMDIR) is none."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _OTHER_SUFFIXES or PurePosixPath(name).name.upper() == "DICOMDIR":
        return False
    if suffix in (".dcm", ".dicom", ".ima"):
        return True
    try:
        with (root / name).open("rb") as file:
            return file.read(_PREAMBLE + len(MAGIC))[_PREAMBLE:] == MAGIC
    except OSError:
        return False


def read_header(root: Path, name: str) -> Header:
    """Return the header of a file, its pixels unread.

    Raises:
        UnreadableError: the file is no DICOM, damaged, or deflated and too large.
        NotInstalledError: pydicom is not installed.
    """
    pydicom = _pydicom()

    def read() -> Any:  # noqa: ANN401 - pydicom's types differ between versions
        meta = pydicom.filereader.read_file_meta_info(str(root / name))
        if meta.get("TransferSyntaxUID") == deflated.SYNTAX:
            deflated.unpacked_bytes(root / name)
        image = pydicom.dcmread(root / name, stop_before_pixels=True, specific_tags=[*_TAGS])
        return image, [str(image.get(tag, "") or "") for tag in _TAGS[:4]], image.get("PatientID")

    image, (_, instance, study, series), patient = guarded(read)
    return Header(name, series, str(patient or study or ""), study, instance, image)


def guarded(read: Callable[[], Any]) -> Any:  # noqa: ANN401 - what `read` returns
    """Return what a function reads from a DICOM file; any error becomes UnreadableError."""
    return refs.guarded(read, _words)


def _words(error: Exception) -> str:
    """Return what an error of pydicom means; a damaged file may raise anything."""
    if isinstance(error, _pydicom().errors.InvalidDicomError):
        return "it is no DICOM file"
    if "missing required dependencies" in str(error) or "plugin" in str(error):
        return "its compression needs pip install 'robustbench_med[clinical]'"
    return "it is cut or damaged"


def slice_refs(header: Header) -> list[ImageRef]:
    """Return a reference to each frame of a file, or to its only image.

    Raises:
        UnreadableError: its tags state no image that is read.
    """
    count = frame_count(header)
    if not 0 < count <= MAX_FRAMES:
        raise UnreadableError(f"its header states {count} frames")
    return [
        _ref(header, (name,), (frame,) if count > 1 else ())
        for name in (header.name,)
        for frame in range(count)
    ]


def is_image(header: Header) -> bool:
    """Whether a file is no report, contour or plan; a cut header counts as an image's."""
    kind = header.image.get("SOPClassUID")
    known = kind is not None and not kind.is_private and kind.name != str(kind)
    return "Rows" in header.image or not known or "Image Storage" in kind.name


def frame_count(header: Header) -> int:
    """Return the number of frames."""
    return int(guarded(lambda: int(header.image.get("NumberOfFrames", 1) or 1)))


def _ref(header: Header, files: tuple[str, ...], frames: tuple[int, ...]) -> ImageRef:
    """Return the reference to one image of a file."""

    def describe() -> ImageRef:
        image = header.image
        rows, columns = int(image.Rows), int(image.Columns)
        samples = int(image.get("SamplesPerPixel", 1))
        photometric = str(image.get("PhotometricInterpretation", ""))
        bits = int(image.BitsAllocated)
        check_volume((rows, columns, samples))
        colour = photometric in (*_COLOURS, "PALETTE COLOR")
        if not colour and photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise UnreadableError("its PhotometricInterpretation is none that is read")
        if (samples == 3) != (photometric in _COLOURS) or samples not in (1, 3):
            raise UnreadableError(f"it has {samples} samples a pixel, which its colours do not fit")
        if bits not in (8, 16) or (colour and photometric != "PALETTE COLOR" and bits != 8):
            raise UnreadableError(f"it stores {bits} bits a pixel, which are not read")
        _check_syntax(image.file_meta.get("TransferSyntaxUID"))
        slope, intercept = rescale(image, frames[0] if frames else 0)
        dtype = "uint8" if colour else _type_of(image, slope, intercept)
        return ImageRef(
            files,
            (rows, columns),
            3 if colour else 1,
            dtype,
            frames=frames,
            spacing=_spacing(image, frames[0] if frames else 0),
            facts=tuple(_facts(image, photometric)),
            grids=() if colour else ((slope, intercept),),
        )

    reference: ImageRef = guarded(describe)
    return reference


def _check_syntax(syntax: Any) -> None:  # noqa: ANN401 - an identifier of pydicom
    """Raise UnreadableError if no library that is used here reads a compression, such as video."""
    if syntax is None or not syntax.is_compressed:
        return
    try:
        _pydicom().pixels.get_decoder(syntax)
    except NotImplementedError:
        name = "a private one" if syntax.is_private else syntax.name
        raise UnreadableError(
            f"its transfer syntax ({name}) is not read: save it as Explicit VR Little Endian"
        ) from None


def _type_of(image: Any, slope: float, intercept: float) -> str:  # noqa: ANN401
    """Return the type of rescaled values."""
    if (int(image.BitsAllocated), slope, intercept) == (8, 1, 0) and not _is_signed(image):
        return "uint8"
    return "int32" if slope == int(slope) and intercept == int(intercept) else "float32"


def _is_signed(image: Any) -> bool:  # noqa: ANN401
    return int(image.get("PixelRepresentation", 0) or 0) == 1


def _facts(image: Any, photometric: str) -> Iterable[tuple[str, str]]:  # noqa: ANN401
    """Yield properties that a person checks: codes and numbers, never text of the file."""
    yield "modality", MODALITIES.get(str(image.get("Modality", "")), "not stated")
    yield "photometric", photometric
    sign = "signed" if _is_signed(image) else "unsigned"
    yield "bits", f"{int(image.BitsStored)} of {int(image.BitsAllocated)}, {sign}"
    yield "rescale", "slope {:g}, intercept {:g}".format(*rescale(image, 0))
    centres, widths = _numbers(image.get("WindowCenter")), _numbers(image.get("WindowWidth"))
    if centres and len(centres) == len(widths):
        pairs = dict.fromkeys(zip(centres, widths, strict=True))
        yield "window", ", ".join(f"{centre:g}/{width:g}" for centre, width in pairs)
    syntax = image.file_meta.get("TransferSyntaxUID")
    known = syntax is not None and not syntax.is_private
    yield "syntax", syntax.name if known and syntax.name != str(syntax) else "not known"
    if "PixelPaddingValue" in image:
        yield "padding", "stated"


def _numbers(value: Any) -> list[float]:  # noqa: ANN401 - one number or several
    if value is None or value == "":
        return []
    return [float(v) for v in (value if hasattr(value, "__len__") else [value])]


def rescale(image: Any, frame: int) -> tuple[float, float]:  # noqa: ANN401
    """Return slope and intercept of a frame, which an enhanced object states in its groups.

    Raises:
        UnreadableError: the slope is 0 or not finite, or a table takes its place.
    """
    group = _group(image, "PixelValueTransformationSequence", frame)
    source = image if group is None else group
    if "ModalityLUTSequence" in image:
        raise UnreadableError(
            "a table (Modality LUT) rescales its values, which is not read: apply it and save them"
        )
    slope = float(source.get("RescaleSlope", 1) or 0)
    intercept = float(source.get("RescaleIntercept", 0) or 0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise UnreadableError("its rescale slope or intercept is no number")
    return slope, intercept


def _group(image: Any, name: str, frame: int) -> Any:  # noqa: ANN401
    """Return an item of the functional groups that an enhanced object has; None if it has none."""
    places = [image.get("SharedFunctionalGroupsSequence"), None]
    per_frame = image.get("PerFrameFunctionalGroupsSequence")
    if per_frame is not None and frame < len(per_frame):
        places[1] = [per_frame[frame]]
    for groups in places:
        if groups and name in groups[0] and len(groups[0][name].value):
            return groups[0][name].value[0]
    return None


def _spacing(image: Any, frame: int) -> tuple[float, float] | None:  # noqa: ANN401
    """Return mm per pixel along rows and columns; detectors state it for their own plane."""
    group = _group(image, "PixelMeasuresSequence", frame)
    source = image if group is None else group
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        sides = _numbers(source.get(tag))
        if len(sides) == 2 and all(0 < side < 1e3 for side in sides):
            return sides[0], sides[1]
    return None


def position(header: Header, frame: int) -> tuple[float, NDArray[np.float64]] | None:
    """Return the place of a slice along its normal in mm, and the normal; None if not stated."""
    located = plane(header, frame)
    if located is None:
        return None
    normal = np.cross(located[1], located[2])
    normal /= np.linalg.norm(normal)
    return float(located[0] @ normal), normal


def plane(
    header: Header, frame: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Return where a slice is: its first pixel in mm, and the directions of a row and a column.

    Coordinates are those of DICOM: to the left, to the back, to the head. None if not stated.
    """
    image = header.image

    def read() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
        where = _group(image, "PlanePositionSequence", frame)
        turn = _group(image, "PlaneOrientationSequence", frame)
        place = _numbers((where or image).get("ImagePositionPatient"))
        axes = _numbers((turn or image).get("ImageOrientationPatient"))
        if len(place) != 3 or len(axes) != 6 or not np.isfinite([*place, *axes]).all():
            return None
        if np.linalg.norm(np.cross(axes[:3], axes[3:])) < _EVERY:
            return None
        return np.array(place), np.array(axes[:3]), np.array(axes[3:])

    located: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None
    located = guarded(read)
    return located


def decode(root: Path, ref: ImageRef) -> NDArray[Any]:
    """Return the values of an image in their own unit: `(h, w[, 3])`, or `(d, h, w[, 3])`.

    The rescale slope and intercept are applied, MONOCHROME1 is inverted so that bright is always
    high, pixels of the padding value get the lowest other value, and colours become RGB.

    Raises:
        UnreadableError: the file is damaged, or has another size than its header said.
    """
    if len(ref.size) == 2:
        return _slice(root, ref.files[0], ref.frames[0] if ref.frames else None, ref.size)
    places: list[tuple[str, int | None]] = [(name, None) for name in ref.files]
    if ref.frames:
        places = [(ref.files[0], frame) for frame in ref.frames]
    return np.stack([_slice(root, name, frame, ref.size[1:]) for name, frame in places])


def _slice(root: Path, name: str, frame: int | None, size: tuple[int, ...]) -> NDArray[Any]:
    pydicom = _pydicom()
    header = read_header(root, name)

    def read() -> NDArray[Any]:
        image = header.image
        stated = (int(image.Rows), int(image.Columns))
        if stated != size:
            raise UnreadableError(f"its size is {times(stated)} in place of {times(size)}")
        _check_length(root / name, image)
        index = 0 if frame is None else frame
        _check_stream(root / name, image, index)
        source = root / name
        if image.file_meta.TransferSyntaxUID == deflated.SYNTAX:
            source = pydicom.dcmread(root / name)  # it has no place in the file where pixels begin
        stored = pydicom.pixels.pixel_array(source, index=index)
        photometric = str(image.PhotometricInterpretation)
        if photometric == "PALETTE COLOR":
            full = pydicom.dcmread(root / name, stop_before_pixels=True)
            colours: NDArray[Any] = pydicom.pixels.apply_color_lut(stored, full)
            return (colours >> 8 if colours.dtype == np.uint16 else colours).astype(np.uint8)
        if stored.ndim == 3:
            return np.ascontiguousarray(stored, np.uint8)
        return _native(stored, image, index, inverted=photometric == "MONOCHROME1")

    values: NDArray[Any] = guarded(read)
    return values


def _check_length(path: Path, image: Any) -> None:  # noqa: ANN401
    """Refuse a file that is too short for uncompressed pixels, before these are allocated."""
    if image.file_meta.TransferSyntaxUID.is_compressed:
        return
    bits = int(image.Rows) * int(image.Columns) * int(image.get("SamplesPerPixel", 1))
    bits *= int(image.BitsAllocated) * max(1, int(image.get("NumberOfFrames", 1) or 1))
    if str(image.get("PhotometricInterpretation")) == "YBR_FULL_422":
        bits = bits * 2 // 3
    size = path.stat().st_size
    if image.file_meta.TransferSyntaxUID == deflated.SYNTAX:
        size = deflated.unpacked_bytes(path)
    if size < bits // 8:
        raise UnreadableError(f"it is cut: {size} bytes hold fewer than its {bits // 8} of pixels")


def _check_stream(path: Path, image: Any, index: int) -> None:  # noqa: ANN401
    """Refuse a code stream that states another size than the header, before it is allocated."""
    pydicom = _pydicom()
    syntax = image.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == pydicom.uid.RLELossless:
        return
    with path.open("rb") as file:
        tags = ["NumberOfFrames", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]
        head = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
        file.seek(_LONG_ELEMENT, 1)
        offsets = [head.get(tag) for tag in tags[1:]]
        stream = pydicom.encaps.get_frame(
            file,
            index,
            number_of_frames=int(head.get("NumberOfFrames", 1) or 1),
            extended_offsets=tuple(offsets) if all(offsets) else None,
        )
    expected = (int(image.Rows), int(image.Columns), int(image.get("SamplesPerPixel", 1)))
    stated = shape_of(stream)
    if stated != expected:
        got = "no size" if stated is None else times(stated)
        raise UnreadableError(f"its code stream states {got}, its header {times(expected)}")


def _native(
    stored: NDArray[Any],
    image: Any,  # noqa: ANN401 - pydicom's types differ between versions
    frame: int,
    *,
    inverted: bool,
) -> NDArray[Any]:
    """Return stored values in their own unit."""
    values = _sign_extended(stored.astype(np.int64), image)
    padding = _padding(image, values)
    if inverted:
        low, high = _limits(image)
        values = low + high - values
    if padding is not None and padding.any() and not padding.all():
        values[padding] = values[~padding].min()
    slope, intercept = rescale(image, frame)
    dtype = _type_of(image, slope, intercept)
    scaled = values * slope + intercept if dtype == "float32" else values * int(slope)
    if dtype != "float32":
        scaled = scaled + int(intercept)
    converted: NDArray[Any] = scaled.astype(dtype)
    return converted


def _limits(image: Any) -> tuple[int, int]:  # noqa: ANN401
    bits = int(image.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if _is_signed(image) else (0, 2**bits - 1)


def _sign_extended(values: NDArray[np.int64], image: Any) -> NDArray[np.int64]:  # noqa: ANN401
    """Return values of their stored bits alone: the bits above may hold an overlay."""
    bits, allocated = int(image.BitsStored), int(image.BitsAllocated)
    if not 0 < bits <= allocated or int(image.get("HighBit", bits - 1)) != bits - 1:
        raise UnreadableError("its stored bits do not end at its lowest bit")
    low, high = _limits(image)
    if bits == allocated or (values.min() >= low and values.max() <= high):
        return values
    values = values & (2**bits - 1)
    return np.where(values > high, values - 2**bits, values) if low < 0 else values


def _padding(image: Any, values: NDArray[np.int64]) -> NDArray[np.bool_] | None:  # noqa: ANN401
    value = image.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    outside: NDArray[np.bool_] = values == int(value)
    return outside


def _pydicom() -> Any:  # noqa: ANN401
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError:
        raise NotInstalledError("pydicom", "DICOM files", "clinical") from None
    return pydicom
