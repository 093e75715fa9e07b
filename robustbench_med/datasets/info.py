"""The `info` of a file: what its owner states of it, as JSON text, each statement checked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from robustbench_med.cards import Task
from robustbench_med.datasets.archive import Npz
from robustbench_med.errors import DataError

MAX_INFO = 2**20  # bytes; the longest seen has 3 kB
MAX_DEPTH = 16  # bits of a pixel: floats of rounded images hold no more
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
    """Return the statements of a file; none where it has no `info`.

    Raises:
        DataError: `info` is no JSON object.
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
        found = json.loads(str(file.array("info")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path}: info: expected JSON text, got: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{file.path}: info: expected a JSON object, got {type(found).__name__}")
    return found


def task(info: dict[str, Any]) -> Task | None:
    """Return what `task` states; None where it states nothing or is prose.

    >>> task({"task": "multi-label, binary-class"}), task({"task": "MRI of the knee"})
    ('multi_label', None)
    """
    stated = str(info.get("task", "")).strip().lower().replace("_", "-").replace(" ", "-")
    for word, found in _TASKS.items():
        if stated == word or stated.startswith(f"{word},"):
            return found
    return None


def classes(path: Path, info: dict[str, Any], *, masks: bool = False) -> tuple[str, ...]:
    """Return the names of the classes, of masks those in `mask_classes` where there are such.

    Raises:
        DataError: they are no list of names, or two are the same.
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
        DataError: it is no class.
    """
    found = info.get("normal")
    if found is None or (type(found) is int and 0 <= found < k):
        return found
    raise DataError(
        f"{path}: info: expected normal to be a class 0..{k - 1} or null, got {found!r}"
    )


def regions(path: Path, info: dict[str, Any], k: int) -> dict[str, tuple[int, ...]]:
    """Return the regions of masks by name.

    Raises:
        DataError: they are no lists of class ids.
    """
    found = info.get("regions", {})
    fine = isinstance(found, dict) and all(
        isinstance(ids, list) and ids and all(type(one) is int and 0 < one < k for one in ids)
        for ids in found.values()
    )
    if not fine:
        raise DataError(
            f"{path}: info: expected regions as lists of class ids in 1..{k - 1} by name, got "
            f"{found!r}"
        )
    return {name: tuple(ids) for name, ids in found.items()}


def spacing(path: Path, info: dict[str, Any], axes: int) -> tuple[float, ...] | None:
    """Return mm a pixel along each axis, or None.

    Raises:
        DataError: they are not one length an axis.
    """
    found = info.get("spacing")
    if found is None:
        return None
    fine = isinstance(found, list) and len(found) == axes
    if not fine or not all(
        # a comparison refuses NaN and Infinity, and an integer that no float holds
        type(mm) in (int, float) and 0 < mm <= sys.float_info.max
        for mm in found
    ):
        raise DataError(
            f"{path}: info: expected spacing as {axes} numbers > 0 (mm a pixel), got {found!r}"
        )
    return tuple(map(float, found))


def channel_count(path: Path, info: dict[str, Any]) -> int | None:
    """Return how many channels `channels` states, as a number or by their names; None if nothing.

    Raises:
        DataError: it is a number below 1.
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
    """Return the names of the channels, or none.

    Raises:
        DataError: they are not as many as the channels, twice the same, or no case could choose
            one.
    """
    names = info.get("channels", [])
    if type(names) is int:
        return ()
    fine = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not fine or len(set(names)) not in (0, channels) or len(names) not in (0, channels):
        raise DataError(
            f"{path}: info: expected channels as {channels} names, each another, got {names!r}"
        )
    unfit = [name for name in names if not _choosable(name)]
    if unfit:
        raise DataError(
            f"{path}: info: expected channel names that a case can choose: not empty, without '+', "
            f"'=' and outer blanks, and not 'all'; got {unfit[0]!r}"
        )
    return tuple(names)


def _choosable(name: str) -> bool:
    return name not in ("", "all") and name == name.strip() and not set(name) & set("+=")


def native_range(path: Path, info: dict[str, Any], *, stored: bool) -> str:
    """Return what [0,1] stands for: as stated, "HU -160..240" or [-160, 240], else as stored.

    Raises:
        DataError: it is neither a text nor two rising numbers.
    """
    found = info.get("native_range")
    if found is None:
        return "grey level 0..255" if stored else "float 0..1"
    if isinstance(found, str) and found.strip() and len(found) <= 80:
        return found.strip()
    pair = isinstance(found, list) and len(found) == 2
    if pair and all(type(one) in (int, float) for one in found) and found[0] < found[1]:
        return f"{found[0]:g}..{found[1]:g}"
    raise DataError(
        f"{path}: info: expected native_range as a short text such as 'HU -160..240' or two rising "
        f"numbers, got {found!r}"
    )


def bit_depth(path: Path, info: dict[str, Any], *, stored: bool) -> int:
    """Return the bits of a pixel: as stated, else 8 of uint8 and 16 of floats.

    Floats come from clinical formats, which store up to 16.

    Raises:
        DataError: it is no number of bits that such pixels have.
    """
    most = 8 if stored else MAX_DEPTH
    found = info.get("bit_depth")
    if found is None:
        return most
    if type(found) is not int or not 1 <= found <= most:
        kind = "uint8" if stored else "float"
        raise DataError(
            f"{path}: info: expected bit_depth in 1..{most} of {kind} images, got {found!r}"
        )
    return found


def text(value: object) -> str:
    """Return a statement as text; a list by its entries."""
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
