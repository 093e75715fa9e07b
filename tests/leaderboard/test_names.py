"""Names that a figure, a heading or a provenance could trip over."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import leaderboard
from leaderboard.boards.channels import channel_bars, chart
from leaderboard.boards.charts import curves
from robustbench_med.bench.record import Stored

from .planted import DATASETS, PROVENANCE
from .planted_masks import BRAIN, make_masks

Maker = Callable[..., Stored]
PGD = [[0.9, 0.6, 0.4, 0.2], [0.8, 0.7, 0.6, 0.5]]


@pytest.mark.parametrize("name", ["$\\frac{$", "a$b$c", "脑肿瘤", "ورم"])
def test_a_region_may_be_called_anything(make_stored: Maker, name: str) -> None:
    stored = make_masks(make_stored, PGD)
    card = BRAIN.model_copy(update={"regions": {name: (1, 2, 3)}, "classes": BRAIN.classes})
    case = stored.record.case.model_copy(update={"objective": f"region(name={name!r})"})
    record = stored.record.model_copy(update={"dataset_card": card, "case": case})
    (board,) = leaderboard.make_boards([stored._replace(record=record)])
    assert name in board.score.axis
    drawn = curves(board, "a")
    assert name in drawn
    assert drawn.count("<path") > 0


@pytest.mark.parametrize("name", ["$T1$", "断层"])
def test_a_channel_may_be_called_anything(make_stored: Maker, name: str) -> None:
    shares = [{}, {name: 1.0}, {"T2": 1.0}]
    made = leaderboard.make_boards([make_stored([6, 1], case={"channels": c}) for c in shares])
    (bars,) = channel_bars(made)
    assert name in chart(bars, bars.groups[0], "a")


def test_nothing_turns_the_text_of_a_page_around(make_stored: Maker, tmp_path: Path) -> None:
    turn = "\u202eevil\x07"
    fields = PROVENANCE.model_dump()
    texts = {k: f"{turn}{v}" for k, v in fields.items() if isinstance(v, str)}
    source = PROVENANCE.model_copy(update=texts)
    card = DATASETS[1].model_copy(update={"title": f"{turn}Chest"})
    stored = make_stored([6, 1], dataset=card, record={"provenance": source})
    model = stored.record.model_card.model_copy(update={"sha256": turn})
    record = stored.record.model_copy(update={"model_card": model})
    page = leaderboard.publish([stored._replace(record=record)], tmp_path, title=turn)
    text = page.read_text(encoding="utf-8")
    body = text.partition('<script type="application/json"')[0]
    assert "evil" in body
    assert "\u202e" not in body
    assert "\x07" not in body
    assert "\u202e" not in text  # the download writes it as \\u202e


def test_a_long_spec_is_short_in_tables_and_whole_once(make_stored: Maker, tmp_path: Path) -> None:
    home = "onnx:/home/me/work/study/models/final/network.onnx"
    spec = f"{home}(mean=[0.485], std=[0.229], window=[64, 64])"
    stored = make_stored([6, 1], case={"victim": spec})
    model = stored.record.model_card.model_copy(update={"name": spec, "title": "network.onnx"})
    record = stored.record.model_copy(update={"model_card": model})
    (board,) = leaderboard.make_boards([stored._replace(record=record)])
    (row,) = board.rows
    assert row.short_name == "onnx:network.onnx(…)"
    assert row.title_with_name == "network.onnx (onnx:network.onnx(…))"
    console = Console(width=120, record=True, file=StringIO())
    leaderboard.show_boards([board], console)
    text = console.export_text()
    assert text.replace("\n", " ").count("/home/me/work/study/models/final/") == 1
    page = leaderboard.publish([stored._replace(record=record)], tmp_path, title="T")
    body = page.read_text(encoding="utf-8").partition('<script type="application/json"')[0]
    assert '<code data-key="name" title="onnx:/home/me' in body
    assert ">onnx:network.onnx(…)</code>" in body


def test_two_specs_of_one_file_stay_apart(make_stored: Maker) -> None:
    specs = [f"/a/b/net.onnx(mean=[{mean}])" for mean in (0.1, 0.2)]
    several = []
    for spec in specs:
        stored = make_stored([6, 1], case={"victim": spec})
        model = stored.record.model_card.model_copy(update={"name": spec, "title": "net.onnx"})
        several.append(
            stored._replace(record=stored.record.model_copy(update={"model_card": model}))
        )
    (board,) = leaderboard.make_boards(several)
    assert sorted(row.title for row in board.rows) == [
        f"net.onnx (net.onnx(mean=[{mean}]))" for mean in (0.1, 0.2)
    ]
