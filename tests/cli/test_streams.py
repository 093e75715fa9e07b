"""What is printed never costs what is written: other encodings, a full disk, a closed pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.bench.pack import unpack
from robustbench_med.cli.streams import REPLACE

RESULTS = Path(__file__).parents[2] / "results" / "quick"
FILES = ("leaderboard.html", "leaderboard.csv", "leaderboard.md")
RECORDS = 3


class Ended(NamedTuple):
    """How a command ended, what stdout took, and what stderr did."""

    code: int
    out: bytes
    err: str


Command = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a few committed records to copy, of which one name has letters of its own."""
    home = tmp_path_factory.mktemp("unpacked") / "quick"
    unpack(RESULTS, home, only=[path.name for path in store.homes(RESULTS)[:RECORDS]])
    return home


@pytest.fixture
def folder(unpacked: Path, tmp_path: Path) -> Path:
    """Return a folder of records of its own for each test."""
    return Path(shutil.copytree(unpacked, tmp_path / "quick"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Return what runs a command with stdout as a file of its own."""

    def run(*words: str | Path, encoding: str = "utf-8", out: str | int = "out") -> Ended:
        err = tmp_path / "err"
        target = out if isinstance(out, int) or out.startswith("/") else str(tmp_path / out)
        with (
            monkeypatch.context() as patch,
            open(target, "w", encoding=encoding) as stdout,
            err.open("w", encoding=encoding, errors="backslashreplace") as stderr,
        ):
            patch.setattr(sys, "argv", ["robustbench_med", *map(str, words)])
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            try:
                cli.main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
        received = (tmp_path / "out").read_bytes() if (tmp_path / "out").exists() else b""
        return Ended(code, received, err.read_text(encoding=encoding))

    return run


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "shift_jis", "utf-16"])
def test_the_boards_are_printed_in_any_encoding(
    command: Command, folder: Path, encoding: str
) -> None:
    ended = command("leaderboard", folder, encoding=encoding)
    assert (ended.code, ended.err) == (0, "")
    message = ended.out.decode(encoding)
    assert "worst" in message
    assert "leaderboard.html" in message
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        assert "ε" in text or name.endswith("csv")


@pytest.mark.parametrize(
    "words",
    [
        ("list", "models"),
        ("list", "attacks"),
        ("list", "defenses"),
        ("list", "suites"),
        ("list", "datasets", "--json"),
        ("show", "chest_vgg"),
        ("show", "pgd"),
        ("doctor",),
        ("plan", "quick", "--dataset", "phantom_chest", "--attack", "fgsm"),
        ("--help",),
        ("run", "--help"),
        ("show", "nothing_of_this_näme"),
        ("leaderboard", "ε-gone"),
        ("report", "--victim", "ε", "gone"),
        ("verify", "ε"),
    ],
)
def test_every_command_prints_on_ascii(command: Command, words: tuple[str, ...]) -> None:
    plain, ended = command(*words), command(*words, encoding="ascii")
    assert ended.code == plain.code
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == len(plain.err.splitlines())


def test_what_an_encoding_lacks_is_replaced_by_its_like() -> None:
    assert "ε ∈ {1–2}, é".encode("ascii", REPLACE) == b"eps in {1-2}, ?"
    assert "ε, –".encode("cp1252", REPLACE) == "eps, –".encode("cp1252")


@pytest.fixture
def closed_pipe() -> int:
    """Return the writing end of a pipe that nobody reads."""
    read, write = os.pipe()  # Python ignores the signal, so that a write fails
    os.close(read)
    return write


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_costs_the_tables_not_the_files(command: Command, folder: Path) -> None:
    ended = command("leaderboard", folder, out="/dev/full")
    assert ended.code == 2
    assert ended.err.startswith("robustbench_med: expected to print to stdout, got: No space left")
    assert len(ended.err.splitlines()) == 1
    assert all((folder / name).stat().st_size for name in FILES)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    ("words", "code"),
    [(("list", "models"), 2), (("show", "pgd"), 2), (("--help",), 2), (("leaderboard", "gone"), 2)],
)
def test_a_full_disk_is_one_line(command: Command, words: tuple[str, ...], code: int) -> None:
    ended = command(*words, out="/dev/full")
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_reader_who_leaves_ends_nothing(command: Command, folder: Path, closed_pipe: int) -> None:
    ended = command("leaderboard", folder, out=closed_pipe)
    assert (ended.code, ended.err) == (0, "")
    assert all((folder / name).stat().st_size for name in FILES)


def test_a_run_goes_on_without_a_reader(command: Command, tmp_path: Path, closed_pipe: int) -> None:
    words = ["run", "quick", "--dataset", "phantom_chest", "--victim", "chest_vgg"]
    words += ["--attack", "fgsm", "-n", "4", "--eps", "2/255", "--results", "r"]
    ended = command(*words, out=closed_pipe)
    assert (ended.code, ended.err) == (0, "")
    assert len(list((tmp_path / "r").glob("*/*/record.json"))) == 1
    assert all(list((tmp_path / "r").glob(f"*/{name}")) for name in FILES)


def test_stdout_that_is_closed_from_the_start_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["robustbench_med", "leaderboard", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    assert all((folder / name).stat().st_size for name in FILES)
