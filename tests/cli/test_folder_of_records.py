"""A page, its CSV and its Markdown hold every record of their folder, whatever the last run ran."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from robustbench_med import cli, run_suite
from robustbench_med.bench import failure, steps
from robustbench_med.bench.resolved_case import ResolvedCase
from tests.bench.toys import small_phantoms

FIRST, SECOND = "chest_vgg", "chest_resnet"
COMMON = ("--dataset", "phantom_chest", "--attack", "fgsm", "--eps", "2/255", "-n", "6")
CommandResult = tuple[int, str]
Call = Callable[..., CommandResult]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """Yield what runs a command in this process: its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["robustbench_med", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        result = capsys.readouterr()
        return int(stop.value.code or 0), result.out + result.err

    with small_phantoms():
        yield run


def holds(folder: Path, *victims: str) -> None:
    """Check that all three files of a folder name exactly these victims."""
    table = pd.read_csv(folder / "leaderboard.csv")
    assert set(table["victim"]) == set(victims)
    for name in ("leaderboard.html", "leaderboard.md"):
        text = (folder / name).read_text(encoding="utf-8").replace("\\_", "_")
        assert all(victim in text for victim in victims)


def test_a_second_run_keeps_the_models_of_the_first(call: Call) -> None:
    assert call("run", "quick", "--victim", FIRST, *COMMON, "--results", "r")[0] == 0
    code, result = call("run", "quick", "--victim", SECOND, *COMMON, "--results", "r")
    assert code == 0
    holds(Path("r/quick"), FIRST, SECOND)
    assert "1 case of this run and 1 of earlier runs" in result


def test_a_narrower_run_keeps_the_page_of_a_larger_one(call: Call) -> None:
    words = ("run", "quick", "--victim", FIRST, "--victim", SECOND, *COMMON, "--results", "r")
    assert call(*words)[0] == 0
    ids = sorted(path.parent.name for path in Path("r/quick").glob("*/record.json"))
    assert call(*words, "--case", ids[0])[0] == 0
    holds(Path("r/quick"), FIRST, SECOND)
    sibling = ("run", "quick", "--dataset", "phantom_fundus", "--victim", "fundus_resnet")
    code, result = call(*sibling, *COMMON[2:], "--results", "r")
    assert code == 0
    holds(Path("r/quick"), FIRST, SECOND, "fundus_resnet")
    assert "chest" not in result.replace("phantom_chest", "")  # boards of earlier runs are counted
    assert "1 board of earlier runs only: not printed above." in result


def test_a_run_from_python_keeps_them_too(call: Call) -> None:
    assert call("run", "quick", "--victim", FIRST, *COMMON, "--results", "r")[0] == 0
    run_suite(
        "quick",
        results="r",
        datasets=["phantom_chest"],
        victims=[SECOND],
        attacks=["fgsm"],
        ladder=["2/255"],
        n=6,
    )
    holds(Path("r/quick"), FIRST, SECOND)


def test_what_failed_stays_on_the_page_of_a_later_run(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("r/quick")
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no memory left")

        patch.setattr(steps, "execute", fail)
        assert call("run", "quick", "--victim", FIRST, *COMMON, "--results", "r")[0] == 1
    assert call("run", "quick", "--victim", SECOND, *COMMON, "--results", "r")[0] == 0
    for words in ((), ("leaderboard", str(folder))):
        if words:
            assert call(*words)[0] == 0
        for name in ("leaderboard.html", "leaderboard.md"):
            assert "no memory left" in (folder / name).read_text(encoding="utf-8")
    assert call("run", "quick", "--victim", FIRST, *COMMON, "--results", "r")[0] == 0
    assert "no memory left" not in (folder / "leaderboard.html").read_text(encoding="utf-8")
    assert not (folder / failure.FILE).exists()


def test_failures_that_share_a_label_keep_their_own_reasons(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(planned: ResolvedCase, *_: object, **__: object) -> None:
        raise RuntimeError(f"no memory for {planned.case.parameters['steps']} steps")

    assert call("run", "quick", "--victim", FIRST, *COMMON, "--results", "r")[0] == 0
    monkeypatch.setattr(steps, "execute", fail)
    words = ("run", "quick", "--victim", FIRST, *COMMON[:2], *COMMON[4:], "--results", "r")
    both = ("--attack", "pgd(steps=2)", "--attack", "pgd(steps=3)")
    code, result = call(*words, *both)
    assert code == 1
    for count in (2, 3):  # what differs and nothing else tells the lines apart
        line = f"phantom_chest · {FIRST} · pgd (steps={count}): "
        assert f"not scored: {line}RuntimeError: no memory for {count} steps" in result
        page = Path("r/quick/leaderboard.md").read_text(encoding="utf-8").replace("\\_", "_")
        assert line in page
    assert result.count("not scored: ") == 2


def test_a_run_of_one_case_says_nothing_of_cases_that_did_not_run(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = ("--attack", "pgd(steps=2)", "--attack", "pgd(steps=3)", "--results", "r")
    words = ("quick", "--victim", FIRST, *COMMON[:2], *COMMON[4:], *attacks)
    result = call("plan", *words)[1]
    first, second = re.findall(r"\b[0-9a-f]{16}\b", result)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(steps, "execute", fail)
        code, result = call("run", *words, "--case", first)
        assert code == 1
        assert result.count("not scored: ") == 1
        assert f"not scored: phantom_chest · {FIRST} · pgd: " in result  # nothing to tell apart
        assert [f.case and f.case.id for f in failure.recall(Path("r/quick"))] == [first]
    # nor does a later run of the other case that succeeds make the first one's failure forgotten
    assert call("run", *words, "--case", second)[0] == 0
    assert [f.case and f.case.id for f in failure.recall(Path("r/quick"))] == [first]


def test_a_damaged_list_of_what_failed_is_none(tmp_path: Path) -> None:
    (tmp_path / failure.FILE).write_text("[{", encoding="utf-8")
    assert failure.recall(tmp_path) == []
