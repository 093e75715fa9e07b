"""Boards to terminal tables, CSV and Markdown."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from robustbench_med.bench.record import Estimate
from robustbench_med.stats import UNDEFINED

from .rank import Board, Row
from .text import DASH, number, plain, radii, short

WORST = "worst_case"


def name(row: Row) -> str:
    """Return the row's model, with its defense where it has one."""
    title = plain(row.model.title)
    return title if row.defense == "none" else f"{title} + {plain(row.defense)}"


def place(row: Row, rung: int) -> str:
    """Return the row's place as text; a dash where it is not ranked."""
    rank = row.ranks[rung]
    return DASH if rank is None else str(rank)


def facts(board: Board) -> str:
    """Return in one line what the board was measured on."""
    sizes = sorted({row.images for row in board.rows if row.images})
    images = f"{' / '.join(map(str, sizes)) or 'no'} images"
    return f"{images}, {patients(board)} · {board.setting} · ε ∈ {radii(board.ladder, board.norm)}"


def patients(board: Board) -> str:
    """Return the number of patients, or that images are treated as independent."""
    counts = sorted({row.patients for row in board.rows if row.patients is not None})
    return f"{' / '.join(map(str, counts))} patients" if counts else "images treated as independent"


def terminal_tables(made: list[Board], *, width: int = 100) -> list[Table]:
    """Return a table a board; attacks have their intervals where `width` characters hold them."""
    return [_terminal(board, width) for board in made]


def _terminal(board: Board, width: int) -> Table:
    notes = [f"{name(row)}: {row.standing}. {'; '.join(row.reasons)}" for row in board.rows]
    kept = [note for note, row in zip(notes, board.rows, strict=True) if row.standing != "ranked"]
    lines = [facts(board), "accuracy in %, [95 % interval]", *(f"{DASH} {note}" for note in kept)]
    table = Table(
        title=Text(f"{plain(board.dataset.heading)} at ε = {board.at}", style="bold"),
        caption=Text("\n".join(lines)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("#", justify="right")
    table.add_column("victim", min_width=14, overflow="fold")
    for heading in ("worst case", "clean", *board.columns):
        table.add_column(Text(heading), justify="right")
    at, wide = board.headline, 54 + 15 * len(board.columns) <= width
    for row in board.rows:
        cells = [row.accuracy[c][at] if c in row.accuracy else UNDEFINED for c in board.columns]
        attacks = [short(cell) if wide else number(cell.value) for cell in cells]
        worst = Text(short(row.worst[at]), style="bold")
        style = None if row.standing == "ranked" else "dim"
        texts = [worst, *map(Text, (short(row.clean), *attacks))]
        table.add_row(place(row, at), Text(name(row)), *texts, style=style)
    return table


def long_frame(made: list[Board]) -> pd.DataFrame:
    """Return everything in long format: a row a (board, victim, attack, radius, metric)."""
    return pd.DataFrame(
        [line for board in made for row in board.rows for line in _lines(board, row)]
    )


def _lines(board: Board, row: Row) -> list[dict[str, object]]:
    head: dict[str, object] = {
        "dataset": board.dataset.name,
        "synthetic": board.dataset.synthetic,
        "objective": board.objective,
        "threat": board.threat,
        "norm": board.norm,
        "victim": row.model.name,
        "title": row.model.title,
        "family": row.model.family,
        "defense": row.defense,
        "victim_sha256": row.victim_sha256,
        "standing": row.standing,
        "reasons": "; ".join(row.reasons),
        "rank": row.ranks[board.headline],
    }

    def line(
        attack: str, case: str, n: int, eps: float, metric: str, e: Estimate
    ) -> dict[str, object]:
        cell = {"attack": attack, "case_id": case, "n": n, "patients": row.patients, "eps": eps}
        return head | cell | {"metric": metric, "value": e.value, "low": e.low, "high": e.high}

    levels = zip((0.0, *board.ladder), (row.clean, *row.worst), strict=True)
    lines = [line(WORST, "", row.images, eps, "accuracy", e) for eps, e in levels]
    for column, run in row.runs.items():
        record = run.record
        for rung in record.rungs:
            for metric, estimate in rung.metrics.items():
                lines.append(line(column, record.case_id, record.n, rung.eps, metric, estimate))
    return lines


def guard(value: object) -> object:
    """Return text that no spreadsheet runs as a formula: an apostrophe leads where one might.

    >>> guard("=1+1"), guard(-1.0), guard("resnet")
    ("'=1+1", -1.0, 'resnet')
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value


def markdown(made: list[Board], *, title: str) -> str:
    """Return every board as a Markdown table; names are escaped."""
    return "\n\n".join([f"# {_cell(title)}", *(_markdown(board) for board in made)]) + "\n"


def _markdown(board: Board) -> str:
    at = board.headline
    heads = [
        "#",
        "victim",
        f"worst case at {board.at}",
        "clean",
        *board.columns,
        "attacks run",
        "note",
    ]
    lines = [f"## {_cell(board.dataset.heading)}", "", _cell(facts(board)), ""]
    lines += ["| " + " | ".join(map(_cell, heads)) + " |"]
    lines += ["|--:|---|" + "--:|" * (2 + len(board.columns)) + ":-:|---|"]
    for row in board.rows:
        cells = [row.accuracy[c][at] if c in row.accuracy else UNDEFINED for c in board.columns]
        note = "" if row.standing == "ranked" else f"{row.standing}: {'; '.join(row.reasons)}"
        ran = f"{len(row.runs)}/{len(board.columns)}"
        texts = [name(row), short(row.worst[at]), short(row.clean), *map(short, cells), ran, note]
        lines.append(f"| {place(row, at)} | " + " | ".join(map(_cell, texts)) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped)


def write_tables(made: list[Board], folder: Path, *, title: str) -> tuple[Path, Path]:
    """Write `leaderboard.csv` and `leaderboard.md` into `folder` and return their paths."""
    frame = long_frame(made)
    text = frame.map(guard).to_csv(index=False, lineterminator="\n")
    return (
        write_text(folder / "leaderboard.csv", text),
        write_text(folder / "leaderboard.md", markdown(made, title=title)),
    )


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in one step, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
