"""Fixtures: folders of small pictures with tables and masks."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from robustbench_med import cli
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError

Inspect = Callable[..., str]
SIZE = (10, 12)


def picture(label: int, seed: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    """Return a noisy grey picture, brighter where the label is 1."""
    noise = np.random.default_rng(seed).integers(0, 100, size)
    return (noise + 100 * label).astype(np.uint8)


def save(path: Path, values: np.ndarray) -> Path:
    """Save a picture, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write a CSV table, its column names first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Return a folder with 30 pictures of 15 patients and a table."""
    rows: list[tuple[object, ...]] = [("filename", "diagnosis", "patient_id", "sex")]
    for i in range(30):
        save(tmp_path / "films" / "images" / f"film{i:02d}.png", picture(i % 2, i))
        rows.append(
            (f"film{i:02d}.png", ("normal", "pneumonia")[i % 2], f"Doe{i // 2}", "MF"[i % 2])
        )
    write_table(tmp_path / "films" / "labels.csv", rows)
    return tmp_path / "films"


@pytest.fixture
def inspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """Return a function that runs `inspect`, and returns what it prints.

    Raises:
        BenchError: as the command does.
    """
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> str:
        result = CliRunner().invoke(cli.app, ["inspect", *map(str, words)])
        if isinstance(result.exception, BenchError):
            raise result.exception
        incomplete = "complete it, and look at it again" in result.output
        assert result.exit_code == (2 if incomplete else 0), repr(result.exception)
        return result.output

    return call


def edit(path: Path, old: str, new: str) -> Path:
    """Replace a text that a card file has once."""
    text = path.read_text()
    assert text.count(old) == 1, text
    path.write_text(text.replace(old, new))
    return path


def loaded(folder: Path) -> Dataset:
    """Return the dataset of the card file that `inspect` wrote into a folder."""
    return load_dataset(folder / "mine.toml")
