"""Read and write the one record in the folder that a test names."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.pack import discard
from robustbench_med.bench.record import Record, Stored
from robustbench_med.bench.universal_run import PATTERNS
from robustbench_med.bench.verify.replay import own_functions
from robustbench_med.errors import ResultsError
from robustbench_med.models.source import executes_code

AGAIN = "again"  # command of a record that was run again and has no folder yet


def recorded(path: Path) -> Stored | None:
    """Return the record at a path; None if there is none yet.

    Args:
        path: the folder of a record, its record.json, or a folder with the folder of one record.

    Raises:
        ResultsError: there are several records, or the record cannot be read.
    """
    if path.name == "record.json":
        path = path.parent
    if store.has_record(path):
        return store.read(path.resolve())
    homes = store.homes(path)
    if len(homes) > 1:
        raise ResultsError(f"expected one record in {path}, got {len(homes)}: name one of them")
    return store.read(homes[0].resolve()) if homes else None


def home_of(path: Path) -> Path:
    """Return the folder that contains, or will contain, the record of a path.

    The folder of a record has the id of its case as its name, which changes with the weights. So if
    the path is such a folder, the new one is written beside it.
    """
    if path.name == "record.json":
        path = path.parent
    return path.parent if store.has_record(path) else path


def rewrite(home: Path, stored: Stored, before: Path | None = None) -> Path:
    """Write a record into a folder in one step, replace the earlier one, and return its folder.

    Args:
        home: the result of `home_of`.
        stored: the record; its example pictures are left out, because they may show real patients.
        before: folder of the record that is replaced.
    """
    store.check_writable(home)
    record = stored.record.model_copy(update={"examples": (), "images": None})
    if record.provenance.command.startswith(AGAIN):
        command = _command(record, home)
        provenance = record.provenance.model_copy(update={"command": command})
        record = record.model_copy(update={"provenance": provenance})
    patterns = Path(stored.folder) / PATTERNS
    files = {PATTERNS: patterns.read_bytes()} if patterns.exists() else {}
    written = store.write(home, record, stored.samples, files, replace=True)
    if before is not None and before.resolve() != written.resolve():
        discard(before)
    return written


def _command(record: Record, home: Path) -> str:
    """Return the command that runs the case of a record again; it names the record's folder."""
    folder = home / record.case_id
    with suppress(ValueError):
        folder = folder.resolve().relative_to(Path.cwd())
    words = ["python", "-m", "robustbench_med", "verify", folder.as_posix()]
    case = record.case
    named = (case.victim, case.surrogate)
    if own_functions(case) or any(name is not None and executes_code(name) for name in named):
        words.append("--run-code")
    if case.dataset in registry.names("datasets") and not record.dataset_card.synthetic:
        words += ["--data", "DIR"]
    return shlex.join(words)
