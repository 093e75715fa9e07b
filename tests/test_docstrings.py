"""Docstrings and comments that a formatter has torn apart: they must not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("robustbench_med", "attacks", "defenses", "leaderboard", "tests", "benchmarks")
ITEM = re.compile(r"(-|\d+\.|>>>|\.\.\.|[`*]*\w+[`*]*(,? [`*]*\w+[`*]*){0,3}( \([^)]*\))?:)( |$)")
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
CLOSING = re.compile(r"\s*[)\]}]+[,:]?\s+# (?!(fmt|noqa|type|pragma)\b)")


def files() -> list[Path]:
    """Return every Python file of the checkout that is ours."""
    return sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))


def torn_lines(docstring: str) -> Iterator[str]:
    """Yield the lines of a docstring whose indent changes in the middle of a sentence."""
    lines = docstring.splitlines()
    for line, following in zip(lines, lines[1:], strict=False):
        if not line.strip() or not following.strip():
            continue
        change = _indent(following) - _indent(line)
        item = ITEM.match(line.strip()) or line.rstrip().endswith(":")
        ended = line.rstrip()[-1] in ".:;" or ITEM.match(following.strip())
        if (change > 0 and not item) or (change < 0 and not ended):
            yield following.strip()


def trailing_comments(source: str) -> list[int]:
    """Return the lines on which a comment follows a bracket that closes what other lines opened."""
    return [i for i, line in enumerate(source.splitlines(), 1) if CLOSING.match(line)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


@pytest.mark.parametrize(
    ("docstring", "torn"),
    [
        ("One.\n\nLoss: of the\n    findings, and no\nunderflow there.", ["underflow there."]),
        ("One.\n\nOf masks, of such a\n    kind; more.", ["kind; more."]),
        ("One.\n\nArgs:\n    x: of the\n        images.\n    y: truth.", []),
        ("One.\n\nSource: of the\n    paper.\nDeviations: none.", []),
        ("One.\n\n- a bullet of\n  two lines.\n- another.", []),
    ],
)
def test_torn_lines_are_found(docstring: str, torn: list[str]) -> None:
    assert list(torn_lines(docstring)) == torn


def test_comments_on_closing_brackets_are_found() -> None:
    source = "a = [\n    1,\n]  # told\nb = f(\n    2\n)  # noqa: S101\nc = (3,)  # fine\n"
    assert trailing_comments(source) == [3]


def test_no_docstring_is_torn() -> None:
    torn = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
                name = path.relative_to(ROOT)
                torn += [f"{name}: {line}" for line in torn_lines(docstring)]
    assert torn == []


def test_no_comment_stands_on_a_closing_bracket() -> None:
    commented = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        for number in trailing_comments(path.read_text(encoding="utf-8"))
    ]
    assert commented == []
