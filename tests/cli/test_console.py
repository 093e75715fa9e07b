"""What a console shows of the command line itself: its version, its help, how it is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer

from robustbench_med import __version__, cli

CHECKOUT = Path(__file__).parents[2]
COMMANDS = [str(info.name or info.callback.__name__) for info in cli.app.registered_commands]  # type: ignore[union-attr]


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch, *, program: str = "x") -> int:
    monkeypatch.setattr(sys, "argv", [program, *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_version_is_printed_by_the_module_and_by_the_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (script,) = entry_points(group="console_scripts", name="robustbench-med")
    assert script.load() is cli.main
    for program in ("robustbench-med", "__main__.py"):
        assert ended(["--version"], monkeypatch, program=program) == 0
        assert capsys.readouterr().out == f"robustbench_med {__version__}\n"


def test_a_command_leaves_the_signals_of_who_called_it_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert ended(["--version"], monkeypatch) == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_help_is_cut_on_a_console_of_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert ended([command, "--help"] if command else ["--help"], monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    usage, options = lines[0], lines[1:]
    assert usage.startswith("Usage: ")
    assert len(options) > 5
    cut = [line for line in options if line.endswith(("...", "…")) and ", ..." not in line]
    assert cut == []
    assert max(map(len, options)) <= 80


def test_every_command_says_in_the_list_what_it_does() -> None:
    assert "verify" in COMMANDS
    for info in cli.app.registered_commands:
        assert info.callback is not None
        assert info.short_help
        assert info.short_help.endswith(".")
    assert isinstance(cli.app, typer.Typer)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["run", "test", "docs"])
def test_make_says_what_takes_long_before_it_installs(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    installs = next(i for i, line in enumerate(lines) if "pip install" in line)
    assert "up to 4 minutes" in lines[installs - 1]
    assert "--quiet" not in lines[installs]


def test_make_wheel_leaves_the_wheel() -> None:
    script = (CHECKOUT / ".ci" / "wheel").read_text()
    assert "build --wheel --outdir dist" in script
    assert "dist/" in (CHECKOUT / ".gitignore").read_text().split()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_lacks_a_character_shows_another_in_its_place(encoding: str) -> None:
    words = [sys.executable, "-m", "robustbench_med", "list", "datasets"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60"}
    done = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"phantom_chest" in done.stdout
