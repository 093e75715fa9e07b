"""The page in a browser: sort, filter, toggle, open, slide, download; keyboard, axe, payloads."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import leaderboard
from leaderboard.exports import csv_text
from robustbench_med.bench.record import Stored

from .browser import needs_chromium, opened, saved
from .planted import VICTIMS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

Maker = Callable[..., Stored]
pytestmark = needs_chromium
FUNDUS = "#phantom-fundus-linf-white-box-untargeted"
BRAIN = "#phantom-brain-linf-white-box-untargeted"


def names(board: Locator) -> list[str]:
    """Return the victims of a board as they stand, those that are seen."""
    return [text.strip() for text in board.locator("tbody:visible .open").all_inner_texts()]


def test_any_column_sorts_and_says_so(field_page: Page) -> None:
    board = field_page.locator(FUNDUS)
    heads = board.locator("thead th")
    ranked = board.locator("tbody[data-standing='ranked']")
    for column in [head.get_attribute("data-col") for head in heads.all()]:
        head, orders = board.locator(f"thead [data-col='{column}']"), []
        for _ in range(2):
            head.locator("button").click()
            orders.append(head.get_attribute("aria-sort"))
            assert board.locator("thead [aria-sort='none']").count() == heads.count() - 1
            cells = ranked.locator(f".main [data-col='{column}']")
            texts = [text.split("\n")[0].lower() for text in cells.all_inner_texts()]
            values = [text if column == "victim" else number(text) for text in texts]
            assert values == sorted(values, reverse=orders[-1] == "descending")
            # what is not ranked stays below, whatever the column
            last = board.locator("tbody[data-place]").last
            assert last.get_attribute("data-standing") == "flagged"
        assert sorted(filter(None, orders)) == ["ascending", "descending"]


def number(text: str) -> float:
    """Return the number a cell begins with: "1=", "87.5", "3/3"."""
    match = re.match(r"[\d.]+", text)
    assert match
    return float(match[0])


def test_the_keyboard_alone_sorts_opens_and_closes(field_page: Page) -> None:
    board = field_page.locator(FUNDUS)
    victim = board.locator("thead [data-col='victim'] button")
    victim.focus()
    field_page.keyboard.press("Enter")
    assert board.locator("thead [data-col='victim']").get_attribute("aria-sort") == "ascending"
    first = board.locator("tbody:visible .open").first
    first.focus()
    field_page.keyboard.press("Space")
    assert first.get_attribute("aria-expanded") == "true"
    panel = board.locator(f"[id='{first.get_attribute('aria-controls')}']")
    assert panel.is_visible()
    field_page.keyboard.press("Tab")  # the name, which leads to the model's card
    field_page.keyboard.press("Tab")
    assert field_page.evaluate("document.activeElement.closest('.drill') !== null")
    first.focus()
    field_page.keyboard.press("Enter")
    assert not panel.is_visible()
    # the menu of columns closes with Escape
    board.locator(".columns summary").focus()
    field_page.keyboard.press("Enter")
    assert board.locator(".columns input").first.is_visible()
    field_page.keyboard.press("Escape")
    assert not board.locator(".columns input").first.is_visible()
    radius = board.locator(".radius input").first
    radius.focus()
    field_page.keyboard.press("ArrowRight")
    assert board.locator("thead .eps").inner_text() == "1/255"


def test_the_tab_key_reaches_every_control_of_the_bar(field_page: Page) -> None:
    field_page.locator("#find").focus()
    reached = []
    for _ in range(6):
        reached.append(
            field_page.evaluate("document.activeElement.id || document.activeElement.dataset.save")
        )
        field_page.keyboard.press("Tab")
    assert reached == ["find", "task", "modality", "family", "csv", "json"]


def test_filters_choose_boards_and_rows(field_page: Page) -> None:
    count = field_page.locator(".filters .count")
    every = count.inner_text()
    assert re.fullmatch(r"\d+ boards, \d+ rows", every)
    field_page.locator("#task").select_option("segmentation")
    assert not field_page.locator(FUNDUS).is_visible()
    assert field_page.locator(BRAIN).is_visible()
    assert not field_page.locator(f"tr[data-board='{FUNDUS[1:]}']").is_visible()
    assert " of " in count.inner_text()
    field_page.locator("#modality").select_option("fundus photography")
    assert count.inner_text() == "No row matches these filters."
    assert field_page.locator(".board:visible").count() == 0
    field_page.locator("#task").select_option("")
    assert field_page.locator(FUNDUS).is_visible()
    assert names(field_page.locator(FUNDUS)) != ["ViT tiny"]
    field_page.locator("#family").select_option("ViT")
    assert names(field_page.locator(FUNDUS)) == ["ViT tiny"]
    field_page.locator("#reset").click()
    assert count.inner_text() == every
    assert field_page.evaluate("document.activeElement.id") == "find"
    field_page.locator("#find").fill("mobile v3")
    assert names(field_page.locator(FUNDUS)) == ["MobileNetV3 small"]
    assert not field_page.locator(BRAIN).is_visible()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "left"), [("undefended", 1), ("defended", 4), ("d0", 1), ("", 5)]
)
def test_the_filter_of_defenses_reaches_the_rows(shielded: Page, choice: str, left: int) -> None:
    shielded.locator("#defense").select_option(choice)
    assert shielded.locator("tbody[data-place]:visible").count() == left
    shielded.locator(".radius label").first.click()
    assert shielded.locator(".change").all_inner_texts() == ["+10.0"] * 4 if not choice else True


def test_columns_are_toggled(field_page: Page) -> None:
    board = field_page.locator(FUNDUS)
    board.locator(".columns summary").click()
    for box in board.locator(".columns input").all():
        column = box.get_attribute("value")
        cells = board.locator(f".ranking [data-col='{column}']")
        assert cells.first.is_visible()
        box.uncheck()
        assert not any(cell.is_visible() for cell in cells.all())
    assert board.locator(".ranking thead th:visible").count() == 3
    box.check()
    assert board.locator(".ranking thead th:visible").count() == 4


def test_a_row_opens_with_all_that_is_known_of_it(field_page: Page) -> None:
    board = field_page.locator(FUNDUS)
    button = board.locator(".open", has_text="MobileNetV3")
    button.click()
    row = board.locator("tbody", has=field_page.locator("[aria-expanded='true']"))
    panel = row.locator(".panel").inner_text()
    for words in (
        "Worst case by class, %",
        "Worst case by patient, 30 patients",
        "every image right",
        "Patients who lose most at ε = 2/255",
        "Paired tests on the same images, Holm-corrected",
        "Checks",
        "Budget audit",
        "Provenance",
        "python -m robustbench_med run quick --only resnet_narrow,pgd",
    ):
        assert words in panel
    assert field_page.url.endswith(f"{FUNDUS}--mobilenet-narrow")
    button.click()
    assert field_page.url.endswith(FUNDUS)


def test_a_deep_link_opens_its_row_whatever_is_filtered(
    chromium: Browser, mask_suite: Path
) -> None:
    anchor = f"{FUNDUS}--mobilenet-narrow"
    with opened(chromium, mask_suite, anchor) as page:
        assert page.locator(f"[id='{anchor[1:]}-drill']").is_visible()
        top = page.locator(f"[id='{anchor[1:]}']").bounding_box()
        assert top is not None
        assert 0 <= top["y"] < 400
        page.locator("#task").select_option("segmentation")
        page.evaluate("location.hash = ''")
        page.evaluate(f"location.hash = '{FUNDUS}--vit-tiny'")
        page.locator(f"[id='{FUNDUS[1:]}--vit-tiny-drill']").wait_for(state="visible")
        assert page.locator("#task").input_value() == ""
    with opened(chromium, mask_suite, "#no-such-board") as page:
        assert page.locator(".shown").count() == 0


@pytest.mark.parametrize("board", [FUNDUS, BRAIN])
def test_the_slider_moves_between_clean_and_attacked(field_page: Page, board: str) -> None:
    slide = field_page.locator(f"{board} .slide").first
    attacked = field_page.locator(f"{board} .pair .attacked img").first

    def cut() -> str:
        return str(attacked.evaluate("img => getComputedStyle(img).clipPath"))

    assert cut() == "inset(0px 0px 0px 50%)"
    slide.focus()
    field_page.keyboard.press("ArrowRight")
    assert cut() == "inset(0px 0px 0px 55%)"
    assert slide.get_attribute("aria-valuetext") == "55 % clean, 45 % attacked"
    slide.fill("0")
    assert cut() in ("inset(0px 0px 0px 0%)", "inset(0px)")
    pair = field_page.locator(f"{board} .pair").first
    boxes = [img.bounding_box() for img in pair.locator("img").all()]
    assert boxes[0] == boxes[1]
    assert re.search(r"change ×\d+", field_page.locator(f"{board} .picture").first.inner_text())


@pytest.mark.slow
def test_the_matrix_follows_the_radius(chromium: Browser, suite: Path) -> None:
    with opened(chromium, suite) as page:
        board = page.locator("#phantom-fundus-linf-transfer-untargeted")
        board.locator(".radius label").last.click()
        matrix = board.locator(".transfer")
        assert matrix.locator(".eps").inner_text() == "8/255"
        cells = matrix.locator("td[data-e]").all()
        assert len(cells) == 16
        for cell in cells:
            value = (cell.get_attribute("data-e") or "").split(";")[4].split(",")[0]
            assert cell.locator(".v").inner_text() == value
            marks = (cell.get_attribute("class") or "").split()
            assert [m for m in marks if m.startswith("heat")] == [
                f"heat{int(float(value) / 10 + 0.5)}"
            ]
            assert (cell.get_attribute("title") or "").count("95 % interval") == 1


@pytest.mark.slow
def test_a_radius_chosen_and_chosen_back_changes_no_number(
    chromium: Browser, make_stored: Maker, tmp_path: Path
) -> None:
    # 9, 5 and 1 of 16 are halves in the last decimal shown: 56.25 %, 31.25 %, 6.25 %
    fallen = [[6] * n + [1] * (16 - n) for n in (9, 5, 1)]
    records = [make_stored(b, victim=v) for b, v in zip(fallen, VICTIMS, strict=False)]
    records += [make_stored(fallen[0], surrogate=VICTIMS[1]), make_stored([6, 1], case={"n": 2})]
    path = leaderboard.publish(records, tmp_path, title="t")
    with opened(chromium, path) as page:
        cells = page.locator("td.num, td.cell")
        before = cells.all_inner_texts()
        assert "56.2" in " ".join(before)
        for board in page.locator(".board").all():
            board.locator(".radius label").last.click()
            board.locator(".radius label").nth(2).click()
        assert cells.all_inner_texts() == before


@pytest.mark.slow
def test_another_radius_is_written_as_the_board_writes_its_score(field_page: Page) -> None:
    board = field_page.locator(BRAIN)
    board.locator(".radius label").last.click()
    cells = board.locator("td.worst").all()
    assert len(cells) == 3
    for cell in cells:
        packed = (cell.get_attribute("data-e") or "").split(";")[-1]
        written = cell.locator(".v").inner_text()
        assert re.fullmatch(r"0\.\d{3}\N{NO-BREAK SPACE}Dice", written)
        assert written == f"{packed.split(',')[0]}\N{NO-BREAK SPACE}Dice"
    ranks = [cell.get_attribute("data-ranks") for cell in board.locator("td.rank").all()]
    shown = [text.rstrip("=") for text in board.locator("td.rank").all_inner_texts()]
    assert sorted(shown) == sorted((rank or "").split(",")[-1] or "–" for rank in ranks)


def test_csv_and_json_are_made_in_the_page(field_page: Page, masks: list[Stored]) -> None:
    data = json.loads(saved(field_page, "json"))
    lines = list(csv.DictReader(io.StringIO(saved(field_page, "csv"))))
    boards = leaderboard.make_boards(masks)
    assert [len(board["rows"]) for board in data["boards"]] == [len(b.rows) for b in boards]
    assert saved(field_page, "csv") == csv_text(boards)
    numbers = [row["worst_case"] for board in data["boards"] for row in board["rows"]]
    rows = [row for board in boards for row in board.rows]
    for exported, row in zip(numbers, rows, strict=True):
        values = [float("nan") if value is None else value for value, _, _ in exported]
        assert values == pytest.approx([e.value for e in row.worst], rel=1e-5, nan_ok=True)
    for board in boards:
        for row in board.rows:
            exported = [
                line
                for line in lines
                if (line["dataset"], line["threat"], line["objective"], line["victim_sha256"])
                == (board.dataset.name, board.threat, board.objective, row.key.weights)
                and line["victim"] == row.model.name
                and line["title"].lstrip("'") == row.title
                and line["channels"] == "+".join(f"{k}={v:g}" for k, v in board.channels.items())
                and line["attack"] == "worst_case"
                and float(line["eps"]) > 0
            ]
            values = [float(line["value"] or "nan") for line in exported]
            assert values == pytest.approx([e.value for e in row.worst], rel=1e-5, nan_ok=True)
            ranks = [int(float(line["rank"])) if line["rank"] else None for line in exported]
            assert ranks == list(row.ranks)


def test_bibtex_is_copied(field_page: Page) -> None:
    button = field_page.locator("footer .copy")
    button.click()
    field_page.wait_for_function(
        "/Copied|Selected/.test(document.querySelector('footer .copy').textContent)"
    )
    assert "@software{robustbench_med," in field_page.locator("footer pre").inner_text()
