"""A page as its tags, and as a browser shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

CHROMIUM = shutil.which("chromium")
WHY = "needs Debian's Chromium to open the page: apt-get install chromium"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=WHY)
_LOCAL = ("file:", "data:", "blob:")


class Tags(HTMLParser):
    """Collects every tag with its attributes, also those a script element holds as text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag."""
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        """Look into what the script unfolds where a row is opened."""
        if self.tags and self.tags[-1] == ("script", {"type": "text/html"}):
            self.tags += Tags(data).tags


@contextmanager
def browser() -> Iterator[Browser]:
    """Give a headless Chromium: Debian's, none is downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        result = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield result
        result.close()


@contextmanager
def opened(chromium: Browser, path: Path, anchor: str = "", **options: Any) -> Iterator[Page]:  # noqa: ANN401
    """Give the page open in a context of its own; nothing may have gone wrong in it at the end.

    Wrong: an error of a script, a message on the console (the policy's refusals are such), a dialog
    (what a payload would open), a request that is not for the file itself.

    Args:
        chromium: of `browser`.
        path: of the page.
        anchor: of a deep link, with its `#`.
        options: of the context, such as `color_scheme` and `viewport`.
    """
    wrong: list[str] = []

    def dismissed(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    context = chromium.new_context(**({"viewport": {"width": 1400, "height": 1000}} | options))
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", dismissed)
    page.on("request", lambda item: None if item.url.startswith(_LOCAL) else wrong.append(item.url))
    page.goto(path.as_uri() + anchor)
    yield page
    # what a payload would have set
    assert page.evaluate("window.hacked") is None
    context.close()
    assert wrong == []


def violations(page: Page) -> list[str]:
    """Return the serious and critical faults that axe-core finds, a line each."""
    import axe_playwright_python

    script = Path(axe_playwright_python.__file__).parent / "axe.min.js"
    page.evaluate(script.read_text(encoding="utf-8"))
    result = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [
        f"{item['id']} ({item['impact']}): {json.dumps([n['target'] for n in item['nodes']][:3])}"
        for item in result["violations"]
        if item["impact"] in ("serious", "critical")
    ]


def saved(page: Page, kind: str) -> str:
    """Return the text of the CSV or JSON that the page gives to download."""
    with page.expect_download() as waiting:
        page.locator(f"[data-save='{kind}']").click()
    assert waiting.value.suggested_filename == f"leaderboard.{kind}"
    return Path(waiting.value.path()).read_text(encoding="utf-8")
