"""Commands that the other pages show are commands: `plan` accepts what they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import CHECKOUT, blocks

PAGES = ("quickstart.md", "threat_models.md")


def _runs(page: str) -> list[list[str]]:
    words = [words for block in blocks(page) for words in block.commands]
    return [w for w in words if w[:4] == ["python", "-m", "robustbench_med", "run"]]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_runs_can_be_planned(page: str, tmp_path: Path) -> None:
    assert _runs(page)
    for words in _runs(page):
        command = [sys.executable, "-m", "robustbench_med", "plan", *words[4:]]
        done = subprocess.run(
            [*command, "--results", str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r": \d+ cases?\b", done.stdout)
