"""Names that no file system takes cost one line, wherever a person may give one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import robustbench_med as rm
from robustbench_med.bench.store import check_writable
from robustbench_med.bench.suite import find_suite
from robustbench_med.cli import main
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import BenchError, SpecError
from robustbench_med.paths import MAX_NAME, check_name

LONG = "a" * (MAX_NAME + 1)
BAD = [LONG, "é" * 128, f"folder/{LONG}", f"{LONG}/file", "a/" * 2100 + "b", "with\0zero"]


@pytest.mark.parametrize("name", BAD, ids=["ascii", "utf-8", "file", "folder", "path", "zero"])
def test_a_name_that_no_file_system_takes_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match=r"bytes|zero byte") as caught:
        check_name(name)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_the_longest_names_are_taken(tmp_path: Path) -> None:
    longest = tmp_path / ("a" * MAX_NAME)
    assert check_name(longest) == longest
    longest.touch()
    with pytest.raises(SpecError, match="at most 255 bytes, got one of 256"):
        check_name(longest, suffix=1)


PLACES: dict[str, Callable[[str], object]] = {
    "dataset": load_dataset,
    "npz": lambda name: load_dataset(f"{name}.npz"),
    "data": lambda name: load_dataset("mednist_64", data=name),
    "suite": find_suite,
    "suite file": lambda name: find_suite(f"{name}.toml"),
    "results": lambda name: check_writable(Path(name)),
    "evaluate": lambda name: rm.evaluate(nn.Flatten(), f"{name}.npz", "fgsm", eps=0.1),
    "weights": lambda name: rm.load_model(
        f"timm:resnet18(weights={name!r})", dataset="phantom_fundus"
    ),
    "code": lambda name: rm.load_model(f"{name}.py:make", dataset="phantom_fundus"),
    "run_suite": lambda name: rm.run_suite("quick", results=name, n=1),
}


@pytest.mark.parametrize("name", BAD, ids=["ascii", "utf-8", "file", "folder", "path", "zero"])
@pytest.mark.parametrize("place", PLACES)
def test_a_long_name_costs_one_line_everywhere(place: str, name: str) -> None:
    with pytest.raises(BenchError) as caught:
        PLACES[place](name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["leaderboard", "verify", "report"])
def test_a_long_folder_costs_one_line_of_the_command_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["robustbench_med", command, LONG])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "255 bytes" in line]) == 1
