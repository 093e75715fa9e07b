"""Columns of subgroups: bands of numbers, what is refused, and how files state them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from robustbench_med.datasets.dataset import Arrays
from robustbench_med.datasets.load import load_dataset
from robustbench_med.datasets.sources.spec import Columns
from robustbench_med.datasets.subgroups import LONGEST, MOST, check_subgroups, named_groups
from robustbench_med.errors import DataError


def _saved(path: Path, info: dict[str, Any] | None = None, **arrays: Any) -> Path:  # noqa: ANN401
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "test_images": rng.integers(0, 256, (8, 6, 6), dtype=np.uint8),
        "test_labels": np.arange(8) % 2,
        "info": json.dumps(info or {}),
    }
    np.savez(path, **(given | arrays))
    return path


def test_ages_become_bands_and_other_numbers_are_names() -> None:
    ages = ["17.9", "18", "039Y", "006M", "64", "65", "nan", ""]
    assert named_groups("patient_age", ages, None, "x").tolist() == [
        *("under 18", "18 to under 40", "18 to under 40", "under 18"),
        *("40 to under 65", "65 and over", "", ""),
    ]
    assert named_groups("site", ["1.0", "2", " B ", "?"], None, "x").tolist() == ["1", "2", "B", ""]
    assert named_groups("dose", ["1", "2.5"], (2,), "x").tolist() == ["under 2", "2 and over"]
    # an age column of words is no age in years
    assert named_groups("age", ["young", "old"], None, "x").tolist() == ["young", "old"]


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        (
            [f"s{i}" for i in range(MOST + 1)],
            f"at most {MOST} subgroups of c, got {MOST + 1}: join",
        ),
        ([str(i) for i in range(MOST + 1)], "state the edges of bands"),
        (["x" * (LONGEST + 1)] * (MOST + 1), "at most 40 printable characters"),
        (["a\x1b[2J"] * (MOST + 1), "printable characters"),
        (["p0", "p1"] * 10 + ["p0"], "got the names of patients"),
        ([" P0", "p1 "] * 10 + ["p0"], "got the names of patients"),
        (["Doe", "Roe", "Poe"] * 7, "got the names of patients"),  # behind pseudonyms
        (["a"], "expected one per image, got 1 for 21"),
    ],
)
def test_columns_that_are_no_subgroups_are_refused(groups: list[str], why: str) -> None:
    patients = np.array([f"p{i % 3}" for i in range(MOST + 1)])
    with pytest.raises(DataError, match=why):
        check_subgroups({"c": np.array(groups)}, MOST + 1, patients, "mine (test)")


def test_ages_that_hide_the_highest_become_bands_too() -> None:
    cells = ["39", "71", "90+", ">89", "-1"]
    with pytest.raises(DataError, match="expected ages of 0 to 130 years, got -1"):
        named_groups("age", cells, None, "x")
    bands = named_groups("age", cells[:4], None, "x").tolist()
    assert bands == ["18 to under 40", "65 and over", "65 and over", "65 and over"]
    with pytest.raises(DataError, match="expected numbers, because they become bands"):
        named_groups("age", ["39", "old"], None, "x")


def test_a_column_of_patients_or_files_is_no_group() -> None:
    for name in ("who", "file"):
        with pytest.raises(ValidationError, match="which names patients or files"):
            Columns(file="file", patient="who", groups=(name,))


def test_an_npz_file_may_have_columns_of_subgroups(tmp_path: Path) -> None:
    path = _saved(
        tmp_path / "mine.npz",
        {"bands": {"age": [50]}},
        test_subgroup_sex=np.array(list("FMFMFMF") + [""]),
        test_subgroup_age=np.array([49.5, 50, 51, np.nan, 1, 2, 3, 90]),
    )
    dataset = load_dataset(str(path))
    arrays = dataset.arrays("test")
    assert arrays.subgroups["sex"].tolist() == [*"FMFMFMF", ""]
    assert arrays.subgroups["age"].tolist()[:4] == ["under 50", "50 and over", "50 and over", ""]
    picked = dataset.subgroups("test", arrays.ids[[5, 0]])
    assert picked["age"].tolist() == ["under 50", "under 50"]
    assert picked["sex"].tolist() == ["M", "F"]


@pytest.mark.parametrize(
    ("info", "cells", "why"),
    [
        ({"bands": {"age": [50, 40]}}, [1.0] * 8, "info: expected bands as rising numbers"),
        ({"bands": {"age": [40]}}, ["old"] * 8, "expected numbers, because they become bands"),
        ({}, np.zeros((8, 2)), r"expected 8 names \(text or numbers\), got float64 of shape"),
    ],
)
def test_wrong_columns_of_an_npz_file_are_one_line(
    tmp_path: Path,
    info: dict[str, Any],
    cells: Any,  # noqa: ANN401
    why: str,
) -> None:
    path = _saved(tmp_path / "mine.npz", info, test_subgroup_age=np.array(cells))
    with pytest.raises(DataError, match=why):
        load_dataset(str(path)).arrays("test")


def test_only_subgroups_change_the_fingerprint() -> None:
    images, labels = np.zeros((2, 3, 3), np.uint8), np.array([0, 1])
    ids = np.array(["a", "b"])
    bare = Arrays(images, labels, ids)
    assert Arrays(images, labels, ids, None, {}).fingerprint() == bare.fingerprint()
    # as it was before there were subgroups: records stay valid
    expected = "bd2d3c54"
    assert bare.fingerprint()[:8] == expected
    first, second = (
        Arrays(images, labels, ids, None, {"sex": np.array(cells)}).fingerprint()
        for cells in (["F", "M"], ["M", "F"])
    )
    assert len({bare.fingerprint(), first, second}) == 3
