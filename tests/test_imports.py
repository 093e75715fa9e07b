"""What import-linter cannot see: the core names no other folder in a string that is imported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CORE = Path(__file__).parents[1] / "robustbench_med"
PUBLISHES = "bench/publish.py"  # the one place that loads the leaderboard
_FOLDER = re.compile(r"leaderboard(\.(?!html|csv|md)\w+)*")


def named(path: Path) -> list[str]:
    """Return the strings of a file that may be imported as the leaderboard or a part of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [text for text in texts if isinstance(text, str) and _FOLDER.fullmatch(text)]


def test_the_core_reaches_the_leaderboard_in_one_place() -> None:
    files = {path.relative_to(CORE).as_posix(): named(path) for path in CORE.rglob("*.py")}
    assert {file for file, names in files.items() if names} == {PUBLISHES}


def test_a_string_that_is_imported_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        'import_module("leaderboard.wording.checks"); package("leaderboard"); "leaderboard.html"'
    )
    assert named(file) == ["leaderboard.wording.checks", "leaderboard"]
