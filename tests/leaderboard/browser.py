"""A page as its tags, and as a browser shows it."""

from __future__ import annotations

import subprocess
from html.parser import HTMLParser
from typing import Any


class Tags(HTMLParser):
    """Collects every tag with its attributes, and the ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag."""
        self.tags.append((tag, {key: value or "" for key, value in attrs}))


def chromium(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = ["chromium", *flags, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, **options
    )
