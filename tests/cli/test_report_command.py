"""`report`: its files, and one line for every mistake."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from robustbench_med import cli

RESULTS = Path(__file__).parents[2] / "results"
VICTIM = "fundus_resnet"
GOOD = '[[criteria]]\nmetric = "accuracy"\nattack = "clean"\nat_least = 0.5\n'


class Called:
    """Runs the command line in this process and keeps what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *words: str | Path) -> int:
        """Return the exit code."""
        self._monkeypatch.setattr(sys, "argv", ["robustbench_med", "report", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def refused(self, *parts: str) -> None:
        """Check that it said one line on stderr that holds `parts`."""
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("robustbench_med: ")
        for part in parts:
            assert part in self.err


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Called:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Called(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two committed records of one victim and one of another."""
    found: dict[str, list[Path]] = {}
    for path in sorted((RESULTS / "quick").glob("*/record.json")):
        case = json.loads(path.read_text())["case"]
        if case["dataset"] == "phantom_fundus" and case["threat"] == "white_box":
            found.setdefault(case["victim"], []).append(path.parent)
    for home in [*found[VICTIM][:2], found["fundus_densenet"][0]]:
        shutil.copytree(home, tmp_path / "suites" / "quick" / home.name)
    return tmp_path / "suites"


def test_it_writes_html_and_json_beside_the_records(call: Called, folder: Path) -> None:
    assert call("--victim", VICTIM, folder) == 0
    page, data = folder / f"report-{VICTIM}.html", folder / f"report-{VICTIM}.json"
    assert f"report: {page}\nreport: {data}\n" in call.out
    held = json.loads(data.read_text())
    assert {Path(record["path"]).parts[0] for record in held["records"]} == {"quick"}
    assert all(len(record["record_sha256"]) == 64 for record in held["records"])
    assert "R2" in page.read_text()
    assert call("--victim", VICTIM, folder / "quick", "--out", "elsewhere") == 0
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == [page.name, data.name]


def test_it_says_which_criteria_are_met(call: Called, folder: Path) -> None:
    path = Path("plan.toml")
    path.write_text(GOOD + GOOD.replace("0.5", "1.0"))
    os.utime(path, (0, 0))
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    assert "C1 met: accuracy at least 0.5 (50 %) on clean images, every dataset" in call.out
    assert "C2 not met: " in call.out
    assert "written after" not in call.out
    os.utime(path, (4e9, 4e9))
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    assert "plan.toml is younger than the first record: written after the results" in call.out


def test_a_mistake_costs_one_line(call: Called, folder: Path) -> None:
    assert call("--victim", "fundus_resnt", folder) == 2
    call.refused("got 'fundus_resnt': did you mean 'fundus_resnet'?", "fundus_densenet")
    assert call("--victim", VICTIM, "gone") == 2
    call.refused("expected records below gone, got none: run a suite first")
    assert call("--victim", VICTIM, folder, "--criteria", "gone.toml") == 2
    call.refused("expected criteria in gone.toml, got: No such file")
    Path("bad.toml").write_text(GOOD.replace("metric", "metrik"))
    assert call("--victim", VICTIM, folder, "--criteria", "bad.toml") == 2
    call.refused("bad.toml, criterion 1: expected a known key, got 'metrik'")
    Path("file").write_text("")
    assert call("--victim", VICTIM, folder, "--out", Path("file") / "below") == 2
    call.refused("expected to write into file/below, got: Not a directory")
    assert call(folder) == 2
    assert "--victim" in call.err
    assert list(folder.glob("report-*")) == []


def test_a_damaged_record_is_named_and_costs_exit_code_1(call: Called, folder: Path) -> None:
    damaged = sorted((folder / "quick").iterdir())[0] / "record.json"
    damaged.write_text("{")
    assert call("--victim", VICTIM, folder) == 1
    assert f"not read: expected a readable record in {damaged.parent}" in call.out
    page = (folder / f"report-{VICTIM}.html").read_text()
    assert "1 record in the folder could not be read" in page


def test_a_damaged_record_does_not_make_a_model_look_stronger(call: Called, folder: Path) -> None:
    """What is met without it is doubted, on the terminal and in both files."""
    path = Path("plan.toml")
    path.write_text(GOOD)
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    assert "C1 met: " in call.out
    damaged = sorted((folder / "quick").iterdir())[0] / "record.json"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert call("--victim", VICTIM, folder, "--criteria", path) == 1
    assert "C1 met (doubted): " in call.out
    held = json.loads((folder / f"report-{VICTIM}.json").read_text())
    assert str(damaged.parent) in held["unreadable"][0]
    assert held["criteria"]["judged"][0]["doubted"]


def test_the_command_in_a_report_makes_it_again(call: Called, folder: Path) -> None:
    path = Path("it's a plan.toml")
    path.write_text(GOOD)
    assert call("--victim", VICTIM, folder, "--criteria", path) == 0
    made = folder / f"report-{VICTIM}.json"
    first = made.read_bytes()
    made.unlink()
    words = shlex.split(json.loads(first)["command"])
    assert words[:4] == ["python", "-m", "robustbench_med", "report"]
    assert call(*words[4:]) == 0
    assert made.read_bytes() == first
