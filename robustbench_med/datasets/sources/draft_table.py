"""Draft a card file from a CSV table that names images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from robustbench_med.datasets.sources import words
from robustbench_med.datasets.sources.draft import Draft, set_classes, split_names
from robustbench_med.datasets.sources.draft_folders import set_mask_classes
from robustbench_med.datasets.sources.entries import NO_FINDING, UNKNOWN, finding, listed, whole
from robustbench_med.datasets.sources.tables import CsvTable, FileFinder, read_csv
from robustbench_med.datasets.subgroups import check_subgroups, named_groups
from robustbench_med.errors import DataError

_TRIED = 200  # rows by which the column of files is found
_MOST_TABLES = 20


def from_table(draft: Draft, names: Sequence[str]) -> bool:
    """Draft from the CSV table that names the most images; False if none does."""
    finder = FileFinder(draft.root, draft.refs)
    best: tuple[int, str, CsvTable, str] | None = None
    for name in names[:_MOST_TABLES]:
        table = read_csv(draft.root / name)
        for column in table.columns:
            cells = table.column(column)
            tried = cells[:_TRIED]
            hits = sum(finder.lookup(cell) is not None for cell in tried)
            known = len(set(cells)) if hits > len(tried) / 2 else 0
            if known > (best[0] if best else 0):
                best = (known, name, table, column)
    if best is None:
        return False
    _, name, table, file = best
    remaining = [column for column in table.columns if column and column != file]
    columns: dict[str, Any] = {"file": file}
    masks = [c for c in remaining if _is_mask_column(table.column(c), table.column(file), finder)]
    if masks:
        columns["mask"] = masks[0]
        remaining = [column for column in remaining if column not in masks]
    split = _column(remaining, words.SPLIT)
    if split and (names_of_splits := split_names(table.column(split))):
        columns["split"], draft.source["split_names"] = split, names_of_splits
    patient = _column(remaining, words.PATIENT)
    if patient:
        columns["patient"] = patient
    candidates = [c for c in remaining if c.lower() in words.GROUPS]
    groups = [c for c in candidates if _usable(c, table.column(c), draft)]
    if groups:
        columns["groups"] = groups
    used = {file, *masks, patient, *groups, columns.get("split", "")}
    _truth(draft, table, columns, [c for c in remaining if c not in used])
    draft.source |= {"labels": "csv", "csv": name, "columns": columns}
    draft.remarks.append(f"the table {name} names the images in its column {file!r}")
    for key in ("label", "findings", "mask", "split", "patient", "groups"):
        if key in columns:
            value = columns[key]
            shown = ", ".join(value) if isinstance(value, list) else value
            draft.remarks.append(f"{key}: column {shown}")
    ignored = [c for c in remaining if c not in used and c not in _flat(columns)]
    if ignored:
        draft.remarks.append(f"columns that are not used: {', '.join(ignored)[:200]}")
    rest_of_tables = [other for other in names if other != name]
    if rest_of_tables:
        draft.remarks.append(f"tables that are not used: {', '.join(rest_of_tables)[:200]}")
    if len(table.rows) < len(draft.refs) - len(masks) * len(table.rows):
        count = len(draft.refs) - len(table.rows)
        draft.remarks.append(f"{count} pictures are in no row of {name} and not used")
    return True


def _truth(draft: Draft, table: CsvTable, columns: dict[str, Any], remaining: list[str]) -> None:
    """Find the column of labels, or the columns of findings."""
    if "mask" in columns:
        places = FileFinder(draft.root, draft.refs)
        cells = [cell for cell in table.column(columns["mask"]) if cell]
        masks = {places.find(cell, str(table.path)) for cell in cells}
        draft.mask_refs = [draft.refs[row] for row in sorted(masks)]
        draft.refs = [ref for row, ref in enumerate(draft.refs) if row not in masks]
        set_mask_classes(draft)
        return
    label = _column(remaining, words.LABEL)
    if label:
        _label_column(draft, table.column(label), label, columns)
        return
    findings = [c for c in remaining if _is_finding(table.column(c))]
    if len(findings) > 1:
        columns["findings"] = findings
        rows = list(zip(*(table.column(c) for c in findings), strict=True))
        one_hot = all(sum(finding(cell, "") == 1 for cell in row) == 1 for row in rows)
        task = "single_label" if one_hot else "multi_label"
        draft.card |= {"task": task, "classes": findings}
        if one_hot:
            draft.remarks.append(
                f"the {len(findings)} columns are one-hot (one of each row is 1) and read as one "
                'of so many classes; task = "multi_label" reads them as findings'
            )
        return
    if len(findings) == 1 or len(remaining) == 1:
        label = (findings or remaining)[0]
        _label_column(draft, table.column(label), label, columns)
        return
    draft.card |= {"task": "single_label", "classes": ["class 0", "class 1"]}
    columns["label"] = ""
    draft.missing.append(
        f"the column of labels: none of {', '.join(remaining)[:200] or 'the columns'} has a known "
        "name; set `label` in [source.columns], `classes` and `values`"
    )


def _label_column(draft: Draft, cells: list[str], label: str, columns: dict[str, Any]) -> None:
    columns["label"] = label
    values = {whole(cell) for cell in cells if whole(cell).lower() not in UNKNOWN}
    if any("|" in value for value in values):
        columns["separator"] = "|"
        names = Counter(name for cell in cells for name in listed(cell, "|"))
        classes = sorted(name for name in names if name.lower() not in NO_FINDING)
        draft.card |= {"task": "multi_label", "classes": classes}
        draft.source["values"] = classes
        draft.remarks.append(f"several findings stand in one cell of {label!r}, separated by |")
        return
    set_classes(draft, values, f"column {label!r}")


def _is_finding(cells: list[str]) -> bool:
    known = {cell.lower() for cell in cells} - set(UNKNOWN)
    return bool(known) and known <= {"0", "1", "0.0", "1.0", "true", "false"}


def _is_mask_column(cells: list[str], files: list[str], finder: FileFinder) -> bool:
    """Whether each cell is empty or names a file, and nearly each another one than the image."""
    named = [(cell, file) for cell, file in zip(cells, files, strict=True) if cell]
    places = [(finder.lookup(cell), finder.lookup(file)) for cell, file in named]
    masks = {mask for mask, image in places if mask is not None and mask != image}
    return bool(masks) and len(masks) == len(places)


def _column(names: Iterable[str], known: tuple[str, ...]) -> str:
    """Return the first column whose name is, or begins with, one of the words."""
    names = list(names)
    for word in known:
        for name in names:
            plain = name.lower().replace("-", "_")
            if plain == word or re.sub(r"_?(id|name|no|number)$", "", plain) == word:
                return name
    return ""


def _usable(column: str, cells: list[str], draft: Draft) -> bool:
    """Whether a column names subgroups; a remark says why it does not."""
    try:
        groups = named_groups(column, cells, None, "the table")
        check_subgroups({column: groups}, len(cells), None, "the table")
    except DataError as error:
        draft.remarks.append(f"no groups: {error}")
        return False
    return True


def _flat(columns: dict[str, Any]) -> set[str]:
    return {n for v in columns.values() for n in (v if isinstance(v, list) else [v])}
