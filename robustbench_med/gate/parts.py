"""Divide the samples of two records into the subgroups that a comparison tests."""

from __future__ import annotations

import pandas as pd

from robustbench_med.bench.record import SUBGROUP, Stored
from robustbench_med.errors import ResultsError
from robustbench_med.subgroups import FEWEST, columns_of, group_order

Parts = dict[str, tuple[pd.DataFrame, pd.DataFrame]]


def parts_of(recorded: Stored, now: Stored, by: tuple[str, ...]) -> tuple[Parts, tuple[str, ...]]:
    """Return the samples of each subgroup in both records, and the subgroups that are too small.

    Args:
        recorded: the record.
        now: the same images, measured now.
        by: the columns; without any, all images are one part, named "".

    Raises:
        ResultsError: a record lacks a column, the subgroups differ, or all are too small.
    """
    if not by:
        return {"": (recorded.samples, now.samples)}, ()
    parts: Parts = {}
    left_out = []
    for column in by:
        groups = [_groups(stored, column) for stored in (recorded, now)]
        if groups[0].tolist() != groups[1].tolist():
            raise ResultsError(
                f"expected the subgroups of {column} of the record, got others: "
                "pytest --robustness-update writes the record anew"
            )
        for name in group_order(sorted(set(groups[0]) - {""})):
            inside = (groups[0] == name).to_numpy()
            before = recorded.samples[inside].reset_index(drop=True)
            part = f"{column} {name}"
            if _units(before) < FEWEST:
                left_out.append(part)
            else:
                parts[part] = before, now.samples[inside].reset_index(drop=True)
    if not parts:
        raise ResultsError(
            f"expected a subgroup of {FEWEST} patients or images, got smaller ones: "
            f"{', '.join(left_out) or 'none'}"
        )
    return parts, tuple(left_out)


def _groups(stored: Stored, column: str) -> pd.Series[str]:
    known = columns_of(stored)
    if column not in known:
        listed = ", ".join(known) or "none: the data have no subgroups"
        raise ResultsError(f"expected a column of subgroups ({listed}), got {column!r}")
    return stored.samples[f"{SUBGROUP}{column}"].fillna("").astype(str)


def _units(samples: pd.DataFrame) -> int:
    """Return the number of patients, or of images where patients are not known."""
    column = "sample" if samples["patient"].isna().any() else "patient"
    return int(samples[column].nunique())
