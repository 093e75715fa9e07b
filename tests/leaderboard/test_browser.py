"""The page in a browser: sort, filter, toggle, open, slide, download; keyboard, axe, payloads."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

import leaderboard
from robustbench_med.bench import store
from robustbench_med.bench.record import Check, Flag, Stored

from .browser import browser, needs_chromium, opened, violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

Maker = Callable[..., Stored]
pytestmark = needs_chromium
FUNDUS = "#phantom-fundus-linf-white-box-untargeted"
BRAIN = "#phantom-brain-linf-white-box-untargeted"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def field(chromium: Browser, mask_suite: Path) -> Iterator[Page]:
    """Give the page of segmenters and classifiers under every threat model."""
    with opened(chromium, mask_suite) as page:
        yield page


@pytest.fixture
def shielded(chromium: Browser, shields: Path) -> Iterator[Page]:
    with opened(chromium, shields) as page:
        yield page


def names(board: Locator) -> list[str]:
    """Return the victims of a board as they stand, those that are seen."""
    return [text.strip() for text in board.locator("tbody:visible .open").all_inner_texts()]


def test_any_column_sorts_and_says_so(field: Page) -> None:
    board = field.locator(FUNDUS)
    heads = board.locator("thead th")
    ranked = board.locator("tbody[data-standing='ranked']")
    for column in [head.get_attribute("data-col") for head in heads.all()]:
        head, seen = board.locator(f"thead [data-col='{column}']"), []
        for _ in range(2):
            head.locator("button").click()
            seen.append(head.get_attribute("aria-sort"))
            assert board.locator("thead [aria-sort='none']").count() == heads.count() - 1
            cells = ranked.locator(f".main [data-col='{column}']")
            texts = [text.split("\n")[0].lower() for text in cells.all_inner_texts()]
            values = [text if column == "victim" else number(text) for text in texts]
            assert values == sorted(values, reverse=seen[-1] == "descending")
            # what is not ranked stays below, whatever the column
            last = board.locator("tbody[data-place]").last
            assert last.get_attribute("data-standing") == "flagged"
        assert sorted(filter(None, seen)) == ["ascending", "descending"]


def number(text: str) -> float:
    """Return the number a cell begins with: "1=", "87.5", "3/3"."""
    found = re.match(r"[\d.]+", text)
    assert found
    return float(found[0])


def test_the_keyboard_alone_sorts_opens_and_closes(field: Page) -> None:
    board = field.locator(FUNDUS)
    victim = board.locator("thead [data-col='victim'] button")
    victim.focus()
    field.keyboard.press("Enter")
    assert board.locator("thead [data-col='victim']").get_attribute("aria-sort") == "ascending"
    first = board.locator("tbody:visible .open").first
    first.focus()
    field.keyboard.press("Space")
    assert first.get_attribute("aria-expanded") == "true"
    panel = board.locator(f"[id='{first.get_attribute('aria-controls')}']")
    assert panel.is_visible()
    field.keyboard.press("Tab")
    assert field.evaluate("document.activeElement.closest('.drill') !== null")
    first.focus()
    field.keyboard.press("Enter")
    assert not panel.is_visible()
    # the menu of columns closes with Escape
    board.locator(".columns summary").focus()
    field.keyboard.press("Enter")
    assert board.locator(".columns input").first.is_visible()
    field.keyboard.press("Escape")
    assert not board.locator(".columns input").first.is_visible()
    radius = board.locator(".radius input").first
    radius.focus()
    field.keyboard.press("ArrowRight")
    assert board.locator("thead .eps").inner_text() == "1/255"


def test_the_tab_key_reaches_every_control_of_the_bar(field: Page) -> None:
    field.locator("#find").focus()
    reached = []
    for _ in range(6):
        reached.append(
            field.evaluate("document.activeElement.id || document.activeElement.dataset.save")
        )
        field.keyboard.press("Tab")
    assert reached == ["find", "task", "modality", "family", "csv", "json"]


def test_filters_choose_boards_and_rows(field: Page) -> None:
    count = field.locator(".filters .count")
    every = count.inner_text()
    assert re.fullmatch(r"\d+ boards, \d+ rows", every)
    field.locator("#task").select_option("segmentation")
    assert not field.locator(FUNDUS).is_visible()
    assert field.locator(BRAIN).is_visible()
    assert not field.locator(f"tr[data-board='{FUNDUS[1:]}']").is_visible()
    assert " of " in count.inner_text()
    field.locator("#modality").select_option("fundus photography")
    assert count.inner_text() == "nothing fits these filters"
    assert field.locator(".board:visible").count() == 0
    field.locator("#task").select_option("")
    assert field.locator(FUNDUS).is_visible()
    assert names(field.locator(FUNDUS)) != ["ViT tiny"]
    field.locator("#family").select_option("ViT")
    assert names(field.locator(FUNDUS)) == ["ViT tiny"]
    field.locator("#reset").click()
    assert count.inner_text() == every
    assert field.evaluate("document.activeElement.id") == "find"
    field.locator("#find").fill("mobile v3")
    assert names(field.locator(FUNDUS)) == ["MobileNetV3 small"]
    assert not field.locator(BRAIN).is_visible()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "left"), [("undefended", 1), ("defended", 4), ("d0", 1), ("", 5)]
)
def test_the_filter_of_defenses_reaches_the_rows(shielded: Page, choice: str, left: int) -> None:
    shielded.locator("#defense").select_option(choice)
    assert shielded.locator("tbody[data-place]:visible").count() == left
    shielded.locator(".radius label").first.click()
    assert shielded.locator(".change").all_inner_texts() == ["+10.0"] * 4 if not choice else True


def test_columns_are_toggled(field: Page) -> None:
    board = field.locator(FUNDUS)
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


def test_a_row_opens_with_all_that_is_known_of_it(field: Page) -> None:
    board = field.locator(FUNDUS)
    button = board.locator(".open", has_text="MobileNetV3")
    button.click()
    row = board.locator("tbody", has=field.locator("[aria-expanded='true']"))
    said = row.locator(".panel").inner_text()
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
        assert words in said
    assert field.url.endswith(f"{FUNDUS}--mobilenet-narrow")
    button.click()
    assert field.url.endswith(FUNDUS)


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
def test_the_slider_moves_between_clean_and_attacked(field: Page, board: str) -> None:
    slide = field.locator(f"{board} .slide").first
    attacked = field.locator(f"{board} .pair .attacked img").first

    def cut() -> str:
        return str(attacked.evaluate("img => getComputedStyle(img).clipPath"))

    assert cut() == "inset(0px 0px 0px 50%)"
    slide.focus()
    field.keyboard.press("ArrowRight")
    assert cut() == "inset(0px 0px 0px 55%)"
    assert slide.get_attribute("aria-valuetext") == "55 % clean, 45 % attacked"
    slide.fill("0")
    assert cut() in ("inset(0px 0px 0px 0%)", "inset(0px)")
    pair = field.locator(f"{board} .pair").first
    boxes = [img.bounding_box() for img in pair.locator("img").all()]
    assert boxes[0] == boxes[1]
    assert re.search(r"change ×\d+", field.locator(f"{board} .picture").first.inner_text())


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
            value = float((cell.get_attribute("data-e") or "").split(";")[4].split(",")[0])
            assert float(cell.locator(".v").inner_text()) == pytest.approx(100 * value, abs=0.06)
            marks = (cell.get_attribute("class") or "").split()
            assert [m for m in marks if m.startswith("heat")] == [f"heat{int(10 * value + 0.5)}"]
            assert (cell.get_attribute("title") or "").count("95 % interval") == 1


@pytest.mark.slow
def test_another_radius_is_written_as_the_board_writes_its_score(field: Page) -> None:
    board = field.locator(BRAIN)
    board.locator(".radius label").last.click()
    cells = board.locator("td.worst").all()
    assert len(cells) == 3
    for cell in cells:
        packed = (cell.get_attribute("data-e") or "").split(";")[-1]
        written = cell.locator(".v").inner_text()
        assert re.fullmatch(r"0\.\d{3}", written)
        assert float(written) == pytest.approx(float(packed.split(",")[0]), abs=6e-4)
    ranks = [cell.get_attribute("data-ranks") for cell in board.locator("td.rank").all()]
    shown = [text.rstrip("=") for text in board.locator("td.rank").all_inner_texts()]
    assert sorted(shown) == sorted((rank or "").split(",")[-1] or "–" for rank in ranks)


def saved(page: Page, kind: str) -> str:
    with page.expect_download() as waiting:
        page.locator(f"[data-save='{kind}']").click()
    assert waiting.value.suggested_filename == f"leaderboard-boards.{kind}"
    return Path(waiting.value.path()).read_text(encoding="utf-8")


def test_csv_and_json_are_made_in_the_page(field: Page, masks: list[Stored]) -> None:
    data = json.loads(saved(field, "json"))
    lines = list(csv.DictReader(io.StringIO(saved(field, "csv"))))
    made = leaderboard.boards(masks)
    assert [len(board["rows"]) for board in data["boards"]] == [len(b.rows) for b in made]
    expected = sum(1 + len(b.ladder) * (1 + len(row.scores)) for b in made for row in b.rows)
    assert len(lines) == expected
    assert {tuple(line) for line in lines} == {tuple(lines[0])}
    for board in made:
        for row in board.rows:
            own = [
                line
                for line in lines
                if (line["dataset"], line["threat"], line["objective"], line["weights_sha256"])
                == (board.dataset.name, board.threat, board.objective, row.key.weights)
                and line["victim"] == row.model.name
                and line["title"].lstrip("'") == row.title
                and line["channels"] == "+".join(f"{k}={v:g}" for k, v in board.channels.items())
                and line["attack"] == "worst_case"
            ]
            values = [float(line["value"] or "nan") for line in own]
            assert values == pytest.approx([e.value for e in row.worst], rel=1e-5, nan_ok=True)
            ranks = [int(line["rank"]) if line["rank"] else None for line in own]
            assert ranks == list(row.ranks)


def test_bibtex_is_copied(field: Page) -> None:
    button = field.locator("footer .copy")
    button.click()
    field.wait_for_function(
        "/Copied|Selected/.test(document.querySelector('footer .copy').textContent)"
    )
    assert "@software{robustbench_med," in field.locator("footer pre").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "width", "theme"),
    [
        ("mask_suite", 1400, "dark"),
        ("mask_suite", 420, "light"),
        *(("shields", width, theme) for width in (1400, 420) for theme in ("light", "dark")),
    ],
)
def test_axe_finds_nothing_serious(
    chromium: Browser,
    which: str,
    theme: Literal["light", "dark"],
    width: int,
    request: pytest.FixtureRequest,
) -> None:
    path: Path = request.getfixturevalue(which)
    size = {"width": width, "height": 900}
    with opened(chromium, path, color_scheme=theme, viewport=size) as page:
        for button in page.locator(".open").all()[:3]:
            button.click()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 20)"
        assert dark == (theme == "dark")
        assert violations(page) == []
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wider <= 0  # only tables scroll sideways


@pytest.mark.slow
def test_axe_is_awake(shielded: Page) -> None:
    shielded.evaluate(
        "document.querySelector('#find').closest('label').replaceWith(document.querySelector('#find'))"
    )
    shielded.evaluate("document.querySelector('#find').removeAttribute('placeholder')")
    assert any(line.startswith("label (critical)") for line in violations(shielded))


@pytest.mark.slow
def test_the_theme_is_switched(shielded: Page) -> None:
    button = shielded.locator("#theme")
    before = button.inner_text()
    button.click()
    assert button.inner_text() != before
    assert violations(shielded) == []


@pytest.mark.slow
def test_print_shows_every_board_and_no_control(field: Page) -> None:
    field.locator("#task").select_option("segmentation")
    field.locator(f"{BRAIN} .open").first.click()
    field.emulate_media(media="print")
    assert field.locator(FUNDUS).is_visible()
    for control in (".filters", ".controls", ".slide", ".copy", "#theme", ".top"):
        assert field.locator(f"{control}:visible").count() == 0
    assert field.locator(".drill:visible").count() == 1
    images = field.locator(".pair").first.locator("img").all()
    assert images[0].bounding_box() != images[1].bounding_box()  # side by side on paper
    assert len(field.pdf()) > 50_000


EVIL = '"><img src=x onerror="window.hacked=1;alert(1)"><script>window.hacked=1;alert(1)</script>'


def poisoned(value: Any) -> Any:  # noqa: ANN401
    """Return cards and records with the payload in every text field that may be any text."""
    fixed = {"task", "tasks", "norms", "threat", "rungs", "augment", "precision"}
    if isinstance(value, dict):
        return {k: v if k in fixed else poisoned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(v) for v in value)
    return EVIL if isinstance(value, str) else value


@pytest.mark.slow
def test_a_payload_in_every_field_executes_nothing(
    chromium: Browser, make_stored: Maker, tmp_path: Path
) -> None:
    flag = Flag(name=EVIL, meaning=EVIL, measured=1, threshold=0)
    check = Check(name=EVIL, measured=1, threshold=0)
    stored = make_stored(
        [6, 1, 1],
        victim=(EVIL, EVIL, EVIL),
        pictures=1,
        case={"parameters": {EVIL: EVIL}, "defense": EVIL},
        record={"flags": (flag,), "checks": (check,), "notes": (EVIL,)},
    )
    record = stored.record
    changes = {
        field: type(card).model_validate(poisoned(card.model_dump()))
        for field in ("dataset_card", "model_card", "attack_card", "provenance")
        if (card := getattr(record, field)) is not None
    }
    examples = tuple(
        one.model_copy(
            update={"truth": EVIL, "clean_prediction": EVIL, "adversarial_prediction": EVIL}
        )
        for one in record.examples
    )
    record = record.model_copy(update=changes | {"examples": examples})
    other = make_stored([6, 1, 1], surrogate=(EVIL, EVIL, EVIL), record={"flags": (flag,)})
    path = leaderboard.publish([stored._replace(record=record), other], tmp_path, title=EVIL)
    with opened(chromium, path) as page:
        assert page.locator("img[src='x']").count() == 0
        for button in page.locator(".open").all():
            button.click()
        assert EVIL[:12] in page.locator("body").inner_text()
        assert EVIL in saved(page, "json").replace('\\"', '"')
        assert EVIL[2:14] in saved(page, "csv")
        page.wait_for_timeout(200)


@pytest.mark.slow
def test_without_scripts_all_boards_can_be_read(chromium: Browser, mask_suite: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(mask_suite.as_uri())
    assert page.locator(FUNDUS).is_visible()
    assert not page.locator(".filters").is_visible()
    assert page.locator(f"{FUNDUS} .drill").first.is_visible()
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("first", "=+-@")
def test_no_cell_of_the_csv_is_a_formula(
    chromium: Browser, make_stored: Maker, tmp_path: Path, first: str
) -> None:
    title = f'{first}HYPERLINK("x", "y")'
    path = leaderboard.publish([make_stored([6, 1], victim=("m", title, "f"))], tmp_path, title="t")
    with opened(chromium, path) as page:
        lines = list(csv.DictReader(io.StringIO(saved(page, "csv"))))
        assert {line["title"] for line in lines} == {f"'{title}"}
        assert json.loads(saved(page, "json"))["boards"][0]["rows"][0]["title"] == title


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["quick", "segmentation"])
def test_axe_finds_nothing_serious_on_committed_records(
    chromium: Browser, tmp_path: Path, suite: str
) -> None:
    records, _ = store.read_all(Path(__file__).parents[2] / "results" / suite)
    path = leaderboard.publish(records, tmp_path, title=suite)
    with opened(chromium, path) as page:
        assert violations(page) == []
