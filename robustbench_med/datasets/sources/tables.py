"""Read CSV tables that name images with their labels, splits, patients and subgroups."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from robustbench_med.datasets.sources.refs import ImageRef, inside
from robustbench_med.errors import DataError

MAX_TABLE = 2**28  # bytes
SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t"


class CsvTable(NamedTuple):
    """A CSV table as text.

    Attributes:
        path: the file.
        columns: names of its columns.
        rows: the cells of each row, as many as there are columns.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            listed = ", ".join(self.columns)[:400]
            raise DataError(f"{self.path}: expected a column {name!r}, got {listed}")
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def read_csv(path: Path) -> CsvTable:
    """Return a table; cells are stripped of blanks, and empty lines are left out.

    Raises:
        DataError: it is no text, too large or empty, a column has no or another's name, or a row is
            too long or too short.
    """
    try:
        if path.stat().st_size > MAX_TABLE:
            raise DataError(f"{path}: expected a table of at most {MAX_TABLE} bytes")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError:
        raise DataError(f"{path}: expected a CSV table, got no readable file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected a CSV table in UTF-8, got other bytes") from None
    if "\0" in text:
        raise DataError(f"{path}: expected a CSV table, got zero bytes in it")
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        lines = [
            [cell.strip() for cell in line]
            for line in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
            if any(cell.strip() for cell in line)
        ]
    except csv.Error as error:
        raise DataError(f"{path}: expected a CSV table, got: {error}") from None
    if len(lines) < 2:
        raise DataError(f"{path}: expected a row of column names and rows below, got {len(lines)}")
    columns = tuple(lines[0])
    if len(set(columns)) < len(columns) or "" in columns[1:]:
        raise DataError(f"{path}: expected columns of different names, got {', '.join(columns)}")
    for number, row in enumerate(lines[1:], 2):
        if len(row) != len(columns):
            raise DataError(f"{path}: row {number}: expected {len(columns)} cells, got {len(row)}")
    return CsvTable(path, columns, lines[1:])


class FileFinder:
    """Finds the image that a table's cell names: by its path, its name, or its name alone."""

    def __init__(self, root: Path, refs: Iterable[ImageRef]) -> None:
        self._root = root
        self._names: dict[str, int | None] = {}
        for place, ref in enumerate(refs):
            known = {key for file in ref.files for key in _keys(file)}
            known |= {key for key in _folders(ref)}
            for key in known:
                self._names[key] = place if key not in self._names else None

    def find(self, name: str, where: str) -> int:
        """Return the place of the image among the references.

        Args:
            name: the cell.
            where: file and row, for the error message.

        Raises:
            DataError: no image has that name, several have, or it leads out of the folder.
        """
        place = self.lookup(name)
        if place is not None:
            return place
        path = inside(self._root, name, where)
        if self._key(name) in self._names:
            raise DataError(
                f"{where}: expected the name of one image, got {name!r}, which several have: "
                "write its path below the folder"
            )
        got = "which is no image that is read" if path.is_file() else "which is not there"
        raise DataError(f"{where}: expected an image below {self._root}, got {name!r}, {got}")

    def lookup(self, name: str) -> int | None:
        """Return the place of the image that a cell names; None if there is none, or several."""
        return self._names.get(self._key(name))

    @staticmethod
    def _key(name: str) -> str:
        return name.removeprefix("./").rstrip("/")


def _keys(file: str) -> set[str]:
    """Return the names by which a table may mean a file: with or without folders and suffix."""
    path = PurePosixPath(file)
    stem = path.name.removesuffix(".gz")
    short = PurePosixPath(stem).stem
    return {file, path.name, short, str(path.parent / short)}


def _folders(ref: ImageRef) -> set[str]:
    """Return the folder of a volume's slices, by which a table may name it."""
    if len(ref.files) < 2:
        return set()
    parents = {PurePosixPath(file).parent for file in ref.files}
    return {str(parents.pop())} if len(parents) == 1 else set()
