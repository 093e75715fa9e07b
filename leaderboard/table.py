"""Boards and transfer matrices to terminal tables and Markdown; writes them, and the CSV."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich import box
from rich.table import Table
from rich.text import Text

from robustbench_med.bench.record import Estimate
from robustbench_med.stats import UNDEFINED

from .board import Board, Row
from .frame import guard, long_frame
from .lost import MEANS, Lost
from .objective import channel_words, objective_words
from .price import Price, change, counted, prices, times, trained_with
from .text import DASH, THREATS, number, plain, radii, short
from .transfer import Cell, Matrix, matrices

CONTROL = "a control is no attack: nobody is ranked"
_NARROW = 12  # characters of a column that shows no interval


def place(row: Row, rung: int) -> str:
    """Return the row's place as text, "1=" where it is shared; a dash where it is not ranked."""
    rank = row.ranks[rung]
    return DASH if rank is None else f"{rank}{'=' if row.sharing[rung] > 1 else ''}"


def facts(board: Board) -> str:
    """Return in one line what the board was measured on."""
    sizes = sorted({row.images for row in board.rows if row.images})
    images = f"{' / '.join(map(str, sizes)) or 'no'} images"
    ladder = radii(board.ladder, board.norm, board.budget)
    return f"{images}, {patients(board)} · {board.setting} · ε ∈ {ladder}"


def patients(board: Board) -> str:
    """Return the number of patients, or that images are treated as independent."""
    counts = sorted({row.patients for row in board.rows if row.patients is not None})
    return f"{' / '.join(map(str, counts))} patients" if counts else "images treated as independent"


def terminal_tables(
    made: list[Board], *, width: int = 100, only: list[Board] | None = None
) -> list[Table]:
    """Return a table a board; attacks have their intervals where `width` characters hold them.

    Where it does not even hold all attacks, those that harm most: the page has all.

    After the board that a transfer matrix stands on, the matrix.
    """
    found = matrices(made)
    tables = []
    for board in made if only is None else only:
        tables.append(_terminal(board, width))
        tables += [_terminal_matrix(matrix) for matrix in found if matrix.board is board]
    return tables


def _terminal_matrix(matrix: Matrix) -> Table:
    table = Table(
        title=Text(matrix_title(matrix), style="bold"),
        caption=Text(matrix_key(matrix)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("made on", min_width=10, overflow="fold")
    for victim in matrix.victims:
        table.add_column(Text(victim.title), justify="right", overflow="fold")
    for heading, cells in _matrix_rows(matrix):
        table.add_row(Text(heading), *(Text(_success(matrix, cell)) for cell in cells))
    return table


def matrix_title(matrix: Matrix) -> str:
    """Return what a transfer matrix shows."""
    heading = plain(matrix.board.dataset.heading)
    return (
        f"{heading}: {matrix.attack} made on one model, success on others at ε = {matrix.board.at}"
    )


def matrix_key(matrix: Matrix) -> str:
    """Return how a transfer matrix is read."""
    marks = [
        ("= attacker and victim are one model (white box)", any(_cells(matrix, "own"))),
        ("† flagged or invalid", any(_cells(matrix, "note"))),
        ("* trained on other data", any(model.other_data for model in matrix.surrogates)),
    ]
    parts = [text for text, used in marks if used]
    return "; ".join(
        [f"attack success in % of the images {matrix.board.score.right} when clean", *parts]
    )


def _cells(matrix: Matrix, field: str) -> list[object]:
    return [getattr(cell, field) for cell in matrix.cells.values()]


def _matrix_rows(matrix: Matrix) -> list[tuple[str, list[Cell | None]]]:
    return [
        (
            f"{model.title}{' *' if model.other_data else ''}",
            [matrix.cells.get((down, across)) for across in range(len(matrix.victims))],
        )
        for down, model in enumerate(matrix.surrogates)
    ]


def _success(matrix: Matrix, cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = number(cell.success[matrix.board.headline].value)
    return ("= " if cell.own else "") + value + (" †" if cell.note else "")


def _terminal(board: Board, width: int) -> Table:
    notes = [f"{row.title}: {row.standing}. {'; '.join(row.reasons)}" for row in board.rows]
    kept = [note for note, row in zip(notes, board.rows, strict=True) if row.reasons]
    score, longest = board.score, max((len(row.title) for row in board.rows), default=0)
    name = min(max(longest, 14), width // 3)
    cell = 3 + len(short(Estimate(value=0.5, low=0.25, high=0.75), score.kind))
    columns = _harmful(board, max((width - name - 6 - 2 * cell) // _NARROW, 3))
    left = len(board.columns) - len(columns)
    lines = [
        facts(board),
        *([f"{left} more column{'s' if left > 1 else ''} on the page"] if left else []),
        f"{board.score.key}, [95 % interval]",
        *(f"{DASH} {note}" for note in kept),
    ]
    if board.control:
        lines.append(CONTROL)
    aim = objective_words(board.objective, board.dataset) if board.objective != "untargeted" else ""
    touched = channel_words(board.channels, board.dataset)
    told = filter(None, [THREATS[board.threat], aim, touched, board.drawn])
    table = Table(
        title=Text(
            f"{plain(board.dataset.heading)} at ε = {board.at}, {', '.join(told)}", style="bold"
        ),
        caption=Text("\n".join(lines)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("#", justify="right")
    table.add_column("victim", width=name, overflow="fold")
    clean = [score.clean] if score.clean else []
    for heading in (score.worst, *clean, *columns):
        table.add_column(Text(heading), justify="right", overflow="fold")
    at, wide = board.headline, 24 + cell * (2 + len(columns)) <= width
    for row in board.rows:
        cells = [row.scores[c][at] if c in row.scores else UNDEFINED for c in columns]
        attacks = [short(e, score.kind) if wide else number(e.value, score.kind) for e in cells]
        worst = Text(short(row.worst[at], score.kind), style="bold")
        style = "dim" if row.reasons else None
        own = [short(row.clean, score.kind)] if clean else []
        texts = [worst, *map(Text, (*own, *attacks))]
        table.add_row(place(row, at), Text(row.title), *texts, style=style)
    return table


def _harmful(board: Board, most: int) -> tuple[str, ...]:
    """Return at most so many columns, in their order: those that leave the lowest scores.

    Oblivious ones last: they never rank.
    """
    if len(board.columns) <= most:
        return board.columns

    def order(column: str) -> tuple[bool, float]:
        found = [row.scores[column] for row in board.rows if column in row.scores]
        values = [v for each in found if math.isfinite(v := each[board.headline].value)]
        return column in board.oblivious, fmean(values) if values else math.inf

    kept = sorted(board.columns, key=order)[:most]
    return tuple(column for column in board.columns if column in kept)


def markdown(made: list[Board], *, title: str, lost: Sequence[Lost] = ()) -> str:
    """Return every board, and its transfer matrices, as Markdown tables; names are escaped."""
    found, parts = matrices(made), [f"# {_cell(title)}"]
    if lost:
        parts.append(f"**Not scored: {len(lost)}.** {MEANS}")
        parts.append("\n".join(f"- {_cell(one.label)}: {_cell(one.reason)}" for one in lost))
    for board in made:
        parts.append(_markdown(board))
        parts += [_markdown_matrix(matrix) for matrix in found if matrix.board is board]
    return "\n\n".join(parts) + "\n"


def _markdown_matrix(matrix: Matrix) -> str:
    heads = ["made on", *(victim.title for victim in matrix.victims)]
    lines = [f"### {_cell(matrix_title(matrix))}", "", _cell(matrix_key(matrix)), ""]
    lines += ["| " + " | ".join(map(_cell, heads)) + " |", "|---|" + "--:|" * len(matrix.victims)]
    for heading, cells in _matrix_rows(matrix):
        texts = [heading, *(_success(matrix, cell) for cell in cells)]
        lines.append("| " + " | ".join(map(_cell, texts)) + " |")
    return "\n".join(lines)


def _markdown(board: Board) -> str:
    at, score, found = board.headline, board.score, prices(board)
    heads = [
        "#",
        "victim",
        f"{score.worst} at {board.at}",
        *([score.clean] if score.clean else []),
        *board.columns,
        *(["defense", "knowledge", "clean change", "time a pass"] if found else []),
        "attacks run",
        "note",
    ]
    lines = [f"## {_cell(board.dataset.heading)}", "", _cell(facts(board)), ""]
    lines += [f"{CONTROL.capitalize()}.", ""] if board.control else []
    lines += ["| " + " | ".join(map(_cell, heads)) + " |"]
    extra = "---|---|--:|--:|" if found else ""
    averages = 1 + bool(score.clean)
    lines += ["|--:|---|" + "--:|" * (averages + len(board.columns)) + extra + ":-:|---|"]
    for row in board.rows:
        cells = [row.scores[c][at] if c in row.scores else UNDEFINED for c in board.columns]
        note = f"{row.standing}: {'; '.join(row.reasons)}" if row.reasons else ""
        ran = f"{len(row.runs)}/{len(board.columns) - len(row.own)}"
        first = (row.worst[at], row.clean)[:averages]
        numbers = [short(e, score.kind) for e in (*first, *cells)]
        texts = [row.title, *numbers, *(_defense(board, row, found) if found else []), ran, note]
        lines.append(f"| {place(row, at)} | " + " | ".join(map(_cell, texts)) + " |")
    return "\n".join(lines)


def _defense(board: Board, row: Row, found: dict[Row, Price]) -> list[str]:
    """Return the cells of a row on its defense: specs, knowledge, clean change, time of a pass."""
    if row not in found:
        return ["none", DASH, DASH, DASH]
    price, wrapped = found[row], row.key.defense
    specs = [str(trained_with(row)), wrapped if wrapped != "none" else ""]
    knows = sorted({run.record.case.knowledge for run in row.runs.values()})
    moved = change(price.clean, board.score.kind)
    moved = moved if moved == DASH else f"{moved} {counted(board)}"
    slower = DASH if price.slower is None else times(price.slower)
    return [" + ".join(filter(None, specs)), " and ".join(knows), moved, slower]


def _cell(text: str) -> str:
    escaped = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped)


def write_tables(
    made: list[Board], folder: Path, *, title: str, lost: Sequence[Lost] = ()
) -> tuple[Path, Path]:
    """Write `leaderboard.csv` and `leaderboard.md` into `folder` and return their paths."""
    frame = long_frame(made)
    for name in frame.select_dtypes(exclude="number"):  # few values, many lines
        frame[name] = frame[name].map({value: guard(value) for value in frame[name].unique()})
    text = frame.to_csv(index=False, lineterminator="\n")
    return (
        write_text(folder / "leaderboard.csv", text),
        write_text(folder / "leaderboard.md", markdown(made, title=title, lost=lost)),
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
