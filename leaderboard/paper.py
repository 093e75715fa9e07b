"""Write boards for a paper: tables in LaTeX, a wide CSV, and the figures of the page as files."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from robustbench_med.files import write_bytes, write_text
from robustbench_med.paper import DASH, cell, escape, latex_table
from robustbench_med.stats import Estimate

from .boards.board import Board, Row, with_ids
from .boards.channels import channel_bars, chart
from .boards.charts import certified, certified_curves, compute, compute_chart, curves
from .exports import guard
from .rows import Column, board_columns, note, rank_text
from .svg import printing
from .tables import facts
from .wording.text import plain, radius

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLES, WIDE, FIGURES = "tables.tex", "wide.csv", "figures"
_WIDEST = 5  # a table with more columns of numbers is scaled to the width of the text
_HEADER = """% One table for each board, made by robustbench_med. In the preamble of the document:
% \\usepackage{booktabs}
% \\usepackage{graphicx}
"""


def write_paper(boards: list[Board], folder: Path) -> list[Path]:
    """Write `tables.tex`, `wide.csv` and the folder `figures` into `folder`; return the files.

    Args:
        boards: the boards.
        folder: the folder; files of an earlier call are replaced.
    """
    return [
        write_text(folder / TABLES, latex(boards)),
        write_text(folder / WIDE, wide_csv(boards)),
        *write_figures(boards, folder / FIGURES),
    ]


def latex(boards: list[Board]) -> str:
    """Return a LaTeX table for each board, with victims as rows and attacks as columns.

    The numbers are those at the radius that ranks the board, with 95 % intervals.
    """
    tables = [_latex(ident, board) for ident, board in with_ids(boards)]
    return "\n".join([_HEADER, *tables])


def _latex(ident: str, board: Board) -> str:
    columns = board_columns(board)
    scores = [c for c in columns if c.role in ("score", "attack")]
    texts: dict[str, list[str]] = {
        r"\#": [_rank(row, board) for row in board.rows],
        "victim": [escape(row.title) for row in board.rows],
    }
    for column in scores:
        name = escape(column.title)
        while name in texts:  # headings of the board are distinct, but not from "victim"
            name += "~"
        texts[name] = [_number(column, row, board) for row in board.rows]
    notes = [f"{row.title}: {note(row)}" for row in board.rows if note(row)]
    caption = ". ".join(
        [
            f"{plain(board.dataset.heading)}, {board.score.key} with 95 % intervals at "
            f"{board.sign} {board.at}: {facts(board)}",
            *notes,
        ]
    )
    table = latex_table(
        pd.DataFrame(texts), caption=f"{escape(caption)}.", label=f"tab:{ident}", texts=2
    )
    if len(scores) <= _WIDEST:
        return table
    start, end = "\\begin{tabular}", "\\end{tabular}"
    scaled = table.replace(start, f"\\resizebox{{\\textwidth}}{{!}}{{%\n{start}", 1)
    return scaled.replace(end, f"{end}}}", 1)


def _rank(row: Row, board: Board) -> str:
    return escape(rank_text(row, board.headline))


def _number(column: Column, row: Row, board: Board) -> str:
    """Return the value of a column at the radius that ranks the board."""
    value = column.read(row, board.headline)
    if not isinstance(value.value, float):
        return DASH
    bounds = [math.nan if bound is None else bound for bound in (value.low, value.high)]
    estimate = Estimate(value=value.value, low=bounds[0], high=bounds[1])
    return cell(estimate, percent=column.kind == "percent")


def wide_csv(boards: list[Board]) -> str:
    """Return a CSV with a line for each board, row and radius, and the attacks as columns.

    Shares are numbers from 0 to 1. Beside each score are the ends of its 95 % interval, in columns
    of the same name with `_low` and `_high`.
    """
    lines = [
        _line(ident, board, row, rung)
        for ident, board in with_ids(boards)
        for row in board.rows
        for rung in range(len(board.ladder))
    ]
    frame = pd.DataFrame([{guard(k): guard(v) for k, v in line.items()} for line in lines])
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def _line(ident: str, board: Board, row: Row, rung: int) -> dict[str, object]:
    eps = board.ladder[rung]
    line: dict[str, object] = {
        "board": ident,
        "dataset": board.dataset.name,
        "threat": board.threat,
        "norm": board.norm,
        "objective": board.objective,
        "metric": board.score.metric,
        "victim": row.model.name,
        "title": row.title,
        "name": row.key.victim,
        "defense": row.key.defense,
        "standing": row.standing,
        "images": row.images,
        "patients": row.patients,
        "eps": eps,
        "radius": radius(eps, board.norm, board.budget),
        "rank": row.ranks[rung],
    }
    for column in board_columns(board):
        if column.role not in ("score", "attack"):
            continue
        key = f"attack {column.key}" if column.key in line else column.key
        value = column.read(row, rung)
        line |= {key: value.value, f"{key}_low": value.low, f"{key}_high": value.high}
    return line


def write_figures(boards: list[Board], folder: Path) -> list[Path]:
    """Write each figure of the page of `boards` as SVG and PDF into `folder`; return the files."""
    written: list[Path] = []
    proved: set[object] = set()
    for ident, board in with_ids(boards):
        rows = certified(board)
        keys = {(board.dataset.name, row.key) for row in rows}
        costs = compute(board)
        if board.rows:
            written += _write(partial(curves, board, "f"), folder / f"{ident}-curves")
        if costs is not None:
            written += _write(partial(compute_chart, board, costs, "f"), folder / f"{ident}-cost")
        if not keys <= proved:  # a certificate does not depend on the attacks of its board
            proved |= keys
            written += _write(partial(certified_curves, board, "f"), folder / f"{ident}-certified")
        charts = [bars for bars in channel_bars(boards) if bars.board is board]
        for i, bars in enumerate(charts):
            for j, group in enumerate(bars.groups):
                written += _write(
                    partial(chart, bars, group, "f"),
                    folder / f"{ident}-channels-{i + 1}-{j + 1}",
                )
    return written


def _write(draw: Callable[[], str], stem: Path) -> list[Path]:
    """Write the figure that a function draws as SVG and PDF; the files have no date."""
    paths = []

    def save(figure: Figure) -> None:
        from io import BytesIO

        import matplotlib as mpl

        for axes in figure.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False)
        # TrueType letters, which journals ask for, and text that stays text in the SVG
        with mpl.rc_context({"pdf.fonttype": 42}):
            for kind, dates in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
                buffer = BytesIO()
                figure.savefig(buffer, format=kind, metadata=dates, bbox_inches="tight")
                path = stem.with_name(f"{stem.name}.{kind}")
                paths.append(write_bytes(path, buffer.getvalue()))

    with printing(save):
        draw()
    return paths
