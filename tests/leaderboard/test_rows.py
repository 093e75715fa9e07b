"""One planted board through all five outputs: the same columns, units and numbers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

import leaderboard
from leaderboard.boards.board import Board
from leaderboard.boards.ranking import make_boards
from leaderboard.exports import csv_text, page_json
from leaderboard.page import render
from leaderboard.rows import board_columns
from leaderboard.tables import markdown
from robustbench_med.bench import store
from robustbench_med.bench.publish import publish
from robustbench_med.bench.record import Stored

from .planted import VICTIMS
from .planted_masks import CHEST, make_masks
from .planted_shields import BARE, JPEG, WRAPPED, wrapped

Maker = Callable[..., Stored]
Texts = dict[str, dict[str, str]]  # name of the victim and its defense -> key of a column -> text
Numbers = dict[str, dict[str, float]]


@pytest.fixture(params=["labels", "masks"])
def board(request: pytest.FixtureRequest, make_stored: Maker) -> Board:
    """Return a board of labels with a defended row and a missing attack, or one of Dice."""
    if request.param == "masks":
        dice = np.linspace(0.9, 0.3, 6) - np.array([[0.0], [0.1], [0.2]])
        return leaderboard.make_boards([make_masks(make_stored, dice, dataset=CHEST)])[0]
    records = [
        make_stored(BARE),
        make_stored(BARE, attack="fgsm"),
        wrapped(make_stored, WRAPPED, JPEG),
        make_stored([6] * 8 + [0, 1], victim=VICTIMS[3]),
    ]
    return leaderboard.make_boards(records)[0]


def expected(board: Board) -> Texts:
    """Return the text of every column with a number, as `rows` describes it."""
    columns = [column for column in board_columns(board) if column.kind or column.role == "rank"]
    return {
        row.title: {c.key: c.read(row, board.headline).text for c in columns} for row in board.rows
    }


def from_terminal(board: Board) -> Texts:
    tables = [t for t in leaderboard.terminal_tables([board], width=400) if isinstance(t, Table)]
    texts: Texts = {row.title: {} for row in board.rows}
    for table in tables:
        for column in table.columns:
            for row, cell in zip(board.rows, column.cells, strict=True):
                texts[row.title][str(column.header)] = str(cell).partition(" [")[0]
    return texts


def from_markdown(board: Board) -> Texts:
    lines = [x for x in markdown([board], title="t").splitlines() if x.startswith("|")]
    split = [[re.sub(r"\\(.)", r"\1", cell) for cell in x.strip("| ").split(" | ")] for x in lines]
    heads, _, *rows = split
    return {
        row.title: {head: cell.partition(" [")[0] for head, cell in zip(heads, cells, strict=False)}
        for row, cells in zip(board.rows, rows, strict=True)
    }


class _Keys(HTMLParser):
    """Collects the first text of every element with a `data-key`, by row of the ranking."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, str]] = []
        self._waiting: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "tbody" and "data-place" in known:
            self.rows.append({})
        if known.get("data-key"):
            self._waiting = [str(known["data-key"])]

    def handle_data(self, data: str) -> None:
        if data.strip() and self._waiting:
            self.rows[-1].setdefault(self._waiting.pop(), data.strip())


def from_page(board: Board) -> Texts:
    parser = _Keys()
    parser.feed(render([board], title="t", suite="s"))
    return {row.title: keys for row, keys in zip(board.rows, parser.rows, strict=True)}


def from_csv(board: Board) -> Numbers:
    frame = pd.read_csv(io.StringIO(csv_text([board])))
    eps = board.ladder[board.headline]
    numbers: Numbers = {}
    for row in board.rows:
        own = frame[(frame["title"] == row.title) & (frame["metric"] == board.score.metric)]
        at = own[(own["eps"] - eps).abs() < 1e-9]
        worst = at[at["attack"] == "worst_case"].iloc[0]
        clean = own[(own["attack"] == "worst_case") & (own["eps"] == 0)].iloc[0]
        numbers[row.title] = {"worst_case": worst["value"], "clean": clean["value"]}
        numbers[row.title] |= {key: worst[key] for key in ("rank", "worst_change")}
        numbers[row.title] |= {
            key: worst[key] for key in ("clean_change", "slower", "clean_by_argmax") if key in worst
        }
        for attack in board.columns:
            cell = at[at["attack"] == attack]
            assert len(cell) <= 1  # no number is in the file twice
            numbers[row.title][attack] = cell["value"].iloc[0] if len(cell) else float("nan")
    return numbers


def from_json(board: Board) -> Numbers:
    (content,) = json.loads(page_json([board]))["boards"]
    numbers: Numbers = {}
    for row in content["rows"]:
        own = {**row, **row["attacks"]}
        numbers[row["title"]] = {}
        for column in content["columns"]:
            value = own.get(column["key"])
            if isinstance(value, list) and column["at_radius"]:
                value = value[content["headline"]]
            value = value[0] if isinstance(value, list) else value
            if not isinstance(value, str):
                numbers[row["title"]][column["key"]] = float("nan") if value is None else value
    return numbers


def test_tables_hold_the_same_columns_units_and_texts(board: Board) -> None:
    titles = {
        column.key: column.title for column in board_columns(board) if column.key != "rank"
    } | {"rank": "#"}
    at = f"{board.score.worst} at {board.at}"
    for title, texts in expected(board).items():
        for key, text in texts.items():
            assert from_terminal(board)[title][titles[key].replace(", ", " ")] == text
            marked = (
                titles[key].replace(board.score.worst, at) if key == "worst_case" else titles[key]
            )
            assert from_markdown(board)[title][marked] == text


def test_the_page_holds_the_same_columns_and_texts(board: Board) -> None:
    found = from_page(board)
    for title, texts in expected(board).items():
        for key, text in texts.items():
            if text == "–" and key in ("clean_change", "worst_change", "slower"):
                continue  # the page says nothing of a defense where there is none
            shown = found[title][key]
            assert re.sub("^(clean|argmax) ", "", shown).rstrip(",").split()[0] in (
                text,
                "worst",
            ), key


def test_files_hold_the_same_numbers(board: Board) -> None:
    columns = {c.key: c for c in board_columns(board) if c.kind or c.role == "rank"}
    for numbers in (from_csv(board), from_json(board)):
        for row in board.rows:
            for key, column in columns.items():
                value = column.read(row, board.headline).value
                number = numbers[row.title].get(key, float("nan"))
                known = float("nan") if value is None else value
                assert number == pytest.approx(known, rel=1e-5, nan_ok=True), key


def test_headings_have_their_units(board: Board) -> None:
    titles = [column.title for column in board_columns(board)]
    if board.score.kind == "percent":
        assert titles[3:7] == ["worst case, %", "clean, %", "clean by argmax, %", "FGSM, %"]
        assert titles[7:13] == [
            "PGD-40, %",
            "defense",
            "knowledge",
            "clean change, points",
            "worst change, points",
            "time a pass, ×",
        ]
    else:  # a Dice has no unit
        assert titles[3:6] == ["worst-case Dice", "clean Dice", "PGD-40"]
    assert titles[-3:] == ["attacks run", "images", "note"]


def test_the_csv_says_what_each_value_is_counted_in(board: Board) -> None:
    frame = pd.read_csv(io.StringIO(csv_text([board])), keep_default_na=False)
    units = dict(zip(frame["metric"], frame["unit"], strict=True))
    if board.score.kind == "percent":
        assert (units["accuracy"], units["psnr"], units["auc"]) == ("share", "dB", "")
        radius = frame[["radius", "native_radius"]].iloc[3].to_list()
        assert radius == ["2/255", "2 grey levels"]
    else:
        assert (units["dice"], units["hd95"], units["lesion_miss"]) == ("", "mm", "share")


def test_the_download_of_the_page_is_the_file(make_stored: Maker, tmp_path: Path) -> None:
    page = leaderboard.publish([make_stored([6, 1])], tmp_path, title="t").read_text("utf-8")
    packed = page.partition('id="csv">')[2].partition("</script>")[0]
    file = (tmp_path / "leaderboard.csv").read_bytes()
    assert gzip.decompress(base64.b64decode(packed)) == file
    assert file.startswith(b"board,dataset,")


def test_the_boards_of_a_run_are_made_once(
    make_stored: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*given: Any) -> list[Board]:  # noqa: ANN401
        calls.append(len(given))
        return make_boards(*given)

    monkeypatch.setattr(leaderboard, "make_boards", counted)
    monkeypatch.setattr(store, "read_each", lambda _: ([make_stored([6, 1])], []))
    published = publish(tmp_path, "t")
    console = Console(file=io.StringIO(), width=100)
    assert leaderboard.show_boards(published.boards, console) == 0
    assert calls == [2]  # files and terminal have them from one computation
