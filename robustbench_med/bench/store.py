"""The store of records, the only state of the bench.

A run writes one folder for each case, once and atomically. `bench/pack.py` packs the records of a
folder into two files. The functions here read both forms; if a case has both, its own folder
counts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from robustbench_med.bench import packed
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Record, Stored, check_schema
from robustbench_med.bench.verify.consistency import score_errors, table_errors
from robustbench_med.errors import ResultsError
from robustbench_med.paths import check_name

RECORD, SAMPLES = "record.json", "samples.parquet"  # the files of a record in its own folder
_STALE = 3600.0  # after so many seconds the writer of a half-written folder counts as killed


def check_writable(folder: Path, *, option: str = "--results") -> None:
    """Raise ResultsError unless `folder` can be written; remove temporary files of killed runs.

    Args:
        folder: the folder, which is created.
        option: the option of the command line that names it, for the message.
    """
    check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp"):
            pass
    except OSError as error:
        raise ResultsError(
            f"expected a writable results folder, got {folder} ({error.strerror}): choose another "
            f"with {option} DIR"
        ) from None
    for leftover in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another run may remove it at the same time
            if leftover.is_dir() and time.time() - leftover.stat().st_mtime > _STALE:
                shutil.rmtree(leftover, ignore_errors=True)


def finished(folder: Path, case_id: str) -> bool:
    """Whether the case has a readable record in `folder`; a damaged record does not count."""
    try:
        read(folder / case_id)
    except ResultsError:
        return False
    return True


def write(
    folder: Path,
    record: Record,
    samples: pd.DataFrame,
    pictures: Mapping[str, bytes],
    *,
    replace: bool = False,
) -> Path:
    """Write a record, its samples table and its pictures; return their folder.

    They appear together or not at all: they are written to a temporary folder, flushed to the disk
    and renamed. If another run has finished the same case first, its record stays and this one is
    dropped, unless `replace` is set.
    """
    home = folder / record.case_id
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{record.case_id}.", suffix=".tmp", dir=folder))
        text = record.model_dump_json(indent=1) + "\n"
        (temporary / RECORD).write_text(text, encoding="utf-8")
        samples.to_parquet(temporary / SAMPLES, index=False, compression="zstd")
        for name, content in pictures.items():
            (temporary / name).write_bytes(content)
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        temporary.chmod(0o755)
        if home.exists() and (replace or not finished(folder, record.case_id)):
            home.rename(temporary.with_name(f".{record.case_id}.{os.getpid()}.old.tmp"))
        temporary.rename(home)
        _flush(folder)
    except OSError as error:
        if not finished(folder, record.case_id):
            raise ResultsError(f"expected to write {home}, got: {error.strerror}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(folder / f".{record.case_id}.{os.getpid()}.old.tmp", ignore_errors=True)
    return home


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def has_record(home: Path) -> bool:
    """Whether the folder `home` has a record, or its case is packed beside it."""
    return is_loose(home) or is_packed(home)


def is_loose(home: Path) -> bool:
    """Whether `home` is a record's own folder; one of its two files may be missing."""
    return (home / RECORD).is_file() or (home / SAMPLES).is_file()


def is_packed(home: Path) -> bool:
    """Whether the case of the folder `home` is packed beside it."""
    path = home.resolve()
    pack = packed.open_packed(path.parent)
    return pack is not None and path.name in pack


def holds_records(folder: Path) -> bool:
    """Whether `folder` holds records, packed or each in its folder, readable or not."""
    return (folder / packed.RECORDS).is_file() or bool(_loose_homes(folder))


def homes(folder: Path) -> list[Path]:
    """Return the folder of every record in `folder`, sorted; a packed record's may not exist.

    Raises:
        ResultsError: the file of packed records is damaged.
    """
    pack = packed.open_packed(folder)
    ids = [] if pack is None else pack.ids
    return sorted({*_loose_homes(folder), *(folder / case_id for case_id in ids)})


def _loose_homes(folder: Path) -> set[Path]:
    files = (*folder.glob(f"*/{RECORD}"), *folder.glob(f"*/{SAMPLES}"))
    return {path.parent for path in files if not path.parent.name.startswith(".")}


def homes_below(folder: Path) -> list[Path]:
    """Return the folder of every record in `folder` or anywhere below it, sorted.

    Raises:
        ResultsError: a file of packed records is damaged.
    """
    loose = {path.parent for name in (RECORD, SAMPLES) for path in folder.rglob(name)}
    packs = [path.parent for path in folder.rglob(packed.RECORDS)]
    every = {*loose, *(home for pack in packs for home in homes(pack))}
    return sorted(
        home for home in every if not any(p[0] == "." for p in home.relative_to(folder).parts)
    )


def files_of(home: Path) -> tuple[Path, Path]:
    """Return the files that a record and its samples are read from."""
    if not (home / RECORD).is_file() and is_packed(home):
        return home.parent / packed.RECORDS, home.parent / packed.SAMPLES
    return home / RECORD, home / SAMPLES


def read(home: Path) -> Stored:
    """Return the record in the folder `home`, or the packed one of that case beside it.

    Raises:
        ResultsError: there is no record, it cannot be read, or it has no samples.
    """
    try:
        record = _record(home)
        samples = table_of(home).to_pandas(use_threads=False)
    except FileNotFoundError as error:
        missing = Path(error.filename or files_of(home)[1]).name
        raise ResultsError(f"expected a record in {home}, got no {missing}") from None
    except (ValidationError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise ResultsError(f"expected a readable record in {home}, got: {first}") from None
    if record.case_id != record.case.id:
        raise ResultsError(
            f"expected case {record.case.id} in {home}, got {record.case_id}: the record was edited"
        )
    if record.case_id != home.resolve().name:
        raise ResultsError(
            f"expected case {record.case_id} in a folder of that name, got {home}: the folder was "
            f"renamed; call it {record.case_id} again"
        )
    if errors := table_errors(record, samples):
        raise ResultsError(f"expected a readable record in {home}, got {errors[0]}")
    return Stored(record, samples, str(home))


def table_of(home: Path) -> pa.Table:
    """Return the samples table of a record as it is stored.

    Raises:
        FileNotFoundError: there is no samples table.
        ValueError: the table is damaged.
    """
    pack = _pack_of(home)
    if pack is not None:
        return pack.table(home.resolve().name)
    with pq.ParquetFile(home / SAMPLES) as file:  # twice as fast as pandas' reader
        return file.read(use_threads=False)


def _record(home: Path) -> Record:
    pack = _pack_of(home)
    if pack is not None:
        return pack.record(home.resolve().name)
    text = (home / RECORD).read_text(encoding="utf-8")
    check_schema(text)
    return Record.model_validate_json(text)


def _pack_of(home: Path) -> packed.Packed | None:
    """Return the packed records that contain `home`; None if it is read from its own folder."""
    if (home / RECORD).is_file():
        return None
    path = home.resolve()
    pack = packed.open_packed(path.parent)
    return pack if pack is not None and path.name in pack else None


def read_all(folder: Path, *, only: Container[str] | None = None) -> tuple[list[Stored], list[str]]:
    """Return the records in `folder`, and a line on each damaged one; `only` selects cases."""
    records, damaged = read_each(folder, only=only)
    return records, [record.line for record in damaged]


class Damaged(NamedTuple):
    """A folder whose record is damaged.

    Attributes:
        home: the folder.
        line: what is wrong.
        record: the content of record.json, if that can still be read.
    """

    home: Path
    line: str
    record: Record | None

    @property
    def failure(self) -> Failure:
        """The damaged record as a failure, with its case if record.json can be read."""
        label, record = self.home.name, self.record
        if record is None:
            return Failure(label=label, reason=self.line)
        return Failure(
            label=label,
            reason=self.line,
            case=record.case,
            attack=record.attack_card,
            defense=record.defense_card,
        )


def read_each(
    folder: Path, *, only: Container[str] | None = None
) -> tuple[list[Stored], list[Damaged]]:
    """Return the records in `folder`, and the damaged ones; `only` selects cases."""
    records, damaged = [], []
    try:
        known = homes(folder)
    except ResultsError as error:
        damaged.append(Damaged(folder / packed.RECORDS, str(error), None))
        known = sorted(_loose_homes(folder))
    for home in known:
        if only is not None and home.name not in only:
            continue
        try:
            stored = read(home)
            if errors := score_errors(stored):
                raise ResultsError(
                    f"expected a record that agrees with its own samples in {home}, got "
                    f"{errors[0]}; run that case again with --force"
                )
            records.append(stored)
        except ResultsError as error:
            damaged.append(Damaged(home, str(error), _asked(home)))
    return records, damaged


def _asked(home: Path) -> Record | None:
    """Return the record of a damaged folder if its record.json can be read."""
    try:
        record = _record(home)
    except (ValueError, OSError, ResultsError):
        return None
    return record if record.case_id == record.case.id else None
