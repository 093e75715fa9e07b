"""Commands that the other pages show are commands: `plan` accepts what they run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustbench_med import cli
from tests.docs.pages import CHECKOUT, blocks

PAGES = ("quickstart.md", "threat_models.md", "certificates.md")


def _runs(page: str) -> list[list[str]]:
    words = [words for block in blocks(page) for words in block.commands]
    return [w for w in words if w[:4] == ["python", "-m", "robustbench_med", "run"]]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_runs_can_be_planned(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert _runs(page)
    for words in _runs(page):
        command = ["plan", *words[4:], "--results", str(tmp_path)]
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == 0, result.output
        assert re.search(r": \d+ cases?\b", result.output)
