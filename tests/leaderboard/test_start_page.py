"""The start page over the suites of a results folder: a row a suite, with links that lead there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

import leaderboard
from leaderboard.headline import headline_of
from robustbench_med.bench.record import Stored
from robustbench_med.cli import app

from .browser import Tags, needs_chromium, opened, violations
from .planted import VICTIMS
from .visible import visible_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Maker = Callable[..., Stored]


@pytest.fixture
def start(make_stored: Maker, tmp_path: Path) -> Path:
    """Return the start page of two suites; a case of one of them was not scored."""
    entries = []
    for name, breaks in (("quick", [6, 1, 1]), ("own & <b>", [1, 1, 1])):
        records = [make_stored(breaks, victim=victim) for victim in VICTIMS[:2]]
        leaderboard.publish(records, tmp_path / name[:5], title=name)
        boards = leaderboard.make_boards(records)
        missing = int(name == "quick")
        entry = leaderboard.suite_entry(boards, tmp_path / name[:5], title=name, not_scored=missing)
        assert entry.headline == headline_of(boards)
        entries.append(entry)
    return leaderboard.write_start_page(entries, tmp_path)


def test_each_suite_has_its_sentence_counts_date_and_link(start: Path) -> None:
    lines = visible_text(start.read_text(encoding="utf-8"))
    text = "\n".join(lines)
    for words in (
        "2 suites, 4 cases",
        "own & <b>",
        "Robustness of 2 models on phantoms of chest radiograph",
        "Classifiers are 100 % right when clean; 0 % right when an attacker",
        "1 case not scored: the page names them.",
        "2 models, 2 cases, 1 attack, 1 dataset, 1 board · run on 2026-01-15",
    ):
        assert words in text
    assert lines.index("own & <b>") < lines.index("quick")


def test_a_suite_without_a_readable_record_is_named_and_has_no_link(tmp_path: Path) -> None:
    entry = leaderboard.suite_entry([], tmp_path / "lost", title="Lost", not_scored=1)
    html = leaderboard.write_start_page([entry], tmp_path).read_text(encoding="utf-8")
    assert "This suite has no page, because none of its records can be read." in html
    links = [attributes["href"] for tag, attributes in Tags(html).tags if tag == "a"]
    assert all(link.startswith("#") for link in links)


def test_a_suite_with_a_page_of_studies_links_to_it(start: Path) -> None:
    assert "studies.html" not in start.read_text(encoding="utf-8")
    (start.parent / "quick" / "studies.html").write_text("")
    entry = leaderboard.suite_entry([], start.parent / "quick", title="Studies")
    html = leaderboard.write_start_page([entry], start.parent).read_text(encoding="utf-8")
    links = [attributes["href"] for tag, attributes in Tags(html).tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")] == ["quick/studies.html"]


def test_its_links_are_files_beside_it(start: Path) -> None:
    html = start.read_text(encoding="utf-8")
    links = [attributes["href"] for tag, attributes in Tags(html).tags if tag == "a"]
    files = [link for link in links if not link.startswith("#")]
    assert len(files) == 6
    assert all((start.parent / link).is_file() for link in files)
    assert "http" not in html.replace("http-equiv", "")
    (policy,) = [a["content"] for _, a in Tags(html).tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(
    chromium: Browser, start: Path, width: int
) -> None:
    with opened(chromium, start, viewport={"width": width, "height": 844}) as page:
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.locator("#theme").click()
        assert violations(page) == []


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("missing", "there is no such folder"),
        ("file.txt", "file.txt: a file"),
        ("empty", "got none: run a suite first"),
        ("one/case", "got that of one case: pass"),
    ],
)
def test_a_wrong_folder_gets_one_line(tmp_path: Path, folder: str, words: str) -> None:
    (tmp_path / "file.txt").write_text("no folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "case").mkdir(parents=True)
    (tmp_path / "one" / "case" / "record.json").write_text("{}")
    result = CliRunner().invoke(app, ["leaderboard", str(tmp_path / folder)])
    error = result.exception
    assert error is not None
    assert words in str(error)
    assert "\n" not in str(error)
