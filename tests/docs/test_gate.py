"""The page of the gate works as written: its files saved, its commands run, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_the_gate_as_the_page_says(tmp_path: Path) -> None:
    text = (CHECKOUT / "docs" / PAGE).read_text()
    save_npz(tmp_path / "mine.npz", n=40)
    save_timm(tmp_path / "net.safetensors")
    names = iter(dict.fromkeys(_NAMED.findall(text)))
    for block in blocks(PAGE):
        if block.language:
            (tmp_path / next(names)).write_text(block.text)
        for words in block.commands:
            said = _run(words, tmp_path)
    assert (tmp_path / "records" / "net").is_dir()
    assert "match: all 24 samples as recorded" in said


def _run(words: list[str], folder: Path) -> str:
    """Run a command of the page with this interpreter and this checkout."""
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    words = [str(one) for word in words for one in _expanded(word, folder)]
    command = ["-m", *words] if words[0] == "pytest" else words[1:]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _expanded(word: str, folder: Path) -> list[Path | str]:
    """Return what the shell makes of a word."""
    found = [path.relative_to(folder) for path in folder.glob(word)] if "*" in word else []
    return [*found] or [word]
