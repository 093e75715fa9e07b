"""A run on a card file from the command line, from the folder to the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustbench_med import cli
from tests.datasets.sources.conftest import Inspect

NET = """
import torch


class Brightness(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(40.0))

    def forward(self, x):
        margin = (x.flatten(1).mean(1) - 0.39) * self.slope
        return torch.stack([-margin, margin], 1)


def make():
    return Brightness()
"""


def _run(folder: Path, films: Path, inspect: Inspect) -> Path:
    """Inspect the films, run an attack on their card file, and return the record."""
    inspect(films)
    (folder / "net.py").write_text(NET)
    words = "--dataset mine.toml --model net.py:make --attack fgsm --eps 1/255,64/255 --examples 0"
    result = CliRunner().invoke(cli.app, ["run", "quick", *words.split()])
    assert result.exit_code == 0, result.output
    (path,) = (folder / "results").rglob("record.json")
    return path


@pytest.mark.slow
def test_a_record_of_a_card_file_is_verified(films: Path, inspect: Inspect, tmp_path: Path) -> None:
    path = _run(tmp_path, films, inspect)
    again = CliRunner().invoke(cli.app, ["verify", str(path.parent), "--run-code"])
    assert again.exit_code == 0, again.output


def test_a_run_on_a_card_file(films: Path, inspect: Inspect, tmp_path: Path) -> None:
    path = _run(tmp_path, films, inspect)
    record = json.loads(path.read_text())
    assert (record["n"], record["patients"]) == (6, 3)
    accuracy = {rung["eps"] * 255: rung["metrics"]["accuracy"]["value"] for rung in record["rungs"]}
    assert accuracy == {0: 1, 1: 1, 64: 0}
    assert "splits were drawn by patient with seed 0" in record["dataset_card"]["notes"]
    written = [file.read_text(errors="ignore") for file in (tmp_path / "results").rglob("*.*")]
    assert not any("Doe" in text or str(tmp_path) in text for text in written)
