"""The report: numbers, pointers, bytes; HTML and JSON say the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from leaderboard.boards.board import Board
from leaderboard.report import Written, read_criteria, write_report
from leaderboard.report.document import Report
from leaderboard.wording.score import score_of
from leaderboard.wording.text import interval, number
from robustbench_med.bench import store
from robustbench_med.bench.checks import NAMES
from robustbench_med.bench.pack import pack
from robustbench_med.bench.record import Certificate, Flag, Stored
from robustbench_med.errors import ResultsError, UnknownNameError
from robustbench_med.stats import Estimate
from tests.leaderboard.field import QUERIES, raised
from tests.leaderboard.planted import DATASETS, VICTIMS
from tests.leaderboard.planted_masks import make_masks
from tests.leaderboard.planted_shields import GUARD, WRAPPED, detecting, wrapped

from .planted import ACCURACY, SENSITIVITY, TABLE, VICTIM, N, page, pair, rows, written_report
from .test_worst_case import TARGETED, graded

Maker = Callable[..., Stored]


def test_html_and_json_hold_the_same_numbers(make_stored: Maker, tmp_path: Path) -> None:
    written = written_report(pair(make_stored), tmp_path)
    held = json.loads(written.json.read_text())
    board = held["boards"][0]
    worst, *attacks = rows(page(written), "board-1-worst")
    assert [round(c["estimate"]["value"] * N) for c in board["worst"]["cells"]] == list(ACCURACY)
    lines = [board["worst"], *board["attacks"], *board["calls"], *board["flips"]]
    shown = [worst, *attacks, *rows(page(written), "board-1-calls")]
    assert len(lines) == len(shown) == 3 + 4
    document = Report.model_validate(held)
    every = document.boards[0]
    lines = [every.worst, *every.attacks, *every.calls, *every.flips]
    for row, line in zip(shown, lines, strict=True):
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
    written = written_report(records, tmp_path)
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


def test_the_same_records_give_the_same_bytes(
    make_stored: Maker, tmp_path: Path, criteria: Path
) -> None:
    records = [*pair(make_stored, pictures=1), make_stored([6, 1] * 10, victim=VICTIMS[1])]
    file = read_criteria(criteria)
    first = written_report(records, tmp_path / "a", criteria=file)
    second = written_report(records[::-1], tmp_path / "b", criteria=file)
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.json.read_bytes() == second.json.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "report-resnet_narrow.html",
        "report-resnet_narrow.json",
    ]


def test_the_json_is_standard_and_states_its_schema(make_stored: Maker, tmp_path: Path) -> None:
    written = written_report(pair(make_stored), tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    held = json.loads(written.json.read_text(), parse_constant=refuse)
    assert (held["format"], held["schema_version"]) == ("robustbench_med.report", 2)
    again = Report.model_validate_json(written.json.read_text())
    assert again.model_dump_json() == written.document.model_dump_json()


def test_verdicts_are_counted_at_the_top(
    make_stored: Maker, tmp_path: Path, criteria: Path
) -> None:
    file = read_criteria(criteria)
    html = page(written_report(pair(make_stored), tmp_path, criteria=file))
    tally = re.sub(r"<[^>]+>|\s+", " ", html[html.index('class="tally"') :].split("</p>")[0])
    assert re.findall(r"(met|not met|not tested)\s+(\d)", tally) == [
        ("met", "1"),
        ("not met", "1"),
        ("not tested", "1"),
    ]
    assert file.sha256 in html
    assert "Written after the results" not in html
    assert "C2 not met: 4.2: sensitivity at least 0.99 (99 %)" in html
    os.utime(criteria, (4e9, 4e9))
    html = page(written_report(pair(make_stored), tmp_path, criteria=read_criteria(criteria)))
    assert "Written after the results" in html
    assert "No acceptance criteria were given" in page(written_report(pair(make_stored), tmp_path))


def test_detectors_show_both_kinds_of_attacker(make_stored: Maker, tmp_path: Path) -> None:
    known = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    written = written_report([known, blind], tmp_path)
    lines = {line.knowledge: line for line in written.document.boards[0].detectors}
    assert lines["adaptive"].metrics["auroc"].value == pytest.approx(0.7)
    assert lines["oblivious"].metrics["detected"].value == pytest.approx(0.8)
    assert lines["adaptive"].metrics["false_alarms"].value == pytest.approx(40)
    html = page(written)
    assert "0.700" in html
    assert "behind Mahalanobis" in html
    assert "No record is of this model behind a detector" not in html
    assert "No record is of this model behind a detector" in page(
        written_report(pair(make_stored), tmp_path)
    )


def test_masks_have_regions_and_pictures(make_stored: Maker, tmp_path: Path) -> None:
    records = [
        make_masks(make_stored, [[0.9, 0.8, 0.7]] * 6, attack="pgd", pictures=2, patients=True),
        make_masks(make_stored, [[0.9, 0.6, 0.7]] * 6, attack="segpgd"),
    ]
    written = written_report(records, tmp_path, victim="unet_narrow")
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


def test_attacks_that_are_tied_for_strongest_are_all_named(
    make_stored: Maker, tmp_path: Path
) -> None:
    breaks = [1] * 4 + [6] * (N - 4)
    names = ["fgsm", "bim", "pgd", "segpgd", "fmn"]
    tied = [make_stored(breaks, attack=name) for name in names]
    for count, words in ((1, "FGSM"), (2, "BIM; FGSM"), (5, "BIM; FGSM; FMN and 2 more")):
        board = written_report(tied[:count], tmp_path).document.boards[0]
        by = {cell.by for cell in board.worst.cells if cell.eps}
        assert {"; ".join(sorted(name.split("; "))) for name in by} == {words}
    weaker = make_stored([6] * N, attack="uap")
    board = written_report([tied[0], weaker], tmp_path).document.boards[0]
    assert {cell.by for cell in board.worst.cells if cell.eps} == {"FGSM"}


def test_records_that_are_tied_on_a_metric_of_masks_are_all_named(
    make_stored: Maker, tmp_path: Path
) -> None:
    records = [
        make_masks(make_stored, [[0.9, 0.6, 0.7]] * 6, attack=name) for name in ("pgd", "segpgd")
    ]
    (board,) = written_report(records, tmp_path, victim="unet_narrow").document.boards
    clean, at, *_ = next(line for line in board.regions if line.name == "volume_error").cells
    assert at.by == "PGD-40; SegPGD"
    assert set(at.records) == {stored.record.case_id for stored in records}
    assert (clean.by, len(clean.records)) == ("", 1)  # no attack acts on the clean image


def test_flags_and_missing_pictures_are_said(make_stored: Maker, tmp_path: Path) -> None:
    flagged = make_stored([6] * N, attack="pgd", record=raised(QUERIES), over_budget=2)
    written = written_report(
        [flagged], tmp_path, unreadable=["expected a readable record in x, got: y"]
    )
    html = page(written)
    assert "measured 3 of 12 images, allowed 1" in html
    assert "2 images exceed their radius" in html
    assert "These records have no pictures" in html
    assert "1 record in the folder could not be read.</strong>" in html
    assert html.index("expected a readable record in x, got: y") < html.index('id="identity"')
    held = json.loads(written.json.read_text())
    assert held["unreadable"] == ["expected a readable record in x, got: y"]
    assert "B1</a> (flagged, 2 reasons)" in html


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_is_said_where_the_worst_case_stands(
    make_stored: Maker, tmp_path: Path, name: str
) -> None:
    """Of gradients that lie and of every other flag: beside the number, not on another page."""
    flag = Flag(name=name, meaning="The gradients lie.", value=1.0, threshold=0.0)
    fine, lying = (
        page(written_report([make_stored([6] * N, attack="pgd", record=record)], tmp_path / folder))
        for folder, record in (("fine", {}), ("lying", {"flags": (flag,)}))
    )
    (row,) = _glance(lying)
    assert "flagged" in row
    assert "doubted" in row
    assert "The gradients lie (measured" in row
    assert "Worst case" in row
    assert "doubted" not in _glance(fine)[0]
    board = lying[lying.index('id="board-1"') :]
    assert board.index("The gradients lie (measured") < board.index('id="board-1-worst"')
    assert "Doubted figures: " in lying
    assert "Doubted figures: " not in fine


def _glance(html: str) -> list[str]:
    """Return the rows of the overview, each with the number of its worst case."""
    table = html[html.index('class="metrics evidence overview"') :].split("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", table[table.index("<tbody>") :], flags=re.DOTALL)
    return [row for row in rows if 'data-label="Worst case"' in row]


def test_what_could_not_be_read_doubts_every_verdict(
    make_stored: Maker, tmp_path: Path, criteria: Path
) -> None:
    """The record lost may be of the attack that breaks most."""
    file = read_criteria(criteria)
    whole = written_report(pair(make_stored), tmp_path, criteria=file)
    assert whole.document.criteria is not None
    assert not any(criterion.doubted for criterion in whole.document.criteria.judged)
    assert whole.document.unreadable == ()
    assert "no doubt raised" in page(whole)
    written = written_report(pair(make_stored), tmp_path, criteria=file, unreadable=["x", "y"])
    assert written.document.criteria is not None
    assert all(criterion.doubted for criterion in written.document.criteria.judged)
    html = page(written)
    assert "2 records in the folder could not be read and may be about this model" in html
    assert "no doubt raised" not in html


def test_calls_that_no_attack_aims_at_are_said_to_be_no_worst_case(
    make_stored: Maker, tmp_path: Path
) -> None:
    written = written_report([graded(make_stored, 1)], tmp_path / "a")
    (board,) = written.document.boards
    aimed = {line.name: line.aimed for line in (*board.calls, *board.flips)}
    assert [name for name, held in aimed.items() if not held] == ["sensitivity", "flips_to_normal"]
    assert len(board.unaimed) == 1
    html = page(written)
    assert html.count("no attack aims at it, so it is not a worst case") == 2
    assert "The marked rows are not a worst case" in html
    assert "--objective &#39;targeted(target=0)&#39;" in html
    records = [graded(make_stored, 1), graded(make_stored, 0, case=TARGETED)]
    written = written_report(records, tmp_path / "b")
    for board in written.document.boards:  # both hold what either attack lowers
        assert board.unaimed == ()
        lines = {line.name: line for line in board.calls}
        assert lines["sensitivity"].cells[1].estimate.value == 0
        assert set(lines["sensitivity"].cells[1].records) == {r.record.case_id for r in records}
    assert "no attack aims at it" not in page(written)


def test_a_clean_score_that_is_1_by_construction_is_left_out(
    make_stored: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = replace(score_of(DATASETS[1], "untargeted"), clean="")
    monkeypatch.setattr(Board, "score", property(lambda _: scored))
    written = written_report(pair(make_stored), tmp_path)
    (board,) = written.document.boards
    assert [cell.eps for cell in board.worst.cells] == list(board.ladder)
    (row,) = [row for row in rows(page(written), "board-1-worst") if "Worst case" in row[0]]
    assert row[1] == "–"
    worst = f"{100 * ACCURACY[board.headline + 1] / N:.1f}"
    glance = page(written).split('class="metrics evidence overview"')[1].split("</table>")[0]
    assert f'<span class="v">{worst}</span>' in glance


def test_the_report_is_made_again_by_its_command(make_stored: Maker, tmp_path: Path) -> None:
    base, path = tmp_path / "my records", tmp_path / "it's a plan.toml"
    base.mkdir()
    path.write_text(TABLE)
    records = [store.read(store.write(base, s.record, s.samples, {})) for s in pair(make_stored)]
    file = read_criteria(path)
    command = written_report(records, tmp_path, criteria=file).document.command
    words = ["report", "--victim", VICTIM, str(base), "--criteria", str(path)]
    assert shlex.split(command) == ["python", "-m", "robustbench_med", *words]


def test_what_could_not_be_scored_is_shown_as_such(make_stored: Maker, tmp_path: Path) -> None:
    broken = {"status": "invalid", "reason": "3 images gave NaN logits", "rungs": ()}
    invalid = make_stored([6] * N, record=broken | {"audit": None, "cost": None})
    written = written_report([invalid], tmp_path)
    (board,) = written.document.boards
    assert (board.standing, board.calls, board.flips, board.remaining) == ("invalid", (), (), None)
    html = page(written)
    assert "3 images gave NaN logits" in html
    assert "no valid record is of an attacker" in html
    assert "<svg" not in html
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    written = written_report([blind], tmp_path)
    assert "all attacks ignored the defense (oblivious)" in written.document.boards[0].doubts
    assert "an attacked image that is rejected counts as right" in page(written)


def test_records_on_the_disk_are_hashed(make_stored: Maker, tmp_path: Path) -> None:
    stored = make_stored([6] * N)
    home = store.write(tmp_path, stored.record, stored.samples, {})
    (reference,) = written_report([store.read(home)], tmp_path).document.records
    for name, digest in (
        ("record.json", reference.record_sha256),
        ("samples.parquet", reference.samples_sha256),
    ):
        assert digest == hashlib.sha256((home / name).read_bytes()).hexdigest()


def test_packed_records_are_named_by_the_files_that_are_hashed(
    make_stored: Maker, tmp_path: Path
) -> None:
    stored = make_stored([6] * N)
    home = store.write(tmp_path, stored.record, stored.samples, {})
    pack(tmp_path)
    written = written_report([store.read(home)], tmp_path)
    (reference,) = written.document.records
    assert (reference.path, reference.samples_path) == ("records.jsonl.gz", "all_samples.parquet")
    samples = (tmp_path / reference.samples_path).read_bytes()
    assert reference.samples_sha256 == hashlib.sha256(samples).hexdigest()
    assert f"all_samples.parquet {reference.samples_sha256}" in plain_text(written)


def test_a_victim_without_records_lists_those_there_are(make_stored: Maker, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="expected a known victim with records, got 'res'"):
        written_report(pair(make_stored), tmp_path, victim="res")
    with pytest.raises(UnknownNameError, match="known: resnet_narrow"):
        written_report(pair(make_stored), tmp_path, victim="res")
    with pytest.raises(ResultsError, match="expected records to report on, got none"):
        write_report([], victim=VICTIM, base=tmp_path, out=tmp_path)


def plain_text(written: Written) -> str:
    """Return the words of a report on one line."""
    bare = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page(written), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(bare))


@pytest.mark.parametrize(
    ("norm", "sentences"),
    [
        ("linf", "ε is the largest change of a value, as a part of the range (L∞)."),
        ("l2", "ε is the root of the sum of all squared changes (L2), for values from 0 to 1."),
        ("l1", "ε is the sum of all changes (L1), for values from 0 to 1."),
        ("l0", "ε is the number of changed values (L0), which are pixels times channels."),
    ],
)
def test_a_table_says_what_its_radii_are(
    make_stored: Maker, tmp_path: Path, norm: str, sentences: str
) -> None:
    written = written_report([make_stored([6] * N, case={"norm": norm})], tmp_path)
    assert sentences in plain_text(written)


def test_radii_stand_in_the_units_of_the_data(make_stored: Maker, tmp_path: Path) -> None:
    card = DATASETS[1].model_copy(update={"native_range": "HU -160..240"})
    written = written_report(pair(make_stored, dataset=card), tmp_path)
    (board,) = written.document.boards
    assert board.native == ("", "0.784 HU", "1.57 HU", "3.14 HU", "6.27 HU", "12.5 HU")
    text = plain_text(written)
    assert "At ε = clean 0.5/255 (0.784 HU) 1/255 (1.57 HU)" in text
    assert "by at most 0.784, 1.57, 3.14, 6.27, 12.5 HU (0.5, 1, 2, 4, 8 parts in 255" in text
    assert "grey" not in text
    floats = DATASETS[1].model_copy(update={"native_range": "float 0..1"})
    text = plain_text(written_report(pair(make_stored, dataset=floats), tmp_path))
    assert "0 to 1 stand for values from 0 to 1, in units that are not stated" in text
    assert "grey" not in text


def test_what_nobody_lost_is_no_answer_where_some_were_lost(
    make_stored: Maker, tmp_path: Path
) -> None:
    """The share that could fail though none did has no meaning where some did."""
    worst_text = plain_text(written_report([make_stored([1] * 3 + [6] * 17)], tmp_path))
    assert re.search(r"3 of 20 images [\d.]+–[\d.]+ 30\.0 % – R1", worst_text)
    none = plain_text(written_report([make_stored([6] * N)], tmp_path))
    assert re.search(r"0 of 20 images [\d.]+–[\d.]+ 30\.0 % 13\.9 % R1", none)


def test_a_certificate_stands_beside_the_attacks(make_stored: Maker, tmp_path: Path) -> None:
    radii = tuple(step / 10 for step in range(11))
    percentages = tuple(Estimate(value=1 - r / 2, low=0.9 - r / 2, high=1.0) for r in radii)
    abstained = Estimate(value=0.05, low=0.0, high=0.1)
    proved = Certificate(radii=radii, correct=percentages, abstained=abstained)
    written = written_report([make_stored([6] * N, record={"certificate": proved})], tmp_path)
    (board,) = written.document.boards
    assert board.proved is not None
    assert [cell.eps for cell in board.proved.cells] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    (row,) = rows(page(written), "board-1-certified")
    assert [cell.split()[0] for cell in row[1:-1]] == [
        "100.0", "90.0", "80.0", "70.0", "60.0", "50.0",
    ]  # fmt: skip
    assert "abstains on 5.0 % of images" in plain_text(written)
    assert "L2 radius" not in plain_text(written_report(pair(make_stored), tmp_path))


def test_an_oblivious_attacker_is_said_to_be_in_no_worst_case(
    make_stored: Maker, tmp_path: Path
) -> None:
    known = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.7, 0.1))
    blind = wrapped(make_stored, WRAPPED, GUARD, record=detecting(0.9, 0.8), knowledge="oblivious")
    written = written_report([known, blind], tmp_path)
    (board,) = written.document.boards
    assert len(board.oblivious) == 1
    text = plain_text(written)
    assert "leaves out attackers who do not know the defense (oblivious)" in text
    assert "These figures are shown, but no worst case includes them" in text
    assert "ranked" not in text
    (tested,) = written.document.tested
    assert "; ".join(tested.attacks) in text
    assert "leaves out attackers" not in plain_text(written_report([known], tmp_path))


def test_words_on_calls_stand_where_there_are_calls(make_stored: Maker, tmp_path: Path) -> None:
    records = [make_masks(make_stored, [[0.9, 0.8, 0.7]] * 6, attack="pgd")]
    masks = plain_text(written_report(records, tmp_path, victim="unet_narrow"))
    labels = plain_text(written_report(pair(make_stored), tmp_path))
    assert ("at the frozen threshold" in masks, "For masks, each region" in masks) == (False, True)
    assert ("at the frozen threshold" in labels, "For masks, each region" in labels) == (
        True,
        False,
    )
