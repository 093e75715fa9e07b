"""The page of the gate works as written: its files saved, its commands run, in an empty folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import robustbench_med as rm
from robustbench_med import cli
from tests.bench.toys import save_npz, save_timm
from tests.docs.pages import CHECKOUT, blocks

PAGE = "gate.md"
_NAMED = re.compile(r"`(test_\w+\.py)`")


def test_every_block_is_saved_or_run() -> None:
    text = (CHECKOUT / "docs" / PAGE).read_text()
    assert len(text.splitlines()) <= 90
    found = blocks(PAGE)
    assert [one.language for one in found] == ["python", "python", "", "python", ""]
    files = [one.text for one in found if one.language]
    assert len(_NAMED.findall(text)) >= len(files)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder with the model and the images of the page.

    The model is attacked before any pytester starts: pytester unloads the modules that were loaded
    while it lived, and libraries that are loaded twice (triton) end the process.
    """
    data = save_npz(tmp_path / "mine.npz", n=40)
    rm.evaluate(save_timm(tmp_path / "net.safetensors"), str(data), "pgd(steps=1)", eps="2/255")
    return tmp_path


@pytest.mark.slow
def test_the_gate_as_the_page_says(files: Path, pytester: pytest.Pytester) -> None:
    text = (CHECKOUT / "docs" / PAGE).read_text()
    for name in ("mine.npz", "net.safetensors"):
        shutil.copy(files / name, pytester.path)
    names = iter(dict.fromkeys(_NAMED.findall(text)))
    for block in blocks(PAGE):
        if block.language:
            (pytester.path / next(names)).write_text(block.text)
        for words in block.commands:
            output = _run(words, pytester)
    assert (pytester.path / "records" / "net").is_dir()
    assert "match: all 24 samples as recorded" in output


def _run(words: list[str], pytester: pytest.Pytester) -> str:
    """Run a command of the page in this process."""
    words = [str(one) for word in words for one in _expanded(word, pytester.path)]
    if words[0] == "pytest":
        run = pytester.runpytest_inprocess("-p", "no:cacheprovider", *words[1:])
        assert run.ret == 0
        return run.stdout.str()
    assert words[:3] == ["python", "-m", "robustbench_med"]
    result = CliRunner().invoke(cli.app, words[3:])
    assert result.exit_code == 0, result.output
    return result.output


def _expanded(word: str, folder: Path) -> list[Path | str]:
    """Return what the shell makes of a word."""
    found = [path.relative_to(folder) for path in folder.glob(word)] if "*" in word else []
    return [*found] or [word]
