"""The page in a browser: axe-core, payloads, formulas, paper, no scripts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

import leaderboard
from robustbench_med.bench import store
from robustbench_med.bench.record import Check, Flag, Stored

from .browser import needs_chromium, opened, saved, violations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Maker = Callable[..., Stored]
pytestmark = [pytest.mark.slow, needs_chromium]
FUNDUS = "#phantom-fundus-linf-white-box-untargeted"
BRAIN = "#phantom-brain-linf-white-box-untargeted"


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
        for button in page.locator(".unfold:visible").all():  # on a phone boards are closed
            button.click()
        for button in page.locator(".open").all()[:3]:
            button.click()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 20)"
        assert dark == (theme == "dark")
        assert violations(page) == []
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wider <= 0  # only tables scroll sideways


def test_axe_is_awake(shielded: Page) -> None:
    shielded.evaluate(
        "document.querySelector('#find').closest('label').replaceWith(document.querySelector('#find'))"
    )
    shielded.evaluate("document.querySelector('#find').removeAttribute('placeholder')")
    assert any(line.startswith("label (critical)") for line in violations(shielded))


def test_the_theme_is_switched(shielded: Page) -> None:
    button = shielded.locator("#theme")
    before = button.inner_text()
    button.click()
    assert button.inner_text() != before
    assert violations(shielded) == []


def test_print_shows_every_board_and_no_control(field_page: Page) -> None:
    field_page.locator("#task").select_option("segmentation")
    field_page.locator(f"{BRAIN} .open").first.click()
    field_page.emulate_media(media="print")
    assert field_page.locator(FUNDUS).is_visible()
    for control in (".filters", ".controls", ".slide", ".copy", "#theme", ".top"):
        assert field_page.locator(f"{control}:visible").count() == 0
    assert field_page.locator(".drill:visible").count() == 1
    images = field_page.locator(".pair").first.locator("img").all()
    assert images[0].bounding_box() != images[1].bounding_box()  # side by side on paper
    assert len(field_page.pdf()) > 50_000


EVIL = '"><img src=x onerror="window.hacked=1;alert(1)"><script>window.hacked=1;alert(1)</script>'


def poisoned(value: Any) -> Any:  # noqa: ANN401
    """Return cards and records with the payload in every text field that may be any text."""
    fixed = {"task", "tasks", "norms", "threat", "schedule", "kind", "augment"}
    fixed |= {"precision", "returns", "weights_type"}
    if isinstance(value, dict):
        return {k: v if k in fixed else poisoned(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(poisoned(v) for v in value)
    return EVIL if isinstance(value, str) else value


def test_a_payload_in_every_field_executes_nothing(
    chromium: Browser, make_stored: Maker, tmp_path: Path
) -> None:
    flag = Flag(name=EVIL, meaning=EVIL, value=1, threshold=0)
    check = Check(name=EVIL, value=1, threshold=0)
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
        example.model_copy(
            update={"truth": EVIL, "clean_prediction": EVIL, "adversarial_prediction": EVIL}
        )
        for example in record.examples
    )
    record = record.model_copy(update=changes | {"examples": examples})
    transferred = make_stored([6, 1, 1], surrogate=(EVIL, EVIL, EVIL), record={"flags": (flag,)})
    path = leaderboard.publish([stored._replace(record=record), transferred], tmp_path, title=EVIL)
    with opened(chromium, path) as page:
        assert page.locator("img[src='x']").count() == 0
        for button in page.locator(".open").all():
            button.click()
        assert EVIL[:12] in page.locator("body").inner_text()
        assert EVIL in saved(page, "json").replace('\\"', '"')
        assert EVIL[2:14] in saved(page, "csv")
        page.wait_for_timeout(200)


def test_without_scripts_all_boards_can_be_read(chromium: Browser, mask_suite: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(mask_suite.as_uri())
    assert page.locator(FUNDUS).is_visible()
    assert not page.locator(".filters").is_visible()
    assert page.locator(f"{FUNDUS} .drill").first.is_visible()
    context.close()


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


@pytest.mark.parametrize("suite", ["quick", "segmentation"])
def test_axe_finds_nothing_serious_on_committed_records(
    chromium: Browser, tmp_path: Path, suite: str
) -> None:
    records, _ = store.read_all(Path(__file__).parents[2] / "results" / suite)
    path = leaderboard.publish(records, tmp_path, title=suite)
    with opened(chromium, path) as page:
        assert violations(page) == []
