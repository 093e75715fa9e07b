"""Subgroups that a table of images states."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import SpecError
from tests.datasets.sources.conftest import Inspect, edit, loaded


def test_a_table_states_subgroups(films: Path, inspect: Inspect, tmp_path: Path) -> None:
    table = films / "labels.csv"
    with table.open() as file:
        rows = list(csv.reader(file))
    for number, row in enumerate(rows):
        row += ["age", "site"] if number == 0 else [str(number + 30), f"site {number}"]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    printed = inspect(films)
    assert "groups: column sex, age" in printed
    assert "no groups: the table: expected at most 20 subgroups of site, got 30" in printed
    dataset = loaded(tmp_path)
    arrays = dataset.arrays("test")
    assert set(arrays.subgroups["age"].tolist()) <= {"18 to under 40", "40 to under 65"}
    assert set(arrays.subgroups["sex"].tolist()) == {"F", "M"}
    card = edit(tmp_path / "mine.toml", "[source.columns]", "[source.columns]\nbands = {age=[50]}")
    bands = load_dataset(str(card)).arrays("test").subgroups["age"]
    assert set(bands.tolist()) <= {"under 50", "50 and over"}
    edit(card, "bands = {age=[50]}", "bands = {size=[50]}")
    with pytest.raises(SpecError, match="expected bands of a column of groups, got 'size'"):
        load_dataset(str(card))
