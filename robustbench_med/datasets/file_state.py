"""File state: what tells that a file changed, and checksums that are remembered for a state.

A file of some GiB takes a minute to hash. Its checksum is computed once and kept in the cache
folder, with the size, the times, the inode and the device of the file. As long as all of them are
the same, it is taken from there. `CHECK_DATA` in the environment has files read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from robustbench_med.files import write_text
from robustbench_med.paths import cache_root

CHECK_DATA = "ROBUSTBENCH_MED_CHECK_DATA"
# ns; a file may change twice within one tick of its clock, which some file systems round to 2 s
_YOUNG = 2 * 10**9


class State(NamedTuple):
    """The state of a file.

    Attributes:
        text: device, inode, size and times.
        is_certain: whether any later change will give another text.
    """

    text: str
    is_certain: bool


def look_up(path: Path) -> State | None:
    """Return the state of a file; None if it cannot be looked up.

    The time of the last change of the inode is part of it, because a program that copies or unpacks
    may set the time of the last change of the content to an old one. A file that changed within the
    last 2 seconds may change again at the same time, as its clock has it.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    text = f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return State(text, time.time_ns() - changed >= _YOUNG)


def file_state(path: Path) -> str | None:
    """Return a text that is another one after any change of a file; None if none is certain."""
    state = look_up(path)
    return state.text if state is not None and state.is_certain else None


def remembered(path: Path, what: str, compute: Callable[[], str]) -> str:
    """Return what was computed of a file in its present state before, or compute and remember it.

    Args:
        path: the file.
        what: names the value, with all that it depends on beside the file.
        compute: reads the file and returns the value.
    """
    before = file_state(path)
    place = _place(path, what)
    if before is not None and not os.environ.get(CHECK_DATA):
        value = _read(place, before)
        if value is not None:
            return value
    value = compute()
    if before is not None and file_state(path) == before:
        with suppress(OSError):
            write_text(place, json.dumps({"file": str(path), "state": before, "value": value}))
    return value


@contextmanager
def checked_in_full(needed: bool = True) -> Iterator[None]:
    """Read data files again for the length of the block, in processes that it starts too."""
    if not needed:
        yield
        return
    before = os.environ.get(CHECK_DATA)
    os.environ[CHECK_DATA] = "1"
    try:
        yield
    finally:
        os.environ.pop(CHECK_DATA)
        if before is not None:
            os.environ[CHECK_DATA] = before


def _place(path: Path, what: str) -> Path:
    name = hashlib.sha256(f"{path.absolute()}\0{what}".encode("utf-8", "surrogateescape"))
    return cache_root() / "checksums" / f"{name.hexdigest()[:32]}.json"


def _read(place: Path, state: str) -> str | None:
    """Return the value that was stored for a state; None if there is none, or it is damaged."""
    try:
        stored = json.loads(place.read_bytes())
        value = stored["value"] if stored["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, str) else None
