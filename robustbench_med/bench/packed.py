"""The file format of packed records: the records of a folder in two files.

`records.jsonl.gz` has one record per line, sorted by case id. `all_samples.parquet` holds the
concatenated samples tables of all records, with a column `case`. If the type of a column differs
between cases (a class id or a list of findings), it is stored once for each type, and the schema of
each table is stored in the metadata of the file, so that every table is read back exactly as it was
written. The same records give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robustbench_med.bench.record import Record, check_schema
from robustbench_med.errors import ResultsError
from robustbench_med.paths import PACKED_RECORDS

RECORDS, SAMPLES = PACKED_RECORDS, "all_samples.parquet"
_CASE = "case"  # the column of case ids
_KEY = b"robustbench_med"  # key of the metadata in the samples file
_ID = re.compile(r'"case_id":\s*"([0-9a-f]+)"')
_LEVEL = 19  # zstd compression level


class Packed:
    """The packed records of one folder; the samples are read at the first access."""

    def __init__(self, folder: Path) -> None:
        """Read the records file of `folder`; raise ResultsError if it is damaged."""
        self.folder = folder
        self._lines = _read_lines(folder / RECORDS)

    def __contains__(self, case_id: str) -> bool:
        """Whether a case is packed."""
        return case_id in self._lines

    @property
    def ids(self) -> list[str]:
        """The ids of the packed cases, sorted."""
        return sorted(self._lines)

    def record(self, case_id: str) -> Record:
        """Return the record of a case; raise ValueError if its line is not a record."""
        check_schema(self._lines[case_id])
        return Record.model_validate_json(self._lines[case_id])

    def table(self, case_id: str) -> pa.Table:
        """Return the samples table of a case exactly as it was packed.

        Raises:
            FileNotFoundError: there is no samples file.
            ValueError: the samples file is damaged, or has no samples of the case.
        """
        combined, rows, schemas = self._samples
        if case_id not in schemas:
            raise ValueError(f"no samples of case {case_id} in {SAMPLES}")
        start, count = rows.get(case_id, (0, 0))
        schema = schemas[case_id]
        part, columns = combined.slice(start, count), []
        for field in schema:
            if pa.types.is_null(field.type):
                columns.append(pa.nulls(count))
                continue
            name = next((n for n in _names(field) if n in combined.column_names), None)
            if name is None or combined.schema.field(name).type != field.type:
                raise ValueError(f"no column {field.name} of {field.type} in {SAMPLES}")
            columns.append(part[name])
        return pa.Table.from_arrays(columns, schema=schema)

    @cached_property
    def _samples(self) -> tuple[pa.Table, dict[str, tuple[int, int]], dict[str, pa.Schema]]:
        """The combined table, the first row and number of rows of each case, and its schema."""
        with pq.ParquetFile(self.folder / SAMPLES) as file:
            metadata = (file.schema_arrow.metadata or {}).get(_KEY)
            combined = file.read(use_threads=False)
        if metadata is None or _CASE not in combined.column_names:
            raise ValueError(f"no packed samples in {SAMPLES}")
        layout = json.loads(metadata)
        schemas = [pa.ipc.read_schema(pa.py_buffer(base64.b64decode(s))) for s in layout["schemas"]]
        ids = combined[_CASE].to_numpy()
        starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, int)
        counts = np.diff(np.r_[starts, len(ids)])
        rows = {ids[i]: (int(i), int(n)) for i, n in zip(starts, counts, strict=True)}
        if len(rows) != len(starts):
            raise ValueError(f"rows of one case in several places of {SAMPLES}")
        return combined, rows, {case: schemas[i] for case, i in layout["cases"].items()}


def open_packed(folder: Path) -> Packed | None:
    """Return the packed records of a folder; None if the folder has none.

    They stay in memory until one of the two files changes.

    Raises:
        ResultsError: the file of records is damaged.
    """
    stamps = tuple(_stamp(folder / name) for name in (RECORDS, SAMPLES))
    return None if stamps[0] is None else _open(folder.resolve(), stamps)


@lru_cache(maxsize=4)
def _open(folder: Path, stamps: tuple[object, ...]) -> Packed:
    return Packed(folder)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_lines(path: Path) -> dict[str, str]:
    """Return the line of each record by case id."""
    wrong = f"expected packed records in {path}, got"
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ResultsError(f"{wrong} a damaged file: {str(error).splitlines()[0]}") from None
    lines: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _ID.search(line)
        if match is None:
            raise ResultsError(f"{wrong} a line without a case id: line {number}")
        if match[1] in lines:
            raise ResultsError(f"{wrong} two records of case {match[1]}")
        lines[match[1]] = line
    return lines


def encode_records(records: Mapping[str, Record]) -> bytes:
    """Return records as the content of `records.jsonl.gz`."""
    lines = (records[case_id].model_dump_json() + "\n" for case_id in sorted(records))
    return gzip.compress("".join(lines).encode("utf-8"), 9, mtime=0)


def encode_samples(tables: Mapping[str, pa.Table]) -> bytes:
    """Return samples tables by case id as the content of `all_samples.parquet`."""
    ids = sorted(tables)
    rows = [tables[case_id].num_rows for case_id in ids]
    case = pa.DictionaryArray.from_arrays(
        pa.array(np.repeat(np.arange(len(ids)), rows), pa.int32()), pa.array(ids, pa.string())
    ).cast(pa.string())
    combined = pa.table({_CASE: case, **_columns([tables[case_id] for case_id in ids])})
    schemas = [base64.b64encode(tables[i].schema.serialize().to_pybytes()).decode() for i in ids]
    distinct = sorted(set(schemas))
    layout = {
        "schemas": distinct,
        "cases": {i: distinct.index(schema) for i, schema in zip(ids, schemas, strict=True)},
    }
    combined = combined.replace_schema_metadata({_KEY: json.dumps(layout)})
    buffer = io.BytesIO()
    pq.write_table(
        combined,
        buffer,
        compression="zstd",
        compression_level=_LEVEL,
        row_group_size=max(combined.num_rows, 1),
        # numbers that seldom repeat take less space without a dictionary
        use_dictionary=[_leaf(f) for f in combined.schema if not _is_real(f.type)],
    )
    return buffer.getvalue()


def _columns(tables: list[pa.Table]) -> dict[str, pa.ChunkedArray]:
    """Return the concatenated columns of all tables, null for tables without such a column."""
    fields = {(f.name, str(f.type)): f for t in tables for f in t.schema}
    stored = [fields[key] for key in sorted(fields) if not pa.types.is_null(fields[key].type)]
    names = [field.name for field in stored]
    columns = {}
    for field in stored:
        chunks: list[pa.Array] = []
        for table in tables:
            index = table.schema.get_field_index(field.name)
            if index >= 0 and table.schema.field(index).type == field.type:
                chunks += table.column(index).chunks
            else:
                chunks.append(pa.nulls(table.num_rows, field.type))
        typed, plain = _names(field)
        unique = names.count(field.name) == 1 and field.name != _CASE
        columns[plain if unique else typed] = pa.chunked_array(chunks, type=field.type)
    return columns


def _names(field: pa.Field) -> tuple[str, str]:
    """Return the two possible names of a stored column: with its type, or without if unique."""
    return f"{field.name}:{field.type}", field.name


def _is_real(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind.value_type if pa.types.is_list(kind) else kind))


def _leaf(field: pa.Field) -> str:
    """Return the path of a column in the file; for a list, the path of its elements."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
