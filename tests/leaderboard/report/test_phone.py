"""On a phone and on paper the report shows the numbers it shows on a wide screen, each by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from leaderboard.report import CriteriaFile, read_criteria, write_report
from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from tests.leaderboard.browser import needs_chromium, opened
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import TABLE, VICTIM, pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Maker = Callable[..., Stored]
RESULTS = Path(__file__).parents[3] / "results"
PHONE, WIDE = 390, 1280
# the numbers of every table as a person meets them: row, heading of the column, text
_CELLS = """
() => [...document.querySelectorAll("table")].map((table, place) => {
  const heads = [...table.querySelectorAll("thead th")];
  const shown = (e) => e.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })
    && e.getBoundingClientRect().width > 0;
  return [...table.querySelectorAll("tbody tr")].flatMap((row, line) => {
    let column = 0;
    return [...row.children].map((cell) => {
      const at = column;
      column += cell.colSpan;
      const before = getComputedStyle(cell, "::before").content;
      const head = heads[at] && shown(heads[at]) ? heads[at].innerText
        : before === "none" ? "" : before.slice(1, -1);
      const box = cell.getBoundingClientRect();
      return { table: place, row: line, column: at,
               head: cell.tagName === "TH" ? "" : head.replace(/\\s+/g, " ").trim(),
               text: shown(cell) ? cell.innerText.replace(/\\s+/g, " ").trim() : "",
               left: box.left, right: box.left + Math.max(box.width, cell.scrollWidth) };
    });
  });
}).flat()
"""
# all else that is read: no figure of a list or a paragraph may go either
_WORDS = """
() => [...document.querySelectorAll("main :is(p, li, dd, dt, figcaption, h1, h2, h3, caption)")]
  .map((e) => e.innerText.replace(/\\s+/g, " ").trim())
"""


class Shown(NamedTuple):
    """What a person sees of a cell, and where."""

    table: int
    row: int
    column: int
    head: str
    text: str


def cells(page: Page) -> list[Shown]:
    """Return the cells with a text, in the order of the page."""
    boxes: list[dict[str, Any]] = page.evaluate(_CELLS)
    return [Shown(*(box[key] for key in Shown._fields)) for box in boxes if box["text"]]


def of_suite(suite: str, victim: str) -> list[Stored]:
    """Return the committed records of a victim."""
    records, _ = store.read_all(RESULTS / suite)
    return [stored for stored in records if stored.record.case.victim == victim]


def labels(make: Maker, path: Path) -> tuple[list[Stored], str, CriteriaFile | None]:
    path.write_text(TABLE)
    return pair(make, pictures=1), VICTIM, read_criteria(path)


def guarded(make: Maker, path: Path) -> tuple[list[Stored], str, CriteriaFile | None]:
    del path
    return [wrapped(make, WRAPPED, GUARD, record=detecting(0.7, 0.1))], VICTIM, None


def committed(
    suite: str, victim: str
) -> Callable[[Maker, Path], tuple[list[Stored], str, CriteriaFile | None]]:
    return lambda make, path: (of_suite(suite, victim), victim, None)


REPORTS = {
    "labels": labels,
    "planted detector": guarded,
    "findings": committed("quick", "chest_findings_resnet"),
    "masks": committed("quick", "organs_unet"),
    "volumes": committed("quick", "volume_unet"),
    "transforms": committed("defenses", "fundus_resnet"),
    "detectors": committed("defenses", "chest_resnet"),
    "certified": committed("defenses", "chest_resnet_gaussian_noise"),
}


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("kind", REPORTS)
def test_a_phone_shows_every_number_under_its_own_heading(
    chromium: Browser, make_stored: Maker, tmp_path: Path, kind: str
) -> None:
    records, victim, criteria = REPORTS[kind](make_stored, tmp_path / "plan.toml")
    base = Path(records[0].folder).parent
    written = write_report(records, victim=victim, base=base, out=tmp_path, criteria=criteria)
    by_width, words = {}, {}
    for width in (WIDE, PHONE):
        with opened(chromium, written.html, viewport={"width": width, "height": 844}) as page:
            by_width[width], words[width] = cells(page), page.evaluate(_WORDS)
            boxes = page.evaluate(_CELLS)
            # nothing has to be pushed into sight
            assert max(box["right"] for box in boxes) <= width
            assert min(box["left"] for box in boxes) >= 0
    assert by_width[PHONE] == by_width[WIDE]
    assert words[PHONE] == words[WIDE]
    headed = [line for line in by_width[PHONE] if line.head]
    assert {"Clean", "Worst case"} <= {line.head for line in headed}


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [320, PHONE, 430, 641, WIDE])
def test_the_worst_case_stands_under_worst_case(
    chromium: Browser, make_stored: Maker, tmp_path: Path, width: int
) -> None:
    written = write_report(
        pair(make_stored), victim=VICTIM, base=tmp_path, out=tmp_path, criteria=None
    )
    (board,) = written.document.boards
    worst = board.worst.cells
    expected = {"Clean": worst[0], "Worst case": worst[board.headline + 1]}
    with opened(chromium, written.html, viewport={"width": width, "height": 844}) as page:
        top = [line for line in cells(page) if line.table == 0]
    for head, cell in expected.items():
        (text,) = [line.text for line in top if line.head == head]
        assert float(text.split()[0]) == pytest.approx(100 * cell.estimate.value, abs=0.05)
    assert expected["Clean"].estimate.value != expected["Worst case"].estimate.value


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("kind", ["labels", "masks", "detectors"])
def test_paper_shows_every_number(
    chromium: Browser, make_stored: Maker, tmp_path: Path, kind: str
) -> None:
    records, victim, criteria = REPORTS[kind](make_stored, tmp_path / "plan.toml")
    base = Path(records[0].folder).parent
    written = write_report(records, victim=victim, base=base, out=tmp_path, criteria=criteria)
    with opened(chromium, written.html, viewport={"width": WIDE, "height": 844}) as page:
        screen = cells(page)
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 680, "height": 960})  # A4 within its margins
        assert cells(page) == screen
        assert max(line["right"] for line in page.evaluate(_CELLS)) < 681
