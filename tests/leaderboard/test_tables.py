"""Terminal, CSV and Markdown: content, width, and names that try to be code."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

import leaderboard
from leaderboard.exports import guard
from leaderboard.tables import argmax_words, markdown
from leaderboard.wording.text import https, number
from robustbench_med.bench.record import Stored

from .field import field
from .planted import VICTIMS

Maker = Callable[..., Stored]
EVIL = ("evil", "=HYPERLINK(1) | [x](javascript:1)\x1b[2J<b>", "ViT")


def shown(records: list[Stored], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    leaderboard.show(records, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal_fits_100_columns_and_gives_the_reasons(records: list[Stored]) -> None:
    text = shown(records)
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "Chest X-ray (synthetic phantom) at ε = 2/255",
        "90 images, 30 patients",
        "images treated as independent",
        "ε ∈ {0.5, 1, 2, 4, 8}/255",
        "MobileNetV3 small (mobilenet_narrow): invalid. PGD-40: 12 of 90 images gave NaN logits",
        "ViT tiny (vit_tiny): flagged. BIM: the gradient of 41 % of images is exactly zero",
        "MobileNetV3 small (mobilenet_narrow): incomplete. not run: PGD-40",
    ):
        assert words in " ".join(text.split())
    assert " nan" not in text.lower().replace("nan logits", "")


def test_terminal_prints_a_name_as_it_is_but_no_escape_code(make_stored: Maker) -> None:
    text = shown([make_stored([6, 6], victim=("m", "[red]a\x1b[2Jb[/red]", "ViT"))], width=140)
    assert "[red]a[2Jb[/red]" in text
    assert "\x1b" not in text


def test_csv_holds_every_metric_and_the_worst_case(records: list[Stored], tmp_path: Path) -> None:
    made = leaderboard.make_boards(records)
    csv, _ = leaderboard.write_tables(made, tmp_path, title="t")
    frame = pd.read_csv(csv)
    worst = frame[frame["attack"] == "worst_case"]
    assert len(worst) == 12 * 6
    board = made[0]
    row = board.rows[0]
    cell = worst.query("dataset == @board.dataset.name and victim == @row.model.name")
    assert cell["value"].to_list() == pytest.approx(
        [row.clean.value, *(e.value for e in row.worst)]
    )
    assert {"auc", "psnr", "attack_success"} <= set(frame["metric"])
    assert frame.query("metric == 'flips_to_disease'")["value"].isna().all()
    # a place is one of the worst case, at one radius: nothing else has it
    placed = (
        (frame["attack"] == "worst_case") & (frame["eps"] > 0) & (frame["standing"] == "ranked")
    )
    assert frame["rank"].notna().equals(placed)
    assert frame["sharing"].notna().equals(placed)


def test_csv_has_the_place_of_each_radius(make_stored: Maker) -> None:
    weak = make_stored([6] * 10 + [1] * 10, victim=VICTIMS[0])  # better at 8/255
    strong = make_stored([5] * 20, victim=VICTIMS[1])  # better at 2/255
    (board,) = leaderboard.make_boards([weak, strong])
    frame = leaderboard.exports.long_frame([board])
    for row in board.rows:
        own = frame[(frame["attack"] == "worst_case") & (frame["victim"] == row.model.name)]
        assert own["rank"].to_list()[1:] == list(row.ranks)
        assert own["sharing"].to_list()[1:] == list(row.sharing)
    assert len({row.ranks for row in board.rows for _ in row.ranks}) == 2


def test_csv_holds_distances_counts_and_what_was_attacked(
    make_stored: Maker, tmp_path: Path
) -> None:
    csv, _ = leaderboard.write_tables(
        leaderboard.make_boards(field(make_stored)), tmp_path, title="t"
    )
    frame = pd.read_csv(csv)
    median = frame[frame["metric"] == "median_distance"]
    assert set(median["attack"]) == {"FMN"}
    assert median["eps"].isna().all()
    assert median["value"].min() == pytest.approx(0.9 / 255)
    changed = frame[frame["metric"] == "universal_prediction_changed"]
    assert len(changed) == 4 * 5
    assert changed["eps"].nunique() == 5
    assert set(frame["budget"]) == {"absolute"}
    assert "PGD-40 from vit_tiny" in set(frame["attack"])
    assert frame.loc[frame["threat"] == "control", "rank"].isna().all()


def test_terminal_shows_matrices_and_says_that_controls_rank_nobody(make_stored: Maker) -> None:
    text = shown(field(make_stored), 120)
    assert "PGD-40 made on one model, success on others at" in text
    assert "= attacker and victim are one model (white box)" in text
    assert "= 81.1" in text
    assert "a control is no attack, so no model is ranked" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width", [80, 100])
def test_no_column_is_cut_off_in_a_narrow_terminal(make_stored: Maker, width: int) -> None:
    pairs = [(VICTIMS[a], VICTIMS[b]) for a in (0, 1, 3) for b in (0, 1, 3) if a != b]
    records = [make_stored([1] * 5 + [6] * 95, victim=v, surrogate=s) for v, s in pairs]
    text = shown(records, width)
    rows = [x for x in text.splitlines() if x.lstrip().startswith("1=") and "MobileNetV3" in x]
    # the worst case, and two models; its own column is a dash
    assert sum(row.count("95.0") for row in rows) == 3


def test_text_cells_that_look_like_formulas_are_defused(make_stored: Maker, tmp_path: Path) -> None:
    made = leaderboard.make_boards([make_stored([6, 6], victim=EVIL)])
    csv, _ = leaderboard.write_tables(made, tmp_path, title="t")
    assert pd.read_csv(csv)["title"].str.startswith("'=HYPERLINK").all()


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_guard_leads_with_an_apostrophe(text: str) -> None:
    assert guard(text) == f"'{text}"
    assert guard(-1.5) == -1.5


def test_markdown_escapes_names_and_keeps_its_columns(make_stored: Maker) -> None:
    text = markdown(leaderboard.make_boards([make_stored([6, 1], victim=EVIL)]), title="A *title*")
    assert text.startswith("# A \\*title\\*\n")
    line = next(line for line in text.splitlines() if "HYPERLINK" in line and line[0] == "|")
    assert "\\| \\[x\\](javascript:1)\\[2J&lt;b&gt;" in line
    assert line.replace("\\|", "").count("|") == 11
    assert "50.0 [9–91]".replace("[", "\\[").replace("]", "\\]") in line


def test_a_defended_victim_says_so(make_stored: Maker) -> None:
    board = leaderboard.make_boards([make_stored([6, 6], case={"defense": "jpeg(quality=75)"})])[0]
    assert board.rows[0].title == "ResNet-18 narrow + jpeg(quality=75)"


def test_undefined_is_a_dash_and_only_https_is_a_link() -> None:
    assert (number(float("nan")), number(float("inf"), "plain")) == ("–", "∞")
    for url in ("http://a.org", "https://u@a.org", "https:///x", "https://a b", "https://[", "//a"):
        assert https(url) == ""


@pytest.mark.parametrize("width", [60, 80, 100, 120, 400])
def test_a_terminal_shows_every_attack_weak_to_strong(make_stored: Maker, width: int) -> None:
    settings = [
        make_stored([steps] * 20, case={"parameters": {"steps": steps, "step": 0.25}})
        for steps in range(1, 5)
    ]
    names = [f"PGD-40 (steps={steps})" for steps in (4, 3, 2, 1)]  # one falls at the first radius
    (board,) = leaderboard.make_boards(settings)
    assert list(board.columns) == names
    tables = [t for t in leaderboard.terminal_tables([board], width=width) if isinstance(t, Table)]
    heads = [str(column.header) for table in tables for column in table.columns]
    assert [head for head in heads if head.startswith("PGD")] == [f"{name} %" for name in names]
    assert all(table.columns[1].header == "victim" for table in tables)  # each says whose rows
    assert (len(tables) == 1) == (width >= 100)
    printed = io.StringIO()
    console = Console(file=printed, width=width)
    for table in tables:
        console.print(table)
    assert max(map(len, printed.getvalue().splitlines())) <= width
    for value in ("0.0", "100.0"):
        assert value in printed.getvalue()


def test_the_name_one_types_is_on_terminal_markdown_and_csv(
    make_stored: Maker, tmp_path: Path
) -> None:
    twins = [
        make_stored([6] * 9, victim=(name, "Net", "CNN"), **changes)
        for name in ("chest_net", "lung_net")
        for changes in ({}, {"surrogate": ("other_net", "Net", "CNN")})
    ]
    printed = io.StringIO()
    leaderboard.show(twins, Console(file=printed, width=120))
    for name in ("Net (chest_net)", "Net (lung_net)", "PGD-40 from other_net"):
        assert name in printed.getvalue()
    made = leaderboard.make_boards(twins)
    leaderboard.write_tables(made, tmp_path, title="t")
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert set(table["name"]) == {"chest_net", "lung_net"}
    assert "| chest\\_net |" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_the_operating_point_is_said_with_both_figures(make_stored: Maker, tmp_path: Path) -> None:
    stored = make_stored([6] * 20)
    scores = [[0.45, 0.55]] * 15 + [[0.3, 0.7]] * 5  # a threshold of 0.412 called them
    each = pd.Series([score for score in scores for _ in range(6)])  # a row a radius
    samples = stored.samples.assign(truth=1, scores=each)
    stored = stored._replace(samples=samples)
    (board,) = leaderboard.make_boards([stored])
    (row,) = board.rows
    assert row.argmax is not None
    # at the operating point 0.55 and 0.7 are above 0.5; the network itself said 0.46 and 0.62
    assert (row.clean.value, row.argmax.value) == (1.0, 0.25)
    printed = io.StringIO()
    leaderboard.show([stored], Console(file=printed, width=200))
    said = " ".join(printed.getvalue().replace("\N{NO-BREAK SPACE}", " ").split())
    assert "by argmax, the network's own decision, ResNet-18 narrow (resnet_narrow) has" in said
    assert "has 25.0 % instead of 100.0 %" in said
    assert "every other clean score" not in said
    sure = samples.assign(scores=pd.Series([[0.3, 0.7] for _ in range(len(samples))]))
    twin = make_stored([6] * 20, victim=VICTIMS[1])._replace(samples=sure)
    (words,) = argmax_words(leaderboard.make_boards([stored, twin])[0])
    assert words.endswith(
        "instead of 100.0\N{NO-BREAK SPACE}%; every other clean score is the same"
    )
    page = leaderboard.publish([stored], tmp_path, title="t").read_text(encoding="utf-8")
    assert "argmax 25.0" in page
    assert "25.0" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert set(pd.read_csv(tmp_path / "leaderboard.csv")["clean_by_argmax"]) == {0.25}
