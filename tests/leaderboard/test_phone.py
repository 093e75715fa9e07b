"""Which numbers stand on a phone: the worst case is never hidden behind the clean score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .browser import opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH = 390
SEEN = """(query) => [...document.querySelectorAll(query)].map((cell) => {
  const box = cell.getBoundingClientRect();
  return [cell.innerText.trim(), box.left, box.right, box.width];
})"""


def test_the_worst_case_stands_in_the_width_of_a_phone(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite, viewport={"width": WIDTH, "height": 844}) as page:
        for query in ("table.ranking td.worst .v", "table.glance td.worst .v"):
            cells = page.evaluate(SEEN, query)
            assert cells
            for words, left, right, width in cells:
                assert words
                assert width > 0
                assert (left >= 0, right <= WIDTH) == (True, True), (query, words, left, right)
        # the bar of first places has room for one number: it is the worst case
        clean = page.evaluate(SEEN, "table.glance td:nth-child(4)")
        assert {width for *_, width in clean} == {0}
        # on a board the clean score stands beside the worst case, under a heading that says so
        heads = page.evaluate(SEEN, "table.ranking thead th")
        names = [words for words, *_ in heads]
        assert names[2].lower().startswith("worst")
        assert names[3].lower().startswith("clean")
