"""The tutorial: every block of it runs, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from robustbench_med import cli
from robustbench_med.bench import store

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "tutorial.md"


class Block(NamedTuple):
    """A fenced block: its language and text, and the line of the page it begins at."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [Block(block[1], block[2], page[: block.start(2)].count("\n")) for block in fenced]


def file_of(block: Block) -> str | None:
    """Return the name a block is saved under; None where it is executed."""
    blocks = re.match(r"# ([\w.]+\.\w+)\n", block.text)
    return blocks[1] if blocks else None


def test_blocks_are_found_with_their_lines() -> None:
    page = "a\n```python\nx = 1\n\ny = 2\n```\nb\n```toml\n# a.toml\nk = 1\n```\n"
    first, second = blocks_of(page)
    assert first == ("python", "x = 1\n\ny = 2\n", 2)
    assert file_of(first) is None
    assert (second.language, second.line, file_of(second)) == ("toml", 8, "a.toml")


def test_every_block_is_of_a_kind_that_runs() -> None:
    blocks = blocks_of(PAGE.read_text())
    assert len(blocks) >= 10
    for block in blocks:
        assert block.language in ("python", "console") or file_of(block), block
    own_model = next(
        block for block in blocks if "from robustbench_med import evaluate\n" in block.text
    )
    assert len(own_model.text.splitlines()) <= 10  # own model on own images


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {"__name__": "tutorial"}
    for block in blocks_of(PAGE.read_text()):
        saved = file_of(block)
        if saved is not None:
            Path(saved).write_text(block.text)
        elif block.language == "python":
            padded = "\n" * block.line + block.text  # an error names the line of the page
            exec(compile(padded, str(PAGE), "exec"), names)  # noqa: S102
        else:
            for line in block.text.splitlines():
                _command(line)
    (stored,) = store.read_all(Path("results/local/custom"))[0]
    handed_in = names["evaluate"](names["net"], "mine.npz", "pgd", eps="1/255,2/255,4/255")
    by_command, by_hand = stored.record.rungs, handed_in.records[0].record.rungs
    assert str(by_command) == str(by_hand)  # as text NaN is NaN
    assert Path("results/mine/leaderboard.html").is_file()
    sys.modules.pop("model", None)


def _command(line: str) -> None:
    """Run a command of the page in this process."""
    assert line.startswith("$ python -m robustbench_med "), line
    result = CliRunner().invoke(cli.app, shlex.split(line)[4:])
    assert result.exit_code == 0, result.output
