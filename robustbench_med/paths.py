"""Names of files and folders: the cache folder, and which names are refused."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from robustbench_med.errors import SpecError

CACHE = "ROBUSTBENCH_MED_CACHE"
PACKED_RECORDS = "records.jsonl.gz"  # of the records of a folder, see bench/packed.py
MAX_NAME = 255  # bytes of one name, on ext4, APFS (of UTF-8), NTFS (of characters) and others
MAX_PATH = 4096  # bytes of a path: PATH_MAX of Linux


def cache_root() -> Path:
    """Return the cache folder: the one named by ROBUSTBENCH_MED_CACHE, or the user's."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else platformdirs.user_cache_path("robustbench_med")


def check_name(path: str | Path, *, suffix: int = 0) -> Path:
    """Return the path if a file system accepts all of its names.

    Args:
        path: the path of a file or folder, which need not exist.
        suffix: the number of bytes that will be added to its last name.

    Raises:
        SpecError: a name has more than 255 bytes, the path is too long, or it has a zero byte.
    """
    text = os.fspath(path)
    raw = os.fsencode(text)
    shown = f"{text[:40]}..." if len(text) > 60 else text
    if b"\0" in raw:
        raise SpecError(f"expected a name of a file or folder, got one with a zero byte: {shown!r}")
    longest = max((len(os.fsencode(part)) for part in Path(text).parts), default=0)
    last = len(os.fsencode(Path(text).name)) + suffix
    if max(longest, last) > MAX_NAME:
        raise SpecError(
            f"expected names of files and folders of at most {MAX_NAME} bytes, got one of "
            f"{max(longest, last)}: {shown!r}; choose a shorter one"
        )
    if len(raw) >= MAX_PATH:
        raise SpecError(
            f"expected a path of at most {MAX_PATH - 1} bytes, got {len(raw)}: {shown!r}; choose a "
            "shorter one"
        )
    return Path(text)
