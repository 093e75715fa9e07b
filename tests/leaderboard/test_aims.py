"""Boards of an aim on labels: no accuracy, no clean score, in no file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import leaderboard
from leaderboard.boards.breakdown import by_patient
from leaderboard.boards.channels import channel_bars
from leaderboard.exports import page_json
from robustbench_med.bench.record import Stored

from .planted import VICTIMS

Maker = Callable[..., Stored]
KEY = "goal not reached, % of the attacked images"


@pytest.fixture
def aimed(make_stored: Maker) -> list[Stored]:
    # one of ten images is as the attacker wants when clean, and is not attacked
    shared = {"case": {"objective": "targeted(target=1)"}, "patients": True}
    return [
        make_stored([0, 6, 6, 6, 1, 1, 2, 2, 2, 3], **shared),
        make_stored([0, 6, 6, 6, 6, 6, 6, 6, 6, 6], victim=VICTIMS[1], **shared),
        make_stored([0, 6, 6, 6, 6, 6, 6, 6, 6, 6], surrogate=VICTIMS[1], **shared),
        make_stored([0, 6, 6, 6, 6, 6, 6, 6, 6, 6], surrogate=VICTIMS[2], **shared),
    ]


def test_no_file_calls_the_share_of_goals_not_reached_accuracy(
    aimed: list[Stored], tmp_path: Path
) -> None:
    page = leaderboard.publish(aimed, tmp_path, title="t").read_text(encoding="utf-8")
    head = page.partition("<h2>Chest X-ray")[0]
    words = ["ccuracy", "right when clean", "calls right", "classifies correctly"]
    markdown = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    console = Console(file=io.StringIO(), width=140, color_system=None)
    leaderboard.show(aimed, console)
    assert isinstance(console.file, io.StringIO)
    terminal = console.file.getvalue()
    for text in (head, markdown, terminal):
        assert not any(word in text for word in words)
    board = leaderboard.make_boards(aimed)[0]
    assert KEY in terminal
    assert board.score.key == KEY
    assert KEY.capitalize() in page
    assert 'data-col="clean"' not in page
    assert 'value="clean"' not in page
    assert "does not reach the goal" in head
    frame = pd.read_csv(tmp_path / "leaderboard.csv")
    worst = frame[frame["attack"] == "worst_case"]
    assert set(worst["metric"]) == {"1-attack_success"}
    assert (worst["eps"] > 0).all()
    # what the records measure stays: accuracy of the images themselves, clean and attacked
    assert "accuracy" in set(frame.loc[frame["attack"] != "worst_case", "metric"])


def test_the_download_has_no_clean_score(aimed: list[Stored]) -> None:
    board = leaderboard.make_boards(aimed)[0]
    (found,) = json.loads(page_json([board]))["boards"]
    assert found["metric"] == "1-attack_success"
    assert not any("clean" in row for row in found["rows"])
    assert "clean" not in {column["key"] for column in found["columns"]}


def test_a_row_lists_nothing_clean(aimed: list[Stored]) -> None:
    board = leaderboard.make_boards(aimed[:1])[0]
    found = by_patient(board, board.rows[0])
    assert found is not None
    labels = [label for label, _ in found.rows]
    assert labels == ["every image robust", "some images robust", "no image robust"]
    assert {len(cells) for _, cells in found.rows} == {5}
    assert found.hardest[0] == "no. 3 (3 images): 0.0 %"


def test_bars_of_channels_start_with_a_channel(make_stored: Maker) -> None:
    aim = {"objective": "targeted(target=1)"}
    shares = [{}, {"T1": 1.0}, {"T2": 1.0}]
    made = leaderboard.make_boards(
        [make_stored([6, 1], case=aim | {"channels": c}) for c in shares]
    )
    (bars,) = channel_bars(made)
    assert bars.labels == ("T1", "T2", "all")
    assert [bar.label for bar in bars.groups[0].bars] == ["T1", "T2", "all"]
