"""Read and check the `info` of a file: JSON text in which its owner describes the data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from robustbench_med.cards import NativeRange, Task
from robustbench_med.datasets.archive import Npz
from robustbench_med.errors import DataError, SpecError
from robustbench_med.registry import validate

MAX_INFO = 2**20  # bytes; real files have up to 3 kB
MAX_DEPTH = 16  # bits of a pixel: floats of rounded images hold no more
EXAMPLE = 'native as {"unit": "HU", "low": -1024, "high": 3071}'
_TASKS: dict[str, Task] = {  # as MedMNIST and others write them; other text is prose
    "single-label": "single_label",
    "multi-class": "single_label",
    "binary-class": "single_label",
    "ordinal-regression": "single_label",
    "classification": "single_label",
    "multi-label": "multi_label",
    "findings": "multi_label",
    "segmentation": "segmentation",
    "masks": "segmentation",
}


def read_info(file: Npz) -> dict[str, Any]:
    """Return the statements of a file's `info`, or an empty dict.

    Raises:
        DataError: `info` is not a JSON object.
    """
    if "info" not in file.keys:
        return {}
    shape, dtype = file.header("info")
    if dtype.kind != "U" or shape != () or dtype.itemsize > MAX_INFO:
        raise DataError(
            f"{file.path}: info: expected one JSON text of at most {MAX_INFO} bytes, "
            f"got {dtype} of shape {shape}"
        )
    try:
        statements = json.loads(str(file.array("info")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path}: info: expected JSON text, got: {error}") from None
    if not isinstance(statements, dict):
        raise DataError(
            f"{file.path}: info: expected a JSON object, got {type(statements).__name__}"
        )
    return statements


def task(info: dict[str, Any]) -> Task | None:
    """Return the task that `task` states; None if it is absent or free text.

    >>> task({"task": "multi-label, binary-class"}), task({"task": "MRI of the knee"})
    ('multi_label', None)
    """
    stated = str(info.get("task", "")).strip().lower().replace("_", "-").replace(" ", "-")
    for word, task_ in _TASKS.items():
        if stated == word or stated.startswith(f"{word},"):
            return task_
    return None


def classes(path: Path, info: dict[str, Any], *, masks: bool = False) -> tuple[str, ...]:
    """Return the names of the classes; for masks those in `mask_classes`, if it is stated.

    Raises:
        DataError: the statement is not a list of names, or it names a class twice.
    """
    key = "mask_classes" if masks and "mask_classes" in info else "classes"
    names = info.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: info: expected {key} to be a list of names, got {names!r}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: info: expected {key} of different names, got {twice[0]!r} twice")
    return tuple(names)


def normal(path: Path, info: dict[str, Any], k: int) -> int | None:
    """Return the index of the healthy class, or None.

    Raises:
        DataError: the statement is not a class.
    """
    index = info.get("normal")
    if index is None or (type(index) is int and 0 <= index < k):
        return index
    raise DataError(
        f"{path}: info: expected normal to be a class 0..{k - 1} or null, got {index!r}"
    )


def regions(path: Path, info: dict[str, Any], k: int) -> dict[str, tuple[int, ...]]:
    """Return the regions of masks by name.

    Raises:
        DataError: the statement is not a dict of name -> class ids.
    """
    stated = info.get("regions", {})
    fine = isinstance(stated, dict) and all(
        isinstance(ids, list)
        and ids
        and all(type(class_id) is int and 0 < class_id < k for class_id in ids)
        for ids in stated.values()
    )
    if not fine:
        raise DataError(
            f"{path}: info: expected regions as lists of class ids in 1..{k - 1} by name, got "
            f"{stated!r}"
        )
    return {name: tuple(ids) for name, ids in stated.items()}


def bands(path: Path, info: dict[str, Any]) -> dict[str, list[float]]:
    """Return the edges of the bands of each column of subgroups.

    Raises:
        DataError: the statement is not a dict of name -> rising numbers.
    """
    stated = info.get("bands", {})
    fine = isinstance(stated, dict) and all(
        isinstance(edges, list)
        and edges
        and all(type(edge) in (int, float) and abs(edge) <= sys.float_info.max for edge in edges)
        and edges == sorted(set(edges))
        for edges in stated.values()
    )
    if not fine:
        raise DataError(
            f'{path}: info: expected bands as rising numbers by column, {{"age": [40, 65]}}, got '
            f"{stated!r}"
        )
    return {name: [float(edge) for edge in edges] for name, edges in stated.items()}


def spacing(path: Path, info: dict[str, Any], axes: int) -> tuple[float, ...] | None:
    """Return the mm per pixel along each axis, or None.

    Raises:
        DataError: the statement is not one length per axis.
    """
    stated = info.get("spacing")
    if stated is None:
        return None
    fine = isinstance(stated, list) and len(stated) == axes
    if not fine or not all(
        # a comparison refuses NaN and Infinity, and an integer that no float holds
        type(mm) in (int, float) and 0 < mm <= sys.float_info.max
        for mm in stated
    ):
        raise DataError(
            f"{path}: info: expected spacing as {axes} numbers > 0 (mm a pixel), got {stated!r}"
        )
    return tuple(map(float, stated))


def channel_count(path: Path, info: dict[str, Any]) -> int | None:
    """Return the number of channels that `channels` states, as a number or a list of names.

    Raises:
        DataError: the number is below 1.
    """
    stated = info.get("channels")
    if isinstance(stated, list):
        return len(stated) or None
    if stated is None:
        return None
    if type(stated) is not int or stated < 1:
        raise DataError(
            f"{path}: info: expected channels as a list of names or a number >= 1, got {stated!r}"
        )
    return stated


def channel_names(path: Path, info: dict[str, Any], channels: int) -> tuple[str, ...]:
    """Return the names of the channels, if they are stated.

    Raises:
        DataError: there are more or fewer names than channels, two are equal, or a name cannot be
            used in a case.
    """
    names = info.get("channels", [])
    if type(names) is int:
        return ()
    fine = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not fine or len(set(names)) not in (0, channels) or len(names) not in (0, channels):
        raise DataError(
            f"{path}: info: expected channels as {channels} different names, got {names!r}"
        )
    unfit = [name for name in names if not _choosable(name)]
    if unfit:
        raise DataError(
            f"{path}: info: expected channel names that a case can select: not empty, without '+', "
            f"'=' and outer blanks, and not 'all'; got {unfit[0]!r}"
        )
    return tuple(names)


def _choosable(name: str) -> bool:
    return name not in ("", "all") and name == name.strip() and not set(name) & set("+=")


def native_range(path: Path, info: dict[str, Any], *, stored: bool) -> str:
    """Return the native range behind [0,1]: as stated, or the range of the stored type.

    A statement is a text such as "HU -160..240", or a list such as [-160, 240].

    Raises:
        DataError: the statement is neither a text nor two rising numbers.
    """
    stated = info.get("native_range")
    if stated is None:
        return "grey level 0..255" if stored else "float 0..1"
    if isinstance(stated, str) and stated.strip() and len(stated) <= 80:
        return stated.strip()
    pair = isinstance(stated, list) and len(stated) == 2
    if pair and all(type(number) in (int, float) for number in stated) and stated[0] < stated[1]:
        return f"{stated[0]:g}..{stated[1]:g}"
    raise DataError(
        f"{path}: info: expected native_range as a short text such as 'HU -160..240' or two rising "
        f"numbers, got {stated!r}"
    )


def native(path: Path, info: dict[str, Any]) -> NativeRange | None:
    """Return the native range of images that are stored in their own unit; None if not stated.

    Raises:
        DataError: the statement is no native range, or `native_range` or `bit_depth` is stated too.
    """
    stated = info.get("native")
    if stated is None:
        return None
    for key in ("native_range", "bit_depth"):
        if key in info:
            raise DataError(f"{path}: info: expected native or {key}, got both: leave out {key}")
    if not isinstance(stated, dict):
        raise DataError(f"{path}: info: expected {EXAMPLE}, got {stated!r}")
    try:
        return validate(NativeRange, stated, f"{path}: info: native")
    except SpecError as error:
        raise DataError(f"{error}; expected {EXAMPLE}") from None


def bit_depth(path: Path, info: dict[str, Any], *, stored: bool) -> int:
    """Return the bits per pixel: as stated, else 8 for uint8 and 16 for floats.

    Float images come from clinical formats, which store up to 16 bits.

    Raises:
        DataError: such pixels cannot have the stated number of bits.
    """
    most = 8 if stored else MAX_DEPTH
    bits = info.get("bit_depth")
    if bits is None:
        return most
    if type(bits) is not int or not 1 <= bits <= most:
        kind = "uint8" if stored else "float"
        raise DataError(
            f"{path}: info: expected bit_depth in 1..{most} of {kind} images, got {bits!r}"
        )
    return bits


def text(value: object) -> str:
    """Return a statement as text; the entries of a list are joined."""
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
