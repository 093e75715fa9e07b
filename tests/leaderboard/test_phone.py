"""The page on a phone: the worst case in sight, boards closed, a menu, no sideways scroll."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .browser import opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WIDTH = 390
BOXES = """(query) => [...document.querySelectorAll(query)].map((cell) => {
  const box = cell.getBoundingClientRect();
  return [cell.innerText.trim(), box.left, box.right, box.width];
})"""


def test_the_worst_case_stands_in_the_width_of_a_phone(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite, viewport={"width": WIDTH, "height": 844}) as page:
        for button in page.locator(".unfold").all():
            button.click()
        for query in ("table.ranking td.worst .v", "table.glance td.worst strong"):
            cells = page.evaluate(BOXES, query)
            assert cells
            for words, left, right, width in cells:
                assert words
                assert width > 0
                assert (left >= 0, right <= WIDTH) == (True, True), (query, words, left, right)
        # on a board the clean score stands beside the worst case, under a heading that says so
        heads = page.evaluate(BOXES, "table.ranking thead th")
        names = [words for words, *_ in heads]
        assert names[2].lower().startswith("worst")
        assert names[3].lower().startswith("clean")


def test_boards_are_closed_until_they_are_asked_for(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite, viewport={"width": WIDTH, "height": 844}) as page:
        boards = page.locator(".board").all()
        assert len(boards) > 1
        assert not any(board.locator(".body").is_visible() for board in boards)
        assert all(board.locator("h3").is_visible() for board in boards)
        button = boards[0].locator(".unfold")
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        assert boards[0].locator("table.ranking").is_visible()
        button.click()
        assert not boards[0].locator(".body").is_visible()


def test_the_menu_jumps_to_a_board_and_opens_it(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite, viewport={"width": WIDTH, "height": 844}) as page:
        menu = page.locator(".jump")
        menu.locator("summary").click()
        box = menu.locator("nav").bounding_box()
        assert box is not None
        assert (box["x"] >= 0, box["x"] + box["width"] <= WIDTH) == (True, True)
        entry = menu.locator("ul ul a").nth(1)
        ident = (entry.get_attribute("href") or "").removeprefix("#")
        entry.click()
        board = page.locator(f"[id='{ident}']")
        assert board.locator("table.ranking").is_visible()
        assert not menu.locator("nav").is_visible()
        box = board.bounding_box()
        assert box is not None
        assert -1 <= box["y"] < 844


def test_only_tables_scroll_sideways(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite, viewport={"width": WIDTH, "height": 844}) as page:
        for button in page.locator(".unfold").all():
            button.click()
        for details in page.locator("details.fold, details.sheet").all():
            details.evaluate("element => { element.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_wide_screen_shows_every_board(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite) as page:
        assert all(board.locator(".body").is_visible() for board in page.locator(".board").all())
        assert not page.locator(".unfold").first.is_visible()
