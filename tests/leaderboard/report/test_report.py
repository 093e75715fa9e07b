"""The report: numbers, pointers, escaping, bytes; HTML and JSON say the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from leaderboard.report import Written, file_name, read_criteria, write_report
from leaderboard.report.clauses import CLAUSES, SHORT
from leaderboard.report.document import Report
from leaderboard.text import interval, number
from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from robustbench_med.errors import ResultsError, UnknownNameError
from tests.leaderboard.browser import Tags, chromium
from tests.leaderboard.field import QUERIES, raised
from tests.leaderboard.planted import HOSTILE, VICTIMS
from tests.leaderboard.planted_masks import make_masks
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import ACCURACY, SENSITIVITY, VICTIM, N, pair

Maker = Callable[..., Stored]
EVIL = '"><img src=x onerror=alert(1)>' + HOSTILE
TABLE = """
[[criteria]]
metric = "accuracy"
at_least = 0.1
eps = "2/255"
reason = "<script>alert(1)</script>"
[[criteria]]
name = "4.2"
metric = "sensitivity"
at_least = 0.99
eps = "2/255"
[[criteria]]
metric = "auc"
attack = "gone"
at_least = 0.5
eps = "2/255"
"""


@pytest.fixture
def criteria(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(TABLE)
    os.utime(path, (0, 0))
    return path


def made(records: list[Stored], out: Path, victim: str = VICTIM, **given: Any) -> Written:  # noqa: ANN401
    return write_report(
        records, victim=victim, base=Path(records[0].folder).parent, out=out, **given
    )


def page(written: Written) -> str:
    return written.html.read_text(encoding="utf-8")


def rows(html: str, table: str) -> list[list[str]]:
    """Return the cells of a table of the report, each the text of its parts."""
    inside = html[html.index(f'id="{table}"') :]
    inside = inside[inside.index("<tbody>") : inside.index("</tbody>")]
    found = []
    for row in re.findall(r"<tr.*?</tr>", inside, flags=re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        found.append([unescape(re.sub(r"<[^>]+>", " ", cell)).strip() for cell in cells])
    return found


def test_html_and_json_hold_the_same_numbers(make_stored: Maker, tmp_path: Path) -> None:
    written = made(pair(make_stored), tmp_path)
    held = json.loads(written.json.read_text())
    board = held["boards"][0]
    worst, *attacks = rows(page(written), "board-1-worst")
    assert [round(c["estimate"]["value"] * N) for c in board["worst"]["cells"]] == list(ACCURACY)
    lines = [board["worst"], *board["attacks"], *board["calls"], *board["flips"]]
    shown = [worst, *attacks, *rows(page(written), "board-1-calls")]
    assert len(lines) == len(shown) == 3 + 4
    document = Report.model_validate(held)
    every = document.boards[0]
    own = [every.worst, *every.attacks, *every.calls, *every.flips]
    for row, line in zip(shown, own, strict=True):
        assert line.title in row[0]
        cells = row[1:-1] if len(line.cells) == len(row) - 2 else row[2:-1]
        for text, cell in zip(cells, line.cells, strict=True):
            assert text.split()[0] == number(cell.estimate.value, line.kind)
            assert text.split()[-1] == interval(cell.estimate, line.kind)
            if cell.count is not None:
                assert f"{cell.count} of {line.n}" in text
    sensitivity = next(line for line in every.calls if line.name == "sensitivity")
    assert tuple(cell.count for cell in sensitivity.cells) == SENSITIVITY


def test_every_figure_points_at_a_record(make_stored: Maker, tmp_path: Path) -> None:
    records = pair(make_stored, pictures=2)
    written = made(records, tmp_path)
    html, document = page(written), written.document
    ids = {stored.record.case_id for stored in records}
    assert {reference.case_id for reference in document.records} == ids
    assert [reference.number for reference in document.records] == ["R1", "R2"]
    for reference in document.records:
        assert f'id="record-{reference.case_id}"' in html
        assert reference.path == f"{reference.case_id}/record.json"
    for board in document.boards:
        for line in (board.worst, *board.attacks, *board.calls, *board.flips):
            for cell in line.cells:
                assert cell.records
                assert set(cell.records) <= ids
    for table in ("board-1-worst", "board-1-calls"):
        assert all(re.search(r"R\d", row[-1]) for row in rows(html, table))
    captions = re.findall(r'<p class="soft">truth.*?</p>', html)
    assert len(captions) == 4
    assert all("#record-" in caption for caption in captions)


def test_ids_are_unique_and_references_resolve(make_stored: Maker, tmp_path: Path) -> None:
    tags = Tags(page(made(pair(make_stored), tmp_path))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        for key in ("href", "aria-labelledby"):
            if key in attributes and not attributes[key].startswith("https://"):
                assert attributes[key].removeprefix("#") in ids, (tag, attributes)


def test_the_same_records_give_the_same_bytes(
    make_stored: Maker, tmp_path: Path, criteria: Path
) -> None:
    records = [*pair(make_stored, pictures=1), make_stored([6, 1] * 10, victim=VICTIMS[1])]
    given = read_criteria(criteria)
    first = made(records, tmp_path / "a", criteria=given)
    second = made(records[::-1], tmp_path / "b", criteria=given)
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.json.read_bytes() == second.json.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "report-resnet_narrow.html",
        "report-resnet_narrow.json",
    ]


def test_the_json_is_standard_and_states_its_schema(make_stored: Maker, tmp_path: Path) -> None:
    written = made(pair(make_stored), tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    held = json.loads(written.json.read_text(), parse_constant=refuse)
    assert (held["format"], held["schema_version"]) == ("robustbench_med.report", 1)
    again = Report.model_validate_json(written.json.read_text())
    assert again.model_dump_json() == written.document.model_dump_json()


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
    given = read_criteria(renamed)
    html = page(made(records, tmp_path / "out", victim=EVIL, criteria=given, unreadable=[EVIL]))
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
    html = page(made(pair(make_stored, pictures=1), tmp_path))
    tags = Tags(html).tags
    (policy,) = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "http://" not in html
    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "form", "object"} == set()
    assert not any("style" in attributes for _, attributes in tags)


def test_sections_name_clauses_as_evidence_alone(make_stored: Maker, tmp_path: Path) -> None:
    html = page(made(pair(make_stored), tmp_path))
    headings = re.findall(r'<h2 id="(\w+)"><span class="secno">', html)
    assert set(headings) == set(CLAUSES)
    assert html.count('<p class="serves"><strong>Evidence for</strong>') == len(CLAUSES)
    for framework in SHORT:
        assert framework in html
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).lower()
    assert "complian" not in text
    assert "certified" not in text
    assert "not a statement of conformity" in text
    assert "named for orientation" in text
    named = {(c.framework, c.clause) for clauses in CLAUSES.values() for c in clauses}
    assert {clause for framework, clause in named if framework == "ISO 14971:2019"} == {
        f"clause {number}" for number in ("4.4", "4.5", "5", "6", "7", "8")
    }


def test_verdicts_are_counted_at_the_top(
    make_stored: Maker, tmp_path: Path, criteria: Path
) -> None:
    given = read_criteria(criteria)
    html = page(made(pair(make_stored), tmp_path, criteria=given))
    tally = re.sub(r"<[^>]+>|\s+", " ", html[html.index('class="tally"') :].split("</p>")[0])
    assert re.findall(r"(met|not met|not tested)\s+(\d)", tally) == [
        ("met", "1"),
        ("not met", "1"),
        ("not tested", "1"),
    ]
    assert given.sha256 in html
    assert "Written after the results" not in html
    assert "C2 not met: 4.2: sensitivity at least 0.99 (99 %)" in html
    os.utime(criteria, (4e9, 4e9))
    html = page(made(pair(make_stored), tmp_path, criteria=read_criteria(criteria)))
    assert "Written after the results" in html
    assert "No acceptance criteria were given" in page(made(pair(make_stored), tmp_path))


def test_detectors_show_both_kinds_of_attacker(make_stored: Maker, tmp_path: Path) -> None:
    known = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    written = made([known, blind], tmp_path)
    lines = {line.knowledge: line for line in written.document.boards[0].detectors}
    assert lines["adaptive"].metrics["auroc"].value == pytest.approx(0.7)
    assert lines["oblivious"].metrics["caught"].value == pytest.approx(0.8)
    assert lines["adaptive"].metrics["false_alarms"].value == pytest.approx(40)
    html = page(written)
    assert "0.700" in html
    assert "behind Mahalanobis" in html
    assert "No detector stood before the model" not in html
    assert "No detector stood before the model" in page(made(pair(make_stored), tmp_path))


def test_masks_have_regions_and_pictures(make_stored: Maker, tmp_path: Path) -> None:
    records = [
        make_masks(make_stored, [[0.9, 0.8, 0.7]] * 6, attack="pgd", pictures=2, patients=True),
        make_masks(make_stored, [[0.9, 0.6, 0.7]] * 6, attack="segpgd"),
    ]
    written = made(records, tmp_path, victim="unet_narrow")
    (board,) = written.document.boards
    lines = {line.name: line for line in board.regions}
    assert [c.estimate.value for c in lines["dice[tumour core]"].cells] == pytest.approx(
        [0.9, 0.6, 0.7]
    )
    at = lines["volume_error"].cells[1]
    assert at.estimate.value == pytest.approx(8.125 * 0.4)
    assert (at.by, at.records) == ("SegPGD", (records[1].record.case_id,))
    assert lines["lesion_miss"].cells[2].estimate.value == pytest.approx(0.15)
    assert board.calls == board.flips == ()
    html = page(written)
    assert "Lesions missed, %" in html
    assert "whole tumour" in html
    assert html.count('class="picture"') == 2


def test_flags_and_missing_pictures_are_said(make_stored: Maker, tmp_path: Path) -> None:
    flagged = make_stored([6] * N, attack="pgd", record=raised(QUERIES), over_budget=2)
    written = made([flagged], tmp_path, unreadable=["expected a readable record in x, got: y"])
    html = page(written)
    assert "measured 3 of 12 images, allowed 1" in html
    assert "2 images exceed their radius" in html
    assert "No pictures are stored with these records" in html
    assert "1 record in the folder could not be read" in html
    assert "B1</a> (flagged, 2 reasons)" in html


def test_what_could_not_be_scored_is_shown_as_such(make_stored: Maker, tmp_path: Path) -> None:
    broken = {"status": "invalid", "reason": "3 images gave NaN logits", "rungs": ()}
    invalid = make_stored([6] * N, record=broken | {"audit": None, "cost": None})
    written = made([invalid], tmp_path)
    (board,) = written.document.boards
    assert (board.standing, board.calls, board.flips, board.remaining) == ("invalid", (), (), None)
    html = page(written)
    assert "3 images gave NaN logits" in html
    assert "no valid record of an attacker" in html
    assert "<svg" not in html
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    written = made([blind], tmp_path)
    assert "attacked only as if it had no defense" in written.document.boards[0].doubts
    assert "an attacked image that is rejected counts as right" in page(written)


def test_records_on_the_disk_are_hashed(make_stored: Maker, tmp_path: Path) -> None:
    stored = make_stored([6] * N)
    home = store.write(tmp_path, stored.record, stored.samples, {})
    (reference,) = made([store.read(home)], tmp_path).document.records
    for name, found in (
        ("record.json", reference.record_sha256),
        ("samples.parquet", reference.samples_sha256),
    ):
        assert found == hashlib.sha256((home / name).read_bytes()).hexdigest()


def test_a_victim_without_records_lists_those_there_are(make_stored: Maker, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="expected a known victim with records, got 'res'"):
        made(pair(make_stored), tmp_path, victim="res")
    with pytest.raises(UnknownNameError, match="known: resnet_narrow"):
        made(pair(make_stored), tmp_path, victim="res")
    with pytest.raises(ResultsError, match="expected records to report on, got none"):
        write_report([], victim=VICTIM, base=tmp_path, out=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (apt install chromium)")
def test_the_report_prints(make_stored: Maker, tmp_path: Path) -> None:
    written = made(pair(make_stored, pictures=1), tmp_path)
    pdf = tmp_path / "report.pdf"
    chromium("--no-pdf-header-footer", f"--print-to-pdf={pdf}", written.html.as_uri())
    assert pdf.read_bytes()[:5] == b"%PDF-"
    assert pdf.stat().st_size > 20_000
    assert b"/MediaBox [0 0 594.95996 841.91998]" in pdf.read_bytes()  # A4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (apt install chromium)")
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible_and_asks_for_nothing(
    make_stored: Maker, tmp_path: Path, criteria: Path, width: int, scheme: str
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).with_name("axe.min.js")
    guard = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    given = read_criteria(criteria)
    written = made([*pair(make_stored, pictures=1), guard], tmp_path, criteria=given)
    asked: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        shown = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
        )
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(written.html.as_uri())
        shown.evaluate(axe.read_text(encoding="utf-8"))
        violations = shown.evaluate("axe.run()")["violations"]
        wide = shown.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert [violation["id"] for violation in violations] == []
    assert wide <= width + 2
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
