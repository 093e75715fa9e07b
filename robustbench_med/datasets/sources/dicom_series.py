"""Group DICOM files into series, order their slices by position, and find the masks of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.sources import dicom
from robustbench_med.datasets.sources.dicom import SEGMENTATION, Header
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    UnreadableError,
    check_volume,
    times,
)
from robustbench_med.errors import DataError, NotInstalledError

_EVEN = 0.05  # by which the distances of slices may differ from their median
_TURNED = 1e-3  # by which the normals of a series may differ


class Scan(NamedTuple):
    """The images of a folder of DICOM files.

    Attributes:
        refs: the images; each knows the mask that refers to it, if any.
        failures: name and reason of each file that cannot be read.
        remarks: what looks wrong in series.
    """

    refs: list[ImageRef]
    failures: list[tuple[str, str]]
    remarks: list[str]


class Slice(NamedTuple):
    """A slice with its header and its place along the normal of its series, in mm."""

    ref: ImageRef
    header: Header
    frame: int
    place: float | None
    normal: NDArray[np.float64] | None


def scan(root: Path, names: Sequence[str], *, volumes: bool, by_study: bool = False) -> Scan:
    """Return the images of DICOM files: each slice, or each series as a volume.

    Args:
        root: the folder of the data.
        names: the files.
        volumes: whether a series is one image.
        by_study: whether a study stands for a patient, where all files have one placeholder.

    Raises:
        DataError: a series is no volume, or two masks refer to one image.
    """
    headers, failures = _headers(root, names)
    masks = [h for h in headers if str(h.image.get("SOPClassUID", "")) == SEGMENTATION]
    images = [h for h in headers if h not in masks and dicom.is_image(h)]
    remarks = []
    if without := len(headers) - len(masks) - len(images):
        remarks.append(f"{without} files hold no image (reports, contours): they are left out")
    slices = _slices(images, _masks_of(masks, root), failures, by_study=by_study)
    series: dict[str, list[Slice]] = defaultdict(list)
    for item in slices:
        series[item.header.series or item.header.name].append(item)
    owners = len({item.ref.patient for item in slices})
    studies = len({item.header.study for item in slices})
    if owners == 1 < studies:
        remarks.append(
            f"all {studies} studies state one PatientID, perhaps a placeholder: by_study = true in "
            "[source] counts each study as a patient"
        )
    if volumes:
        refs = [_volume(ordered(group), root) for group in series.values()]
        return Scan(refs, failures, remarks)
    remarks += [remark for group in series.values() if (remark := _gap(ordered(group)))]
    return Scan([item.ref for item in slices], failures, remarks)


def _slices(
    images: Sequence[Header],
    mask_of: dict[str, str],
    failures: list[tuple[str, str]],
    *,
    by_study: bool,
) -> list[Slice]:
    """Return every slice of the images; patients become numbers, in the order of the files."""
    numbers: dict[str, int] = {}
    slices: list[Slice] = []
    for header in images:
        owner = header.study if by_study else header.patient
        patient = str(numbers.setdefault(owner, len(numbers) + 1)) if owner else ""
        try:
            for ref in dicom.slice_refs(header):
                frame = ref.frames[0] if ref.frames else 0
                located = dicom.position(header, frame)
                place, normal = (None, None) if located is None else located
                known = replace(ref, patient=patient, mask=mask_of.get(header.instance, ""))
                slices.append(Slice(known, header, frame, place, normal))
        except UnreadableError as error:
            failures.append((header.name, str(error)))
    return slices


def _headers(root: Path, names: Sequence[str]) -> tuple[list[Header], list[tuple[str, str]]]:
    headers, failures = [], []
    for name in names:
        try:
            headers.append(dicom.read_header(root, name))
        except UnreadableError as error:
            failures.append((name, str(error)))
    return headers, failures


def ordered(group: Iterable[Slice]) -> list[Slice]:
    """Return the slices of a series along its normal; in the order of files if not all are placed.

    The normal is turned so that its largest component points to the patient's left, back or head.
    """
    slices = list(group)
    normals = [item.normal for item in slices]
    first = normals[0]
    if first is None or any(item.place is None for item in slices):
        return slices
    sign = 1.0 if first[int(np.abs(first).argmax())] >= 0 else -1.0
    return sorted(slices, key=lambda item: sign * (item.place or 0.0))


def _gap(slices: Sequence[Slice]) -> str:
    """Return what is wrong with the places of a series' slices; "" if nothing is."""
    names = f"{slices[0].ref.files[0]} and {len(slices) - 1} more"
    if len(slices) < 2 or any(item.place is None for item in slices):
        return ""
    steps = np.abs(np.diff([item.place or 0.0 for item in slices]))
    if (steps < _TURNED).any():
        row = int((steps < _TURNED).argmax())
        pair = f"{slices[row].ref.files[0]} and {slices[row + 1].ref.files[0]}"
        return f"two slices of a series are at one place: {pair}: several phases or echoes?"
    usual = float(np.median(steps))
    wide = np.abs(steps - usual) > _EVEN * usual
    if not wide.any():
        return ""
    row = int(wide.argmax())
    return (
        f"a slice is missing in the series of {names}: {slices[row].ref.files[0]} and "
        f"{slices[row + 1].ref.files[0]} are {steps[row]:g} mm apart, others {usual:g} mm"
    )


def _volume(slices: Sequence[Slice], root: Path) -> ImageRef:
    """Return one reference to the slices of a series.

    Raises:
        DataError: their sizes or orientations differ, a slice is missing, or their order is not
            known.
    """
    first = slices[0]
    where = f"{root / first.ref.files[0]}: expected a series that is one volume, got"
    for item in slices:
        if (item.ref.size, item.ref.channels) != (first.ref.size, first.ref.channels):
            raise DataError(
                f"{where} slices of {times(first.ref.size)} and {times(item.ref.size)} "
                f"({item.ref.files[0]})"
            )
        if item.ref.spacing != first.ref.spacing:
            raise DataError(f"{where} slices of different spacing ({item.ref.files[0]})")
        if item.normal is None or first.normal is None:
            if len({i.header.name for i in slices}) > 1:
                raise DataError(f"{where} slices whose position is not stated: images_as = slices")
        elif float(np.abs(item.normal - first.normal).max()) > _TURNED:
            raise DataError(f"{where} slices of different orientation ({item.ref.files[0]})")
    if problem := _gap(slices):
        raise DataError(f"{where} one of which {problem}")
    check_depth = (len(slices), *first.ref.size, first.ref.channels)
    try:
        check_volume(check_depth)
    except UnreadableError as error:
        raise DataError(f"{where} that {error}") from None
    depth = None
    if len(slices) > 1 and first.place is not None and slices[-1].place is not None:
        depth = abs(slices[-1].place - first.place) / (len(slices) - 1)
    spacing = None if depth is None or first.ref.spacing is None else (depth, *first.ref.spacing)
    one_file = len({item.header.name for item in slices}) == 1 and len(slices) > 1
    masks = {item.ref.mask for item in slices} - {""}
    if len(masks) > 1:
        raise DataError(f"{where} slices with different masks: {', '.join(sorted(masks))}")
    return replace(
        first.ref,
        files=(first.header.name,) if one_file else tuple(i.header.name for i in slices),
        frames=tuple(item.frame for item in slices) if one_file else (),
        size=(len(slices), *first.ref.size),
        spacing=spacing,
        mask=masks.pop() if masks else "",
        grids=tuple(dict.fromkeys(grid for item in slices for grid in item.ref.grids)),
    )


# --- masks --------------------------------------------------------------------------------------


def _masks_of(masks: Sequence[Header], root: Path) -> dict[str, str]:
    """Return the file of the mask that refers to each image.

    Raises:
        DataError: two refer to one image, or a segment stands for different structures in two.
    """
    mask_of: dict[str, str] = {}
    meanings: dict[int, tuple[tuple[str, str], str]] = {}
    for header in masks:
        for instance in _referenced(header):
            if instance in mask_of and mask_of[instance] != header.name:
                raise DataError(
                    f"{root}: expected one mask for each image, got {mask_of[instance]} and "
                    f"{header.name} for one: name one of them in `skip` of [source]"
                )
            mask_of[instance] = header.name
        for number, code in segment_codes(header).items():
            known, name = meanings.setdefault(number, (code, header.name))
            if known != code:
                raise DataError(
                    f"{root}: expected segment {number} to be one structure in all masks, got "
                    f"another in {header.name} than in {name}"
                )
    return mask_of


def _referenced(header: Header) -> set[str]:
    def read() -> set[str]:
        instances = set()
        for series in header.image.get("ReferencedSeriesSequence", []):
            for item in series.get("ReferencedInstanceSequence", []):
                instances.add(str(item.ReferencedSOPInstanceUID))
        return instances

    references: set[str] = dicom.guarded(read)
    return references


def segment_codes(header: Header) -> dict[int, tuple[str, str]]:
    """Return the code and the coding scheme of the structure of each segment."""

    def read() -> dict[int, tuple[str, str]]:
        codes = {}
        for segment in header.image.get("SegmentSequence", []):
            items = segment.get("SegmentedPropertyTypeCodeSequence", [])
            code = items[0] if items else {}
            value = str(code.get("CodeValue", ""))
            codes[int(segment.SegmentNumber)] = (value, str(code.get("CodingSchemeDesignator", "")))
        return codes

    codes: dict[int, tuple[str, str]] = dicom.guarded(read)
    return codes


def structure_name(code: str, scheme: str) -> str:
    """Return the name that a standard's dictionary has for a code; "" if it has none.

    >>> structure_name("T-62000", "SRT")
    'liver'
    """
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr._snomed_dict import mapping

    every: dict[str, dict[str, dict[str, Any]]] = concepts  # type: ignore[assignment]

    if scheme in ("SRT", "SNM3", "99SDM"):
        code, scheme = mapping["SRT"].get(code, ""), "SCT"
    for meanings in every.get(scheme, {}).values():
        if code in meanings:
            return str(meanings[code][0]).lower()
    return ""


def decode_mask(root: Path, ref: ImageRef) -> NDArray[Any]:
    """Return the segment of each pixel of an image, 0 = none, matched by the images' identifiers.

    Raises:
        UnreadableError: the mask is damaged, its segments overlap, or it has another size.
    """
    segmentation = _segmentation(root / ref.mask, (root / ref.mask).stat().st_ctime_ns)
    headers = [dicom.read_header(root, name) for name in ref.files]

    def read() -> NDArray[Any]:
        frames = segmentation.get_pixels_by_source_instance(
            [header.instance for header in headers],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
            ignore_spatial_locations=True,
        )
        return np.asarray(frames)

    if ref.frames:
        raise UnreadableError("its mask refers to frames of one file, which is not read")
    try:
        ids: NDArray[Any] = dicom.guarded(read)
    except UnreadableError:
        raise UnreadableError(
            "its segments overlap, or it does not refer to its image by SOPInstanceUID"
        ) from None
    return ids[0] if len(ref.size) == 2 else ids


@lru_cache(maxsize=2)
def _segmentation(path: Path, _changed: int) -> Any:  # noqa: ANN401 - highdicom has no types
    """Return an open DICOM-SEG file.

    Raises:
        UnreadableError: it is damaged or too large.
        NotInstalledError: highdicom is not installed.
    """
    header = dicom.read_header(path.parent, path.name)

    def check() -> None:
        image = header.image
        check_volume((dicom.frame_count(header), int(image.Rows), int(image.Columns)))

    dicom.guarded(check)
    try:
        from highdicom.seg import segread
    except ImportError:
        raise NotInstalledError("highdicom", "DICOM-SEG masks", "clinical") from None
    return dicom.guarded(lambda: segread(path))
