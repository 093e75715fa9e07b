"""The page of a report: escaped, without script, accessible, fit for paper."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from leaderboard.report import file_name, read_criteria
from leaderboard.report.clauses import CLAUSES, FRAMEWORKS
from robustbench_med.bench.record import Stored
from tests.leaderboard.browser import Tags, needs_chromium, opened, violations
from tests.leaderboard.field import QUERIES, raised
from tests.leaderboard.planted import HOSTILE
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import TABLE, page, pair, written_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Maker = Callable[..., Stored]
EVIL = '"><img src=x onerror=alert(1)>' + HOSTILE


def test_hostile_names_stay_text(make_stored: Maker, tmp_path: Path, criteria: Path) -> None:
    provenance = make_stored([6]).record.provenance
    hostile = {name: EVIL for name in ("version", "git_commit", "platform", "command", "started")}
    records = []
    for stored in pair(make_stored, victim=(EVIL, EVIL, EVIL), pictures=1):
        record = stored.record
        cards = {
            "dataset_card": record.dataset_card.model_copy(
                update={
                    "title": EVIL,
                    "summary": EVIL,
                    "classes": (EVIL, "b"),
                    "url": "javascript:alert(1)",
                    "notes": (EVIL,),
                    "licence": EVIL,
                    "modality": EVIL,
                }
            ),
            "attack_card": record.attack_card.model_copy(update={"title": EVIL + record.case_id}),
            "provenance": provenance.model_copy(update=hostile),
        }
        flagged = raised(QUERIES.model_copy(update={"meaning": EVIL, "name": EVIL}))
        records.append(stored._replace(record=record.model_copy(update=cards | flagged)))
    criteria.write_text(TABLE.replace('name = "4.2"', f"name = '{EVIL}'"))
    renamed = criteria.rename(criteria.with_name("<script>alert(1).toml"))
    file = read_criteria(renamed)
    html = page(
        written_report(records, tmp_path / "out", victim=EVIL, criteria=file, unreadable=[EVIL])
    )
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "javascript:" not in html
    assert EVIL.replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;") in html
    for tag, attributes in Tags(html).tags:
        assert not any(key.startswith("on") for key in attributes)
        assert tag != "img" or attributes["src"].startswith("data:image/png;base64,")
    assert [path.name for path in (tmp_path / "out").glob("*.html")] == [
        f"report-{file_name(EVIL)}.html"
    ]


def test_the_page_runs_nothing_and_loads_nothing(make_stored: Maker, tmp_path: Path) -> None:
    html = page(written_report(pair(make_stored, pictures=1), tmp_path))
    tags = Tags(html).tags
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "http://" not in html
    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "form", "object"} == set()
    assert not any("style" in attributes for _, attributes in tags)


def test_sections_name_clauses_as_evidence_alone(make_stored: Maker, tmp_path: Path) -> None:
    html = page(written_report(pair(make_stored), tmp_path))
    headings = re.findall(r'<h2 id="(\w+)"><span class="secno">', html)
    assert set(headings) == set(CLAUSES)
    assert html.count('<p class="serves"><strong>Evidence for</strong>') == len(CLAUSES)
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).lower()
    assert "complian" not in text
    assert "certified" not in text
    assert "not a statement of conformity" in text
    assert "named for orientation" in text


def test_every_clause_is_of_an_edition_that_says_what_was_read_and_when(
    make_stored: Maker, tmp_path: Path
) -> None:
    written = written_report(pair(make_stored), tmp_path)
    html, text = page(written), unescape(re.sub(r"<[^>]+>", "", page(written)))
    editions = {framework.name: framework for framework in written.document.frameworks}
    assert list(editions) == [framework.name for framework in FRAMEWORKS]
    named = {(c.framework, c.clause) for clauses in CLAUSES.values() for c in clauses}
    assert {framework for framework, _ in named} == set(editions)
    for framework in editions.values():
        assert date.fromisoformat(framework.checked) >= date(2026, 11, 30)
        assert framework.url.startswith("https://")
        status = "Checked" if framework.read else "Not checked against the text"
        checked = f"{status}, as of {framework.checked}: {framework.basis}."
        assert f"{framework.name}: {framework.edition}. {checked}" in text
        assert f'href="{framework.url}"' in html
    # a standard that is sold was not read, and the page says so
    assert not editions["ISO 14971:2019"].read


def test_the_guidance_cited_is_the_one_in_force() -> None:
    (fda,) = [framework for framework in FRAMEWORKS if framework.name.startswith("FDA")]
    assert "Quality Management System Considerations" in fda.edition
    assert "3 February 2026" in fda.edition
    assert "2023" not in fda.edition
    (act,) = [framework for framework in FRAMEWORKS if framework.name == "EU AI Act"]
    assert "amended by Regulation (EU) 2026/1744" in act.edition


def test_ids_are_unique_and_references_resolve(make_stored: Maker, tmp_path: Path) -> None:
    tags = Tags(page(written_report(pair(make_stored), tmp_path))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        for key in ("href", "aria-labelledby"):
            if key in attributes and not attributes[key].startswith("https://"):
                assert attributes[key].removeprefix("#") in ids, (tag, attributes)


@pytest.mark.slow
@needs_chromium
def test_the_report_prints(chromium: Browser, make_stored: Maker, tmp_path: Path) -> None:
    written = written_report(pair(make_stored, pictures=1), tmp_path)
    with opened(chromium, written.html) as shown:
        pdf = shown.pdf(prefer_css_page_size=True)
    assert len(pdf) > 20_000
    assert re.search(rb"/MediaBox \[0 0 59[45][.\d]* 84[12][.\d]*\]", pdf)  # A4


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible_and_asks_for_nothing(
    chromium: Browser,
    make_stored: Maker,
    tmp_path: Path,
    criteria: Path,
    width: int,
    scheme: str,
) -> None:
    guard = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    file = read_criteria(criteria)
    written = written_report([*pair(make_stored, pictures=1), guard], tmp_path, criteria=file)
    look: dict[str, Any] = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with opened(chromium, written.html, bypass_csp=True, **look) as shown:
        assert violations(shown) == []
        assert shown.evaluate("document.documentElement.scrollWidth") <= width + 2
