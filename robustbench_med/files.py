"""Write files in one step, and keep other processes from a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in one step, so that a reader never sees half a file.

    If the text cannot be written whole, the old file stays and no temporary file remains.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in one step, as `write_text` does.

    Raises:
        OSError: the folder cannot be written, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Keep other processes from the records of a folder that take this lock too.

    Those are workers of pytest-xdist, another pytest, and calls of `pack`.
    """
    from filelock import FileLock

    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    folder = Path(tempfile.gettempdir()) / f"robustbench_med-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    name = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
    with FileLock(folder / f"{name}.lock"):
        yield
