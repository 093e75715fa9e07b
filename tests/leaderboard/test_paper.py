"""What a paper takes from boards: LaTeX, a wide CSV and figures, with the numbers of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import leaderboard
from leaderboard.boards.charts import curves
from leaderboard.paper import latex, wide_csv, write_paper
from leaderboard.rows import board_columns
from leaderboard.svg import PRINTED
from robustbench_med.bench.record import Stored

from .planted import VICTIMS
from .planted_shields import BARE, JPEG, WRAPPED, wrapped

Maker = Callable[..., Stored]
TEMPLATES = Path(leaderboard.__file__).parent / "templates"


@pytest.fixture
def boards(make_stored: Maker) -> list[leaderboard.Board]:
    """Return a board with two attacks, a defended row, and a row that lacks an attack."""
    hostile = (VICTIMS[3][0], "100%_of & #1 \\input{x} $a^b~", VICTIMS[3][2])
    records = [
        make_stored(BARE),
        make_stored(BARE, attack="fgsm"),
        wrapped(make_stored, WRAPPED, JPEG),
        make_stored([6] * 8 + [0, 1], victim=hostile),
    ]
    made: list[leaderboard.Board] = leaderboard.make_boards(records)
    return made


def _cells(text: str) -> list[list[str]]:
    """Return the cells of the rows of the first table."""
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)&", line)]
        for line in body.strip().removesuffix("\\\\").split("\\\\\n")
    ]


def test_the_table_has_the_numbers_of_the_board(boards: list[leaderboard.Board]) -> None:
    (board,) = boards
    rows = _cells(latex(boards))
    columns = [c for c in board_columns(board) if c.role in ("score", "attack")]
    assert len(rows) == len(board.rows) == 3
    for row, cells in zip(board.rows, rows, strict=True):
        assert len(cells) == 2 + len(columns)
        for column, text in zip(columns, cells[2:], strict=True):
            value = column.read(row, board.headline)
            if value.value is None:
                assert text == "--"
                continue
            number, low, high = map(float, re.findall(r"[\d.]+", text))
            assert (number, low, high) == tuple(
                round(100 * float(part), 1)  # type: ignore[arg-type]
                for part in (value.value, value.low, value.high)
            )
    assert sum(cells.count("--") for cells in rows) >= 1  # FGSM ran on one row


def test_no_name_can_break_out_of_the_table(boards: list[leaderboard.Board]) -> None:
    text = latex(boards)
    assert r"100\%\_of \& \#1 \textbackslash{}input\{x\} \$a\textasciicircum{}b" in text
    assert "\\input" not in text
    for environment in ("table", "tabular"):
        assert text.count(f"\\begin{{{environment}}}") == text.count(f"\\end{{{environment}}}") == 1
    # every brace that opens closes
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert [rule for rule in ("top", "mid", "bottom") if f"\\{rule}rule" in text] == [
        "top",
        "mid",
        "bottom",
    ]


def test_a_wide_csv_has_every_radius_and_the_numbers_of_the_long_one(
    boards: list[leaderboard.Board],
) -> None:
    (board,) = boards
    wide = pd.read_csv(io.StringIO(wide_csv(boards)))
    long = pd.read_csv(io.StringIO(leaderboard.exports.csv_text(boards)))
    assert len(wide) == len(board.rows) * len(board.ladder)
    long = long[long["metric"] == board.score.metric]
    for attack in ("worst_case", *board.columns):
        both = wide.merge(
            long[long["attack"] == attack], on=["title", "eps"], suffixes=("", "_of_long")
        )
        assert len(both) >= len(board.ladder)
        for column, name in (
            (attack, "value"),
            (f"{attack}_low", "low"),
            (f"{attack}_high", "high"),
        ):
            np.testing.assert_array_equal(both[column], both[name])


def test_figures_are_files_with_a_legend_and_no_placeholder(
    boards: list[leaderboard.Board], tmp_path: Path
) -> None:
    (board,) = boards
    before = curves(board, "x")
    files = write_paper(boards, tmp_path)
    assert [path.name for path in files[:2]] == ["tables.tex", "wide.csv"]
    drawn = files[2:]
    assert {path.suffix for path in drawn} == {".svg", ".pdf"}
    assert len({path.stem for path in drawn}) * 2 == len(drawn) >= 2
    for path in drawn:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            continue
        text = content.decode()
        ElementTree.fromstring(text)  # noqa: S314 - written a moment ago
        assert not re.search(r"#010203|#040506|#0a0b", text)
        assert PRINTED[0] in text
        for row in board.rows:
            assert row.title.partition(" ")[0].replace("&", "&amp;") in text
    # the same call writes the same bytes, and the page is drawn as before
    again = {path.name: path.read_bytes() for path in write_paper(boards, tmp_path / "again")}
    assert again == {path.name: path.read_bytes() for path in files}
    assert curves(board, "x") == before
    assert "var(--curve-1)" in before


def test_figures_have_the_colours_of_the_page() -> None:
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light = re.findall(r"--curve-\d: light-dark\((#\w+),", style)
    assert tuple(light) == PRINTED


def test_a_page_links_to_its_figures_where_they_are_written(
    boards: list[leaderboard.Board], make_stored: Maker, tmp_path: Path
) -> None:
    plain = leaderboard.publish_boards(boards, tmp_path / "plain", title="t").read_text()
    assert "wide.csv" not in plain
    assert "download>" not in plain
    page = leaderboard.publish_boards(boards, tmp_path / "with", title="t", figures=True)
    links = re.findall(r'<a href="([^"#:]+)" download>', page.read_text(encoding="utf-8"))
    written = {path.name for path in (tmp_path / "with" / "figures").iterdir()}
    assert {f"figures/{name}" for name in written} | {"wide.csv"} == set(links)
    assert len(links) == len(set(links)) > 4
    assert all((page.parent / link).stat().st_size for link in links)
    channels: list[dict[str, float]] = [{}, {"T1": 1.0}, {"T2": 1.0}]
    made = leaderboard.make_boards([make_stored([6, 1], case={"channels": c}) for c in channels])
    bars = leaderboard.publish_boards(made, tmp_path / "bars", title="t", figures=True)
    shown = set(re.findall(r'<a href="figures/([^"]+)" download>', bars.read_text()))
    assert {path.name for path in (tmp_path / "bars" / "figures").iterdir()} == shown
    assert any("-channels-1-1.pdf" in name for name in shown)
    assert (page.parent / "wide.csv").read_text(encoding="utf-8") == wide_csv(boards)
