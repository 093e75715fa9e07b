"""The page of every threat model: boards in order, matrices, checks, controls."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import leaderboard
from robustbench_med.bench.record import Stored

from .browser import Tags

Maker = Callable[..., Stored]


@pytest.fixture(scope="module")
def suite_page(suite: Path) -> str:
    return suite.read_text(encoding="utf-8")


def test_the_page_tells_threat_models_apart(suite_page: str) -> None:
    headings = re.findall(r"<h3 id=.*?</span>(.*?)</h3>", suite_page)
    assert [heading.split(" · ")[0] for heading in headings] == [
        "white box",
        "one perturbation for all images",
        "transfer from another model",
        "no box: a model trained on other data",
        "black box by queries",
        "control: no attack",
    ]
    assert ">nan<" not in suite_page.lower()
    assert suite_page.count("<h2>") == 1  # one dataset


def test_a_board_of_controls_ranks_nobody(suite_page: str) -> None:
    control = suite_page[suite_page.index('id="phantom-fundus-linf-control-untargeted"') :]
    assert control.count('data-ranks=",,,,"') == 4
    assert 'class="badge' not in control


def test_the_matrix_is_a_table_with_headings_and_steps_of_heat(suite_page: str) -> None:
    start = suite_page.index('<table class="matrix"')
    tags = Tags(suite_page[start : suite_page.index("</table>", start)]).tags
    assert sum(a.get("scope") == "row" for _, a in tags) == 4
    assert sum(a.get("scope") == "col" for _, a in tags) == 5
    cells = [a for t, a in tags if t == "td" and "data-e" in a]
    assert len(cells) == 16  # three by three, all three on the fourth, no box on all four
    for cell in cells:
        share = float(cell["data-e"].split(";")[2].split(",")[0])
        assert f"heat{int(share / 10 + 0.5)}" in cell["class"].split()
        assert re.match(r"95 % interval [\d.]+–[\d.]+, \d+ images attacked", cell["title"])
    assert sum("own" in cell["class"].split() for cell in cells) == 3


def test_a_relative_budget_is_written_in_percent(make_stored: Maker, tmp_path: Path) -> None:
    case = {"norm": "l2", "budget": "mean_norm"}
    stored = make_stored([6, 1], ladder=(0.02, 0.04), case=case, record={"radii": (0.31, 0.62)})
    page = leaderboard.publish([stored], tmp_path, title="t").read_text(encoding="utf-8")
    assert "Radius ε <span" in page
    assert "(% of the mean norm)" in page
    assert "{2, 4} %" in page
    assert "relative to a training image&#39;s mean norm" in page
    assert "in image units 0.31, 0.62" in page
