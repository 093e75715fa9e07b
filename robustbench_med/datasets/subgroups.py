"""Subgroups: name the group of each image in a column of the data, such as sex, age band or site.

Numbers become bands of stated edges. What a column may hold is limited, so that no names of
patients and no long list of groups come into records and pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from robustbench_med.errors import DataError

MOST = 20  # subgroups of a column
LONGEST = 40  # characters of a name
_FEW = 3  # names from which on one for each patient is no chance
AGE_EDGES = (18.0, 40.0, 65.0)  # in years, where the data state no edges
_AGES = ("age", "ages", "patientage", "ageyears", "agebaseline", "ageatstudy", "ageatscan")
OLDEST = 130  # years
_UNKNOWN = ("", "nan", "na", "n/a", "none", "null", "?", "unknown", "not stated")
_OPEN_AGE = re.compile(r"[>≥=\s]*(\d+)\s*\+?")  # 90+, >89: as data that hide high ages have it
_DICOM_AGE = re.compile(r"(\d{3})([YMWD])")
_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}


def named_groups(
    column: str, cells: Sequence[str], edges: Sequence[float | int] | None, where: str
) -> NDArray[np.character]:
    """Return the subgroup of each cell as text; "" where it is not known.

    Args:
        column: the name of the column, for the error messages and to recognise an age.
        cells: the stored cells of all images.
        edges: the lower edges of the bands above the first, rising; None = not stated. A column of
            ages then has `AGE_EDGES`, and other numbers are names.
        where: the file, for the error messages.

    Raises:
        DataError: edges are stated and a cell is no number, or the edges do not rise.

    >>> named_groups("age", ["39", "40", "071Y", ""], (40, 65), "x").tolist()
    ['under 40', '40 to under 65', '65 and over', '']
    """
    stripped = [cell.strip() for cell in cells]
    texts = ["" if text.lower() in _UNKNOWN else text for text in stripped]
    if edges is None and re.sub(r"[^a-z]", "", column.lower()) in _AGES:
        # one age that is no number would make every other age a group of its own
        texts = [_OPEN_AGE.sub(r"\1", text) for text in texts]
        known = [_number(text) for text in texts if text]
        edges = AGE_EDGES if any(value is not None for value in known) else None
        outside = [value for value in known if value is not None and not 0 <= value <= OLDEST]
        if outside:
            raise DataError(
                f"{where}: {column}: expected ages of 0 to {OLDEST} years, got {outside[0]:g}"
            )
    if edges is None:
        return np.array([_whole(text) for text in texts], dtype=np.str_)
    if not edges or list(edges) != sorted(set(edges)):
        raise DataError(f"{where}: bands of {column}: expected rising numbers, got {list(edges)}")
    names = _band_names(edges)
    bands = []
    for text in texts:
        value = _number(text) if text else None
        if text and value is None:
            raise DataError(
                f"{where}: {column}: expected numbers, because they become bands, got {text[:40]!r}"
            )
        bands.append("" if value is None else names[int(np.searchsorted(edges, value, "right"))])
    return np.array(bands, dtype=np.str_)


def _band_names(edges: Sequence[float | int]) -> list[str]:
    written = [f"{edge:g}" for edge in edges]
    between = [f"{low} to under {high}" for low, high in zip(written, written[1:], strict=False)]
    return [f"under {written[0]}", *between, f"{written[-1]} and over"]


def _number(text: str) -> float | None:
    """Return a number, or the age in years that DICOM writes as 045Y; None if it is neither."""
    age = _DICOM_AGE.fullmatch(text)
    if age is not None:
        return float(age[1]) / _PER_YEAR[age[2]]
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _whole(text: str) -> str:
    """Return a text; a whole float becomes an integer, as tables of pandas store them."""
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def check_subgroups(
    subgroups: Mapping[str, NDArray[np.character]],
    n: int,
    patients: NDArray[np.character] | None,
    where: str,
) -> None:
    """Refuse columns that name no subgroups of `n` images.

    Raises:
        DataError: a column has another number of cells, more than `MOST` groups, a name that is
            long or cannot be printed, or it names the patients.
    """
    for column, groups in subgroups.items():
        if len(groups) != n:
            raise DataError(
                f"{where}: subgroups of {column}: expected one per image, got {len(groups)} for {n}"
            )
        names = sorted({str(name) for name in groups} - {""})
        odd = [name for name in (column, *names) if len(name) > LONGEST or not name.isprintable()]
        if odd:
            raise DataError(
                f"{where}: subgroups of {column[:LONGEST]!r}: expected names of at most {LONGEST} "
                f"printable characters, got {odd[0][:LONGEST]!r}"
            )
        if len(names) > MOST:
            numbers = all(_number(name) is not None for name in names)
            way = "state the edges of bands" if numbers else "join them in the data"
            raise DataError(
                f"{where}: expected at most {MOST} subgroups of {column}, got {len(names)}: {way}, "
                "or leave the column out"
            )
        if patients is not None and _names_patients(groups, patients):
            raise DataError(
                f"{where}: expected subgroups in {column}, got the names of patients: leave the "
                "column out"
            )


def _names_patients(groups: NDArray[np.character], patients: NDArray[np.character]) -> bool:
    """Whether a column names patients: as they are named, or one name for each of several.

    The patients of files have pseudonyms by now, so their names cannot be compared.
    """
    pairs = {(str(g), str(p)) for g, p in zip(groups, patients, strict=True) if str(g) and str(p)}
    names, owners = {name for name, _ in pairs}, {owner for _, owner in pairs}
    plain = {name.strip().casefold() for name in names}
    if len(names) > 1 and plain <= {str(patient).strip().casefold() for patient in patients}:
        return True
    return len(names) >= _FEW and len(pairs) == len(names) == len(owners)
