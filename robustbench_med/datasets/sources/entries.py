"""Entries: the images of a source with label, mask, split, patient and subgroups, not yet read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.codes import UNLABELLED
from robustbench_med.datasets.dataset import SplitName
from robustbench_med.datasets.labels import from_one_hot, one_hot_rows
from robustbench_med.datasets.sources.refs import ImageRef, inside
from robustbench_med.datasets.sources.spec import CardFile, Columns, SourceSpec
from robustbench_med.datasets.sources.splits import draw_splits
from robustbench_med.datasets.sources.tables import CsvTable, FileFinder, read_csv
from robustbench_med.datasets.subgroups import named_groups
from robustbench_med.errors import DataError

UNKNOWN = ("", "nan", "na", "n/a", "none", "null", "-1", "-1.0", "?")  # cells without a label
NO_FINDING = ("no finding", "no findings", "normal", "none", "nan")  # where several may be listed
_PRESENT = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0}


@dataclass(frozen=True)
class Entry:
    """One image of a source.

    Attributes:
        ref: the image.
        label: its stored label; "" = not known.
        findings: its findings, each 0, 1 or -1.
        mask: its mask.
        split: the split that the data state, in their own word.
        patient: the patient as stored; "" = not known.
        groups: the subgroup in each column of `groups`; numbers are bands.
    """

    ref: ImageRef
    label: str = ""
    findings: tuple[int, ...] = ()
    mask: ImageRef | None = None
    split: str = ""
    patient: str = ""
    groups: tuple[str, ...] = ()


def of_folders(refs: Sequence[ImageRef], source: SourceSpec, root: Path) -> list[Entry]:
    """Return entries whose class is the name of a folder, below the folder of the split if any.

    Raises:
        DataError: an image lies in no such folder.
    """
    entries = []
    for ref in refs:
        split, folders = _of_split(ref.files[0], source)
        label = next((name for name in folders if name in source.values), None)
        if label is None:
            raise DataError(
                f"{root / ref.files[0]}: expected a folder of a class ({', '.join(source.values)}),"
                " got none: add the folder to `values` and `classes`, or the file to `skip`"
            )
        entries.append(Entry(ref, label, split=split))
    return entries


def of_table(
    refs: Sequence[ImageRef],
    masks: Sequence[ImageRef],
    source: SourceSpec,
    columns: Columns,
    root: Path,
) -> list[Entry]:
    """Return an entry for each row of the CSV table.

    Raises:
        DataError: a column or an image is missing, an image is named twice, or a cell is no label.
    """
    table = read_csv(inside(root, source.csv, "[source] csv"))
    finder, mask_finder = FileFinder(root, refs), FileFinder(root, masks)
    cells = {
        key: table.column(name)
        for key, name in columns.model_dump(exclude={"bands"}).items()
        if name and isinstance(name, str) and key != "separator"
    }
    groups = [
        named_groups(name, table.column(name), columns.bands.get(name), str(table.path)).tolist()
        for name in columns.groups
    ]
    findings = _findings(table, columns, source.values)
    entries, rows_of = [], dict[int, int]()
    for row, name in enumerate(cells["file"]):
        where = f"{table.path}: row {row + 2}"
        place = finder.find(name, where)
        if rows_of.setdefault(place, row) != row:
            raise DataError(
                f"{where}: expected every image once, got {name!r} in row {rows_of[place] + 2} too"
            )
        mask = cells.get("mask", [""] * (row + 1))[row]
        entries.append(
            Entry(
                refs[place],
                label=_cell(cells, "label", row) if not columns.separator else "",
                findings=findings[row] if findings else (),
                mask=masks[mask_finder.find(mask, where)] if mask else None,
                split=_cell(cells, "split", row),
                patient=_cell(cells, "patient", row) or refs[place].patient,
                groups=tuple(column[row] for column in groups),
            )
        )
    return entries


def of_masks(
    refs: Sequence[ImageRef], masks: Sequence[ImageRef], source: SourceSpec, root: Path
) -> list[Entry]:
    """Return an entry for each pair of an image and a mask of the same name.

    Raises:
        DataError: an image has no mask, a mask no image, or two have one name.
    """
    by_name: dict[str, ImageRef] = {}
    for mask in masks:
        name = pair_name(mask.files[0], source)
        if name in by_name:
            raise DataError(
                f"{root}: expected one mask for each image, got {by_name[name].files[0]} and "
                f"{mask.files[0]}"
            )
        by_name[name] = mask
    entries = []
    for ref in refs:
        name = pair_name(ref.files[0], source)
        if name not in by_name:
            raise DataError(
                f"{root / ref.files[0]}: expected a mask of the same name, got none; "
                "write one, or name the image in `skip` of [source]"
            )
        split, _ = _of_split(ref.files[0], source)
        entries.append(Entry(ref, mask=by_name.pop(name), split=split, patient=ref.patient))
    if by_name:
        lone = next(iter(by_name.values())).files[0]
        raise DataError(f"{root / lone}: expected an image of this mask's name, got none")
    return entries


def pair_name(file: str, source: SourceSpec) -> str:
    """Return what the path of an image and of its mask have in common.

    >>> spec = SourceSpec(path=".", format="pictures", labels="masks", images="images",
    ...     masks="masks", mask_suffix="_seg", split_names={"test": "test"})
    >>> pair_name("test/masks/a_seg.png", spec), pair_name("test/images/a.png", spec)
    ('test/a', 'test/a')
    """
    path = PurePosixPath(file)
    stem = PurePosixPath(path.name.removesuffix(".gz")).stem
    folders = [name for name in path.parts[:-1] if name not in (source.images, source.masks)]
    return "/".join([*folders, stem.removesuffix(source.mask_suffix)])


def is_mask(file: str, source: SourceSpec) -> bool:
    """Whether a file is a mask, by its folder or by the end of its name."""
    path = PurePosixPath(file)
    if source.masks:
        return source.masks in path.parts[:-1]
    stem = PurePosixPath(path.name.removesuffix(".gz")).stem
    return bool(source.mask_suffix) and stem.endswith(source.mask_suffix)


def with_patients(entries: Sequence[Entry], source: SourceSpec) -> list[Entry]:
    """Return entries whose patient is what a file's name has before a text, where that is stated.

    Raises:
        DataError: a name does not have the text.
    """
    if not source.patient_before:
        return list(entries)
    named = []
    for entry in entries:
        name = PurePosixPath(entry.ref.files[0]).name
        patient, mark, _ = name.partition(source.patient_before)
        if not mark or not patient:
            raise DataError(
                f"{entry.ref.files[0]}: expected a patient before {source.patient_before!r} in the "
                "name, got none"
            )
        named.append(replace(entry, patient=patient))
    return named


def pseudonyms(entries: Sequence[Entry]) -> list[str]:
    """Return a pseudonym for each entry's patient, counted in the order of the entries.

    Nothing of a stored name is in it. An image of unknown patient gets "".
    """
    numbers: dict[str, int] = {}
    for entry in entries:
        if entry.patient:
            numbers.setdefault(entry.patient, len(numbers) + 1)
    return [f"patient-{numbers[e.patient]:05d}" if e.patient else "" for e in entries]


def splits_of(
    entries: Sequence[Entry], truth: NDArray[np.int64], source: SourceSpec, where: str
) -> list[SplitName]:
    """Return the split of each entry: as the data state it, or drawn by patient.

    Args:
        entries: the images.
        truth: `(n, k)` whether an image is of a class, by which a drawing is stratified.
        source: states the words for splits, or how to draw them.
        where: the folder, for the error message.

    Raises:
        DataError: a word is not known.
    """
    if source.draw is not None:
        patients = [
            entry.patient or f"\0{place}"  # no patient's name; each image is one of its own
            for place, entry in enumerate(entries)
        ]
        return draw_splits(patients, truth, source.draw.fractions, source.draw.seed)
    known = {word: split for split, word in source.split_names.items()}
    splits: list[SplitName] = []
    for entry in entries:
        if entry.split not in known:
            raise DataError(
                f"{where}: expected splits {', '.join(known)} as split_names state, got "
                f"{entry.split[:40]!r} of {entry.ref.files[0]}"
            )
        splits.append(known[entry.split])
    return splits


def labels_of(entries: Sequence[Entry], card_file: CardFile) -> NDArray[np.int64]:
    """Return `(n,)` class ids or `(n, k)` findings, -1 where a label is not known.

    Raises:
        DataError: a label is not among `values`.
    """
    card, source = card_file.card, card_file.source
    if card.task == "multi_label" or (source.columns and source.columns.findings):
        rows = np.array([entry.findings for entry in entries], np.int64)
        if card.task == "multi_label":
            return rows
        if not one_hot_rows(rows):
            raise DataError(
                f"{card_file.root}: expected one class per image as task states, got rows of "
                'findings that do not sum to one: state task = "multi_label"'
            )
        return from_one_hot(rows)
    ids = {value: index for index, value in enumerate(source.values)}
    labels = np.full(len(entries), UNLABELLED, np.int64)
    for place, entry in enumerate(entries):
        label = whole(entry.label)
        if label in ids:
            labels[place] = ids[label]
        elif label.lower() not in UNKNOWN:
            raise DataError(
                f"{card_file.root}: expected labels {', '.join(source.values)} as `values` states, "
                f"got {label[:40]!r} of {entry.ref.files[0]}"
            )
    return labels


def whole(label: str) -> str:
    """Return a label; a whole float becomes an integer, as tables of pandas store them.

    >>> whole("2.0"), whole("0.5"), whole("v2.0")
    ('2', '0.5', 'v2.0')
    """
    number, mark, zeros = label.partition(".")
    digits = number.removeprefix("-").isdigit()
    return number if mark and digits and zeros and not zeros.strip("0") else label


def _findings(table: CsvTable, columns: Columns, values: Sequence[str]) -> list[tuple[int, ...]]:
    if columns.separator:
        lists = [listed(cell, columns.separator) for cell in table.column(columns.label)]
        return [
            _present(names, values, f"{table.path}: row {row + 2}")
            for row, names in enumerate(lists)
        ]
    if not columns.findings:
        return []
    cells = [table.column(name) for name in columns.findings]
    return [
        tuple(
            finding(cell, f"{table.path}: row {row + 2}: {name}")
            for name, cell in zip(columns.findings, line, strict=True)
        )
        for row, line in enumerate(zip(*cells, strict=True))
    ]


def listed(cell: str, separator: str) -> list[str]:
    """Return the findings that a cell lists."""
    return [name for part in cell.split(separator) if (name := part.strip())]


def _present(names: Sequence[str], values: Sequence[str], where: str) -> tuple[int, ...]:
    """Return which findings are present; words for none are no finding."""
    for name in names:
        if name not in values and name.lower() not in NO_FINDING:
            raise DataError(f"{where}: expected findings of `values`, got {name[:40]!r}")
    return tuple(int(value in names) for value in values)


def finding(cell: str, where: str) -> int:
    """Return 0, 1, or -1 for a finding that is not known.

    Raises:
        DataError: the cell is neither.
    """
    value = _PRESENT.get(cell.lower())
    if value is None and cell.lower() in UNKNOWN:
        value = UNLABELLED
    if value is None:
        raise DataError(f"{where}: expected 0, 1 or nothing for a finding, got {cell[:40]!r}")
    return value


def _cell(cells: Mapping[str, list[str]], key: str, row: int) -> str:
    return cells[key][row] if key in cells else ""


def _of_split(file: str, source: SourceSpec) -> tuple[str, tuple[str, ...]]:
    """Return the word for the split among the folders of a file, and the other folders."""
    folders = PurePosixPath(file).parts[:-1]
    words = set(source.split_names.values())
    split = next((name for name in folders if name in words), "")
    return split, tuple(name for name in folders if name != split)
