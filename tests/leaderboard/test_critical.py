"""The critical radius on the page, in the report and in its criteria."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import leaderboard
from leaderboard.boards.critical import critical, critical_head, critical_words
from leaderboard.page import render
from leaderboard.report import read_criteria
from robustbench_med.bench.record import Stored
from robustbench_med.errors import SpecError
from robustbench_med.evaluation import Evaluation
from robustbench_med.gate.fixture import Measured

from .planted import DATASETS
from .planted_masks import make_masks
from .report.planted import page, written_report

Maker = Callable[..., Stored]
# of 30 images all stand at the first two radii, 10 at the third, none from the fourth on
BREAKS = [3] * 20 + [4] * 10


def both(make: Maker) -> list[Stored]:
    return [make(BREAKS, attack=attack) for attack in ("bim", "pgd")]


def test_a_row_says_between_which_radii_it_falls_below_a_half(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards(both(make_stored))
    found = critical(board, board.rows[0])
    assert found is not None
    assert critical_head(board) == "Critical radius (accuracy below 50.0\N{NO-BREAK SPACE}%)"
    assert critical_words(board, found).startswith("1/255 to 2/255; 95 % interval: ")
    html = render([board], title="t", suite="s")
    assert f"<strong>{critical_words(board, found)}</strong>" in html


def test_it_is_censored_where_the_score_holds_to_the_end(make_stored: Maker) -> None:
    (board,) = leaderboard.make_boards([make_stored([6] * 30)])
    found = critical(board, board.rows[0])
    assert found is not None
    assert critical_words(board, found) == "> 8/255; 95 % interval: above 8/255"
    (board,) = leaderboard.make_boards([make_stored([1] * 30)])
    found = critical(board, board.rows[0])
    assert found is not None
    assert critical_words(board, found) == "< 0.5/255; 95 % interval: below 0.5/255"


def test_masks_have_a_critical_radius_of_their_dice(make_stored: Maker) -> None:
    stored = make_masks(make_stored, [[0.9, 0.8, 0.2, 0.1]] * 12)
    (board,) = leaderboard.make_boards([stored])
    found = critical(board, board.rows[0])
    assert found is not None
    assert (found.held, found.fell) == (board.ladder[0], board.ladder[1])
    assert "Dice" in critical_head(board)


def test_the_report_states_accuracy_and_sensitivity(make_stored: Maker, tmp_path: Path) -> None:
    # images of odd number are diseased: they fall first
    breaks = [6 if i % 2 == 0 else 2 for i in range(30)]
    found = written_report([make_stored(breaks, attack="pgd")], tmp_path)
    (board,) = json.loads(found.json.read_text())["boards"]
    by_name = {one["name"]: one for one in board["critical"]}
    assert by_name["sensitivity"]["held"] == pytest.approx(0.5 / 255)
    assert by_name["sensitivity"]["fell"] == pytest.approx(1 / 255)
    assert by_name["accuracy"]["held"] == pytest.approx(8 / 255)
    assert "Critical radius (sensitivity below 50.0" in page(found)


CRITERIA = """
[[criteria]]
metric = "critical_radius"
at_least = "1/255"
basis = "value"
[[criteria]]
metric = "critical_radius"
at_least = "2/255"
basis = "value"
[[criteria]]
metric = "critical_radius"
level = 0.2
at_least = "2/255"
basis = "value"
[[criteria]]
metric = "critical_radius"
of = "sensitivity"
at_least = "0.5/255"
[[criteria]]
metric = "critical_radius"
of = "sensitivity"
level = 0.999
at_least = "0.5/255"
"""


def test_a_criterion_is_judged_on_the_radius_up_to_which_it_holds(
    make_stored: Maker, tmp_path: Path
) -> None:
    file = tmp_path / "criteria.toml"
    file.write_text(CRITERIA)
    found = written_report(both(make_stored), tmp_path, criteria=read_criteria(file))
    judged = json.loads(found.json.read_text())["criteria"]["judged"]
    assert [one["verdict"] for one in judged] == ["met", "not met", "met", "met", "not met"]
    (outcome,) = judged[0]["outcomes"]
    assert outcome["judged"] == pytest.approx(1 / 255)
    assert outcome["note"].startswith("critical radius: 1/255 to 2/255; 95 % interval: ")
    assert "where accuracy or dice falls below 0.5, at least 1/255" in judged[0]["words"]
    assert outcome["note"] in page(found)


def test_a_limit_beyond_the_ladder_is_not_tested(make_stored: Maker, tmp_path: Path) -> None:
    file = tmp_path / "criteria.toml"
    file.write_text('[[criteria]]\nmetric = "critical_radius"\nat_least = "16/255"\n')
    found = written_report([make_stored([6] * 30)], tmp_path, criteria=read_criteria(file))
    (judged,) = json.loads(found.json.read_text())["criteria"]["judged"]
    assert judged["verdict"] == "not tested"
    assert "8/255, the largest radius of all runs" in judged["outcomes"][0]["why"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('metric = "critical_radius"\nat_least = 0', "expected at_least > 0"),
        ('metric = "critical_radius"\nat_most = 0.1', "expected at_least with critical_radius"),
        ('metric = "critical_radius"\nat_least = "x"', "at_least: expected a number"),
        ('metric = "critical_radius"\nat_least = 0.1\neps = 0.1', "expected neither eps"),
        ('metric = "critical_radius"\nat_least = 0.1\nlevel = 1', "expected level between"),
        ('metric = "critical_radius"\nat_least = 0.1\nof = "auc"', "a worst case, got 'auc'"),
        ('metric = "critical_radius"\nat_least = 0.1\nof = "hd95"', "of which higher is better"),
        (
            'metric = "dice"\neps = 0.1\nat_least = 0.1\nlevel = 0.5',
            "with metric 'critical_radius'",
        ),
        ('metric = "dice"\neps = 0.1\nat_least = "1/2"', "Input should be a valid number"),
    ],
)
def test_a_mistake_in_a_critical_radius_is_named(tmp_path: Path, table: str, words: str) -> None:
    file = tmp_path / "criteria.toml"
    file.write_text(f"[[criteria]]\n{table}\n")
    with pytest.raises(SpecError, match=words):
        read_criteria(file)


def test_an_evaluation_and_the_gate_find_the_radius_of_the_board(make_stored: Maker) -> None:
    records = [make_stored(BREAKS, attack=a) for a in ("bim", "pgd")]
    (board,) = leaderboard.make_boards(records)
    evaluation = Evaluation(records)
    assert evaluation.critical_radius() == critical(board, board.rows[0])
    # of the 15 diseased images 10 stand at the second radius alone, 5 at the third too
    assert evaluation.critical_radius(0.3, of="sensitivity").held == pytest.approx(2 / 255)
    assert evaluation.critical_radius(0.4, of="sensitivity").held == pytest.approx(1 / 255)
    radius = Measured(evaluation).critical_radius()
    assert radius == pytest.approx(1 / 255)
    assert radius >= 1 / 255
    assert any("may be chance" in line for line in radius.explain(radius.interval.high))
    assert any("is not chance" in line for line in radius.explain(1.0))
    whole = Measured(Evaluation([make_stored([6] * 30)])).critical_radius()
    assert any("may be chance" in line for line in whole.explain(1.0))  # the ladder ends at 8/255


def test_a_wrong_level_or_score_is_named(make_stored: Maker) -> None:
    evaluation = Evaluation([make_stored(BREAKS, dataset=DATASETS[0])])
    with pytest.raises(SpecError, match="expected a level between 0 and 1, got 50"):
        evaluation.critical_radius(50)
    with pytest.raises(SpecError, match="expected of='sensitivity' or none, got 'auc'"):
        evaluation.critical_radius(of="auc")
    with pytest.raises(SpecError, match="expected two classes, one of them normal"):
        evaluation.critical_radius(of="sensitivity")
