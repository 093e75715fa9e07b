"""Names that say nothing stay rare: the share of everyday words among all names that are bound."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("robustbench_med", "attacks", "defenses", "leaderboard")
# `found` was bound to 156 different expressions: a reader cannot search for it, and learns nothing
EVERYDAY = frozenset(
    {
        "found",
        "one",
        "here",
        "kept",
        "place",
        "own",
        "told",
        "said",
        "seen",
        "made",
        "wanted",
        "left",
        "rest",
        "lost",
        "share",
        "shares",
        "asked",
        "chosen",
        "given",
        "other",
        "parts",
    }
)
MOST = 0.015


def bound_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield each name that code binds, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.alias):
            yield node.lineno, (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def is_everyday(name: str) -> bool:
    """Whether a name is an everyday word, private or in capitals too."""
    return name.lower().strip("_") in EVERYDAY


def test_every_kind_of_binding_counts() -> None:
    source = (
        "import numpy as found\nfrom a import b as _kept\nLEFT = 1\n"
        "def share(one, *, other=1, **rest):\n    for place in one:\n        pass\n"
        "class Told:\n    pass\ntry:\n    pass\nexcept OSError as seen:\n    print(chosen)\n"
    )
    everyday = {name for _, name in bound_names(source) if is_everyday(name)}
    counted = {"found", "_kept", "LEFT", "share", "one", "other", "rest", "place", "Told", "seen"}
    assert everyday == counted  # and not `chosen`, which is read but not bound


@pytest.mark.parametrize("folder", FOLDERS)
def test_everyday_words_are_rare_among_names(folder: str) -> None:
    total, everyday = 0, []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, name in bound_names(path.read_text(encoding="utf-8")):
            total += 1
            if is_everyday(name):
                everyday.append(f"{path.relative_to(ROOT)}:{line} {name}")
    fraction = len(everyday) / total
    assert fraction <= MOST, f"{fraction:.2%} of {total} names:\n" + "\n".join(everyday)
