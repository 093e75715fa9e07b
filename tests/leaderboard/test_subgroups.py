"""Subgroups on the page, in the report and in its criteria."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pytest

import leaderboard
from leaderboard.boards.subgroups import by_subgroup, difference_words, group_notes
from leaderboard.exports import long_frame
from leaderboard.page import render
from leaderboard.report import read_criteria
from robustbench_med.bench.record import Stored
from robustbench_med.errors import SpecError
from robustbench_med.stats.intervals import wilson

from .planted import HOSTILE
from .planted_masks import make_masks
from .report.planted import page, written_report

Maker = Callable[..., Stored]


def grouped(stored: Stored, column: str, cells: list[str]) -> Stored:
    """Return a record whose images are in these subgroups, in the order of their ids."""
    groups = dict(zip(sorted(stored.samples["sample"].unique()), cells, strict=True))
    named = stored.samples["sample"].map(groups)
    return stored._replace(samples=stored.samples.assign(**{f"subgroup:{column}": named}))


def two(make: Maker) -> list[Stored]:
    """Return two attacks: of 20 images in A all fall at rung 3, of 20 in B none, 2 are in C."""
    breaks = [3] * 20 + [6] * 22
    cells = [HOSTILE] * 20 + ["B"] * 20 + ["C"] * 2
    return [grouped(make(breaks, attack=attack), "site", cells) for attack in ("bim", "pgd")]


def test_a_board_has_the_worst_case_of_each_subgroup(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards(two(make_stored))
    (grouping,) = by_subgroup(board, board.rows[0])
    hostile, b, c = sorted(
        grouping.subgroups, key=lambda group: (-group.images, group.name != HOSTILE)
    )
    assert [group.images for group in (hostile, b, c)] == [20, 20, 2]
    assert hostile.scores[2] == wilson(20, 20)
    assert hostile.scores[3] == wilson(0, 20)
    assert board.headline + 1 == 3
    assert difference_words(board, hostile, 3).startswith("−100.0 points (−100.0 to ")
    assert difference_words(board, hostile, 3).endswith("p < 0.001")
    assert difference_words(board, c, 3) == "not compared"
    assert "too few to say anything" in group_notes(board, c)[0]
    assert group_notes(board, b) == []


def test_a_subgroups_name_is_text_on_page_and_report(make_stored: Maker, tmp_path: Path) -> None:
    records = two(make_stored)
    boards = leaderboard.make_boards(records)
    html = render(boards, title="t", suite="s")
    assert "Worst case by site" in html
    assert HOSTILE not in html
    found = written_report(records, tmp_path)
    text = page(found)
    assert HOSTILE not in text
    assert escape(HOSTILE) in text
    assert "By site:" in text
    (board,) = json.loads(found.json.read_text())["boards"]
    (site,) = board["subgroups"]
    assert [line["n"] for line in site["lines"]] == [20, 20, 2]


def test_a_page_without_subgroups_says_nothing_of_them(make_stored: Maker, tmp_path: Path) -> None:
    records = [make_stored([6] * 9)]
    assert "subgroup" not in page(written_report(records, tmp_path)).lower().split("<style>")[0]
    (board,) = leaderboard.make_boards(records)
    assert by_subgroup(board, board.rows[0]) == []


def test_masks_have_subgroups(make_stored: Maker) -> None:
    dice = [[0.9, 0.2, 0.2, 0.2]] * 6 + [[0.9, 0.8, 0.8, 0.8]] * 6
    stored = grouped(make_masks(make_stored, dice), "sex", ["F"] * 6 + ["M"] * 6)
    (board,) = leaderboard.make_boards([stored])
    (grouping,) = by_subgroup(board, board.rows[0])
    women, men = grouping.subgroups
    assert men.scores[2].value - women.scores[2].value == pytest.approx(0.6, abs=0.1)
    assert women.difference[2].value == pytest.approx(women.scores[2].value - men.scores[2].value)


CRITERIA = """
[[criteria]]
metric = "accuracy"
eps = "2/255"
subgroup = "site"
at_least = 0.5
[[criteria]]
metric = "accuracy"
eps = "1/255"
subgroup = "site"
at_least = 0.5
[[criteria]]
metric = "subgroup_gap"
eps = "2/255"
subgroup = "site"
at_most = 0.2
[[criteria]]
metric = "accuracy"
eps = "2/255"
subgroup = "sight"
at_least = 0.5
"""


def test_each_subgroup_must_meet_a_criterion(make_stored: Maker, tmp_path: Path) -> None:
    file = tmp_path / "criteria.toml"
    file.write_text(CRITERIA)
    found = written_report(two(make_stored), tmp_path, criteria=read_criteria(file))
    judged = json.loads(found.json.read_text())["criteria"]["judged"]
    verdicts = [[outcome["verdict"] for outcome in one["outcomes"]] for one in judged]
    # in the order of names: the hostile one, B and C
    assert sorted(verdicts[0]) == ["met", "not met", "not tested"]
    assert sorted(verdicts[1]) == ["met", "met", "not tested"]
    assert [one["verdict"] for one in judged] == ["not met", "not tested", "not met", "not tested"]
    gaps = [o["estimate"]["value"] for o in judged[2]["outcomes"] if o["estimate"]]
    assert max(gaps) == pytest.approx(1.0)
    assert min(gaps) == pytest.approx(-20 / 22)
    assert "columns of subgroups: site" in judged[3]["outcomes"][0]["why"]


def test_a_gap_needs_a_column(tmp_path: Path) -> None:
    file = tmp_path / "criteria.toml"
    file.write_text('[[criteria]]\nmetric = "subgroup_gap"\neps = "2/255"\nat_most = 0.2\n')
    with pytest.raises(SpecError, match="expected subgroup with subgroup_gap"):
        read_criteria(file)


def test_the_number_of_images_is_that_of_the_worst_case(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards(two(make_stored))
    row = board.rows[0]
    (grouping,) = by_subgroup(board, row)
    assert sum(group.images for group in grouping.subgroups) == row.images
    table = row.image_scores.table.to_numpy()
    weighted = np.sum([g.images * g.scores[3].value for g in grouping.subgroups])
    assert weighted == pytest.approx(table[:, 3].sum())


def test_the_csv_holds_subgroups_under_names_of_their_own(make_stored: Maker) -> None:
    boards = leaderboard.make_boards(two(make_stored))
    frame = long_frame(boards)
    (grouping,) = by_subgroup(boards[0], boards[0].rows[0])
    worst = frame[(frame["attack"] == "worst_case") & np.isclose(frame["eps"], 2 / 255)]
    by_metric = worst.set_index("metric")["value"]
    assert by_metric["accuracy[site=B]"] == 1.0
    assert by_metric[f"accuracy[site={HOSTILE}]"] == 0.0
    assert by_metric["difference[site=B]"] == pytest.approx(20 / 22)
    assert by_metric["accuracy[lowest site]"] == grouping.lowest(3).value == 0.0
    assert "difference[site=C]" not in by_metric  # too small to be compared
    assert (worst["metric"] == "accuracy").sum() == 1
    assert "corrected for being the lowest" in render(boards, title="t", suite="s")
