"""The readers of image files by the name of their format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from robustbench_med.datasets.sources import dicom, dicom_series, nifti, pictures
from robustbench_med.datasets.sources.decoded import Listing, fingerprint, listed
from robustbench_med.datasets.sources.refs import (
    ImageRef,
    UnreadableError,
    check_link,
    refuse_unreadable,
)

Decode = Callable[[Path, ImageRef], NDArray[Any]]


class Reader(NamedTuple):
    """How the files of a format are read.

    Attributes:
        accepts: whether a file, relative to a folder, is of the format.
        decode: returns the values of an image.
        decode_mask: returns the stored ids of a mask.
    """

    accepts: Callable[[Path, str], bool]
    decode: Decode
    decode_mask: Decode


READERS = {
    "pictures": Reader(
        lambda _, name: pictures.is_picture(name), pictures.decode, pictures.decode_mask
    ),
    "dicom": Reader(dicom.is_dicom, dicom.decode, dicom_series.decode_mask),
    "nifti": Reader(lambda _, name: nifti.is_nifti(name), nifti.decode, nifti.decode),
}


def scan(
    root: Path,
    names: Sequence[str],
    format_name: str,
    *,
    volumes: bool = False,
    by_study: bool = False,
) -> Listing:
    """Return the images of files, from their headers, which are looked at once.

    Args:
        root: the folder of the data.
        names: the files, all of one format.
        format_name: a key of `READERS`.
        volumes: of DICOM, whether a series is one image.
        by_study: of DICOM, whether a study stands for a patient.

    Raises:
        DataError: headers cannot be read, or a series is no volume; the message names the files.
    """
    key = fingerprint(root, names, ("headers", format_name, volumes, by_study))
    return listed(
        key, root, lambda: _look(root, names, format_name, volumes=volumes, by_study=by_study)
    )


def _look(
    root: Path, names: Sequence[str], format_name: str, *, volumes: bool, by_study: bool
) -> Listing:
    with pictures.quiet():
        linked = [(name, reason) for name in names if (reason := _link(root, name))]
        refuse_unreadable(linked, len(names), root)
        if format_name == "dicom":
            series = dicom_series.scan(root, names, volumes=volumes, by_study=by_study)
            listing, failures = Listing(series.refs, series.remarks), series.failures
        else:
            refs, failures = _heads(root, names, format_name)
            listing = Listing(refs, [])
    refuse_unreadable(failures, len(names), root)
    return listing


def _link(root: Path, name: str) -> str:
    try:
        check_link(root, name)
    except UnreadableError as error:
        return str(error)
    return ""


def _heads(
    root: Path, names: Sequence[str], format_name: str
) -> tuple[list[ImageRef], list[tuple[str, str]]]:
    head = nifti.head if format_name == "nifti" else pictures.head
    refs, failures = [], []
    for name in names:
        try:
            refs.append(head(root, name))
        except UnreadableError as error:
            failures.append((name, str(error)))
    return refs, failures
