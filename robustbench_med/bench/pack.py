"""Pack the records of a folder into two files, and unpack them again.

Pictures, adversarial images and universal perturbations stay in the folder of their case. A run
into a packed folder adds new folders beside the two files; packing again includes them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from robustbench_med.bench import packed, store
from robustbench_med.errors import ResultsError
from robustbench_med.files import locked, write_bytes


class Pack(NamedTuple):
    """The result of packing: the number of records, and the two files."""

    records: int
    files: tuple[Path, Path]


def pack(folder: Path) -> Pack:
    """Pack the records of `folder` into `records.jsonl.gz` and `all_samples.parquet`.

    No record is lost if the process is killed: both files are written, each in one step, before the
    first folder is emptied, and until then the folders count. Call the function again to finish.

    Raises:
        ResultsError: there is no folder or no record, a record is damaged (nothing is changed
            then), or the folder cannot be written.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "there is no such folder"
        raise ResultsError(f"expected a folder of records, got {folder}: {what}")
    with locked(folder):  # else the slower of two calls would write what it read before the other
        return _pack(folder)


def _pack(folder: Path) -> Pack:
    # before they are read: a run may replace one from then on
    written = {path.parent: path.stat().st_mtime_ns for path in folder.glob(f"*/{store.RECORD}")}
    stored, damaged = store.read_each(folder)
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise ResultsError(f"not packed: {damaged[0].line}{more}")
    if not stored:
        raise ResultsError(f"expected records in {folder}, got none")
    paths = [Path(record.folder) for record in stored]
    loose = {home: written.get(home, 0) for home in paths if store.is_loose(home)}
    tables = {home.name: store.table_of(home) for home in paths}
    records = {case.record.case_id: case.record for case in stored}
    # write the samples first, since a packed record without its samples would be damaged
    _write(folder, {packed.SAMPLES: packed.encode_samples(tables)})
    _write(folder, {packed.RECORDS: packed.encode_records(records)})
    for home, time in loose.items():
        _empty(home, time)
    return Pack(len(stored), (folder / packed.RECORDS, folder / packed.SAMPLES))


def _written(home: Path) -> int:
    """Return the time at which a folder's record was written; 0 if a killed call removed it."""
    path = home / store.RECORD
    return path.stat().st_mtime_ns if path.exists() else 0


def _empty(home: Path, written: int) -> None:
    """Remove a record from its own folder, unless a run has replaced it in the meantime."""
    if _written(home) not in (written, 0):
        return
    # remove the record first, since without it the packed one counts
    (home / store.RECORD).unlink(missing_ok=True)
    (home / store.SAMPLES).unlink(missing_ok=True)
    # fails if the folder still holds pictures
    with contextlib.suppress(OSError):
        home.rmdir()


def unpack(folder: Path, into: Path, *, only: Container[str] | None = None) -> list[Path]:
    """Copy the records of `folder` into `into`, one folder each, and return these folders.

    Every file in the folder of a case is copied with it. `only` selects cases by their ids.

    Raises:
        ResultsError: a record is damaged.
    """
    copies = []
    for home in store.homes(folder):
        if only is not None and home.name not in only:
            continue
        record, samples = store.read(home).record, store.table_of(home)
        copy = into / home.name
        copy.mkdir(parents=True, exist_ok=True)
        if home.is_dir():
            shutil.copytree(home, copy, dirs_exist_ok=True)
        (copy / store.RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        pq.write_table(samples, copy / store.SAMPLES, compression="zstd")
        copies.append(copy)
    return copies


def discard(home: Path) -> None:
    """Remove the record of a case with its folder, also from the packed records.

    Raises:
        ResultsError: the folder cannot be written.
    """
    packs = packed.open_packed(home.parent)
    if packs is not None and home.name in packs:
        ids = [case_id for case_id in packs.ids if case_id != home.name]
        records = {case_id: packs.record(case_id) for case_id in ids}
        tables = {case_id: packs.table(case_id) for case_id in ids}
        _write(home.parent, {packed.RECORDS: packed.encode_records(records)})
        _write(home.parent, {packed.SAMPLES: packed.encode_samples(tables)})
    shutil.rmtree(home, ignore_errors=True)


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    try:
        for name, content in contents.items():
            write_bytes(folder / name, content)
    except OSError as error:
        raise ResultsError(f"expected to write into {folder}, got: {error.strerror}") from None
