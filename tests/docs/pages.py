"""The code blocks of a page of the docs: files it names, commands, and fragments of code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
_INCLUDE = re.compile(r"```\{include\} (\S+)\n```\n?")
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`([\w./]+\.(?:py|toml|json))`")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: as written after the fence; empty for commands.
        text: what it holds.
        path: the file that the paragraph above it names last, "" where it names none.
    """

    language: str
    text: str
    path: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a block of commands."""
        if self.language:
            return []
        joined = self.text.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line))]


def source(page: str) -> str:
    """Return the text of a page below docs/, included files in place."""
    home = CHECKOUT / "docs"
    text = (home / page).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda m: (home / m[1]).read_text(encoding="utf-8"), text)


def blocks(page: str) -> list[Block]:
    """Return the code blocks of a page in their order."""
    text = source(page)
    found = []
    for match in _BLOCK.finditer(text):
        if match[1].startswith("{"):
            continue
        above = text[: match.start()].rstrip().split("\n\n")[-1]
        named = _PATH.findall(above) if above.endswith(":") else []
        found.append(Block(match[1], match[2], named[-1] if named else ""))
    return found
