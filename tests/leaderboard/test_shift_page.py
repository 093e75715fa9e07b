"""The page and the report of shifts: a severity and no radius, a shift and no attack."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leaderboard.boards.board import Board
from leaderboard.boards.ranking import make_boards
from leaderboard.page import render
from leaderboard.wording.commands import rerun_command
from leaderboard.wording.records import audit_words
from robustbench_med import cli
from robustbench_med.bench import store
from robustbench_med.bench.record import Stored
from robustbench_med.evaluation import Evaluation
from robustbench_med.gate.compare import compare

from .visible import visible_text

FIELDS = (
    "Bias field, random draw",
    "Bias field, worst of 5",
    "Bias field, climbed (draws=5, steps=10)",
)
QUICK = Path(__file__).parents[2] / "results" / "quick"


@pytest.fixture(scope="module")
def records() -> list[Stored]:
    every, damaged = store.read_all(QUICK)
    assert not damaged
    return [stored for stored in every if stored.record.case.threat == "shift"]


@pytest.fixture(scope="module")
def board(records: list[Stored]) -> Board:
    (made,) = make_boards(records)
    return made


def test_a_board_names_the_searches_and_ranks_by_the_worst_image_by_image(board: Board) -> None:
    assert set(board.columns) == {*FIELDS, "Defocus, worst of 5", "Gaussian noise, worst of 5"}
    assert board.setting == "acquisition shift, nobody attacks"
    for row in board.rows:
        assert row.standing == "ranked"
        for rung, worst in enumerate(row.worst):
            assert worst.value <= min(row.scores[c][rung].value for c in board.columns)
            random, several, climbed = (row.scores[c][rung].value for c in FIELDS)
            assert random >= several >= climbed


def test_a_page_of_shifts_speaks_of_no_radius_and_of_no_attacker(board: Board) -> None:
    page = render([board], title="Shifts", suite="quick")
    start = page.index('<section class="board"')
    lines = visible_text(page[start : page.index("</section>", start)])
    text = "\n".join(lines)
    assert "severity 0.5" in text
    assert "nobody attacks" in text
    allowed = ("Nobody attacks here", "nobody attacks", "--attack", "Attacker")
    for line in lines:
        rest = line
        for words in allowed:
            rest = rest.replace(words, "")
        assert not re.search(r"ε|\bradi(us|i)\b|\battack", rest, re.IGNORECASE), line


def test_a_record_says_what_its_audit_measured_and_how_to_repeat_it(records: list[Stored]) -> None:
    words = " ".join(audit_words(records[0].record))
    assert "every image is that of its stored parameters" in words
    command = rerun_command(records[0])
    assert "--severity 0.25,0.5,1" in command
    assert "--norm" not in command


def test_the_report_says_that_nobody_attacks(tmp_path: Path) -> None:
    words = ["report", str(QUICK), "--victim", "fundus_resnet", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    html = next(tmp_path.rglob("*.html")).read_text(encoding="utf-8")
    text = "\n".join(visible_text(html))
    assert "Nobody attacks here." in text
    assert "shift the image up to severity 0.25, 0.5, 1" in text
    assert "Accidental faults other than the acquisition shifts above" in text


def test_a_table_and_a_figure_of_shifts_have_severities(records: list[Stored]) -> None:
    mine = [s for s in records if s.record.case.victim == "fundus_resnet"]
    evaluation = Evaluation(mine)
    table = evaluation.to_latex()
    assert "severity" in table
    assert "acquisition shifts" in table
    assert "radius" not in table
    assert evaluation.plot().axes[0].get_xlabel() == "severity"


def test_the_gate_says_at_which_severity_a_model_got_weaker(records: list[Stored]) -> None:
    samples = records[0].samples.copy()
    samples.loc[samples["eps"] == 0.25, "correct"] = False
    found = compare(records[0], records[0]._replace(samples=samples))
    assert not found.holds
    assert "accuracy at severity 0.25 dropped" in found.message
