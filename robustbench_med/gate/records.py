"""Records: the folder that a test names, and the one record in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from robustbench_med.bench.spread import PATTERNS
from robustbench_med.errors import ResultsError


def recorded(place: Path) -> Stored | None:
    """Return the record at a place, None where there is none yet.

    Args:
        place: a record's folder, its record.json, or a folder that holds one record's folder.

    Raises:
        ResultsError: several records, or one that cannot be read.
    """
    if place.name == "record.json":
        place = place.parent
    if (place / "record.json").exists():
        return store.read(place.resolve())
    found = [
        one.parent for one in place.glob("*/record.json") if not one.parent.name.startswith(".")
    ]
    if len(found) > 1:
        raise ResultsError(f"expected one record in {place}, got {len(found)}: name one of them")
    return store.read(found[0].resolve()) if found else None


def rewrite(place: Path, stored: Stored) -> Path:
    """Write a record in place of the one there, and return its folder; atomically.

    A record's folder is called by the id of its case, which changes with the weights: where the
    place is such a folder, the new one lies beside where it was.
    """
    if place.name == "record.json":
        place = place.parent
    before = recorded(place)
    home = place.parent if (place / "record.json").exists() else place
    store.check_writable(home)
    record = stored.record.model_copy(update={"examples": ()})  # they may show real patients
    patterns = Path(stored.folder) / PATTERNS
    files = {PATTERNS: patterns.read_bytes()} if patterns.exists() else {}
    written = store.write(home, record, stored.samples, files, replace=True)
    if before is not None and Path(before.folder) != written.resolve():
        shutil.rmtree(before.folder)
    return written
