"""Tables: format boards and transfer matrices for the terminal and as Markdown, and write files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from robustbench_med.bench.failure import Failure
from robustbench_med.files import write_text

from .boards.board import Board, Row
from .boards.transfer import Cell, Matrix, matrices
from .exports import csv_text
from .rows import Column, board_columns, rank_text
from .wording.commands import commands
from .wording.text import (
    DASH,
    FAILURES_MEAN,
    NORMS,
    THREATS,
    listed,
    measured,
    number,
    plain,
    radii,
)
from .wording.threat_model import channel_words, native_radii, objective_words

CONTROL = "a control is no attack, so no model is ranked"
_FIRST = ("worst_case", "clean")
_LEAST = 14  # smallest width of the column of victims, in characters
_RANK_WIDTH = 7  # width of the place, with the space around it and the victim
_GAP = 3  # characters between columns
_NARROW = 16  # longer words of a heading are folded
_MOST = 3  # a line shows at most so many commands, which differ only in the victim


def facts(board: Board) -> str:
    """Return the images, setting and radii of a board in one line."""
    sizes = sorted({row.images for row in board.rows if row.images})
    images = f"{' / '.join(map(str, sizes)) or 'no'} images"
    words = listed(board.ladder, board.norm) if board.shift else f"ε ∈ {radii_words(board)}"
    return f"{images}, {patients(board)} · {board.setting} · {words}"


def radii_words(board: Board) -> str:
    """Return the radii of a board, also in the units of its data if these are known."""
    ladder = radii(board.ladder, board.norm, board.budget)
    ladder = ladder.strip("{}") if board.shift else ladder
    linf = board.norm == "linf" and board.budget == "absolute"
    native = native_radii(board.ladder, board.dataset) if linf else ""
    return f"{ladder} ({native})" if native else ladder


def patients(board: Board) -> str:
    """Return the number of patients, or that images are treated as independent."""
    counts = sorted({row.patients for row in board.rows if row.patients is not None})
    if not counts:
        return "images treated as independent"
    return f"{' / '.join(map(str, counts))} patient{'' if counts == [1] else 's'}"


def terminal_tables(
    made: list[Board], *, width: int = 100, only: list[Board] | None = None
) -> list[Table | Text]:
    """Return the tables of each board with all attacks, from weak to strong, and its notes.

    If a table is wider than `width`, further tables with the same rows follow. Intervals of attacks
    are shown if there is room. A transfer matrix follows its board.

    Args:
        made: all boards.
        width: width of the terminal in characters.
        only: the boards to show; by default all.
    """
    transfers = matrices(made)
    tables: list[Table | Text] = []
    for board in made if only is None else only:
        tables += _terminal(board, width)
        for matrix in transfers:
            tables += _terminal_matrix(matrix) if matrix.board is board else []
    return tables


def _terminal_matrix(matrix: Matrix) -> list[Table | Text]:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("made on", min_width=10, overflow="fold")
    for victim in matrix.victims:
        table.add_column(Text(victim.title), justify="right", overflow="fold")
    for heading, cells in _matrix_rows(matrix):
        table.add_row(Text(heading), *(Text(_success(matrix, cell)) for cell in cells))
    title = Text(matrix_title(matrix), style="bold")
    return [title, table, Text(f"{matrix_key(matrix)}\n", style="italic")]


def matrix_title(matrix: Matrix) -> str:
    """Return the title of a transfer matrix."""
    heading = plain(matrix.board.dataset.heading)
    return (
        f"{heading}: {matrix.attack} made on one model, success on others at ε = {matrix.board.at}"
    )


def matrix_key(matrix: Matrix) -> str:
    """Return the legend of a transfer matrix."""
    marks = [
        ("= attacker and victim are one model (white box)", any(_cells(matrix, "white_box"))),
        ("† flagged or invalid", any(_cells(matrix, "note"))),
        ("* trained on other data", any(model.other_data for model in matrix.surrogates)),
    ]
    notes = [text for text, used in marks if used]
    return "; ".join(
        [f"attack success in % of the images {matrix.board.score.right} when clean", *notes]
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
    return ("= " if cell.white_box else "") + value + (" †" if cell.note else "")


def _terminal(board: Board, width: int) -> list[Table | Text]:
    """Return the table of a board, further tables with more attacks, and its notes.

    Worst case, clean score and all attacks share one table if they fit. To save room, the scores
    under attacks omit their intervals, and the name that `--victim` takes moves below the title.
    The other columns are shown if there is room; otherwise the lines below the table state them.
    """
    columns = [c for c in board_columns(board) if c.role == "attack" or c.key in _FIRST]
    layout = _layout(board, columns, width)
    room = width - _RANK_WIDTH - layout.name
    others = [c for c in board_columns(board) if c.kind or c.role == "run"]
    others = [c for c in others if c.role != "attack" and c.key not in _FIRST]
    needs = [_needed(board, c, whole=True) for c in others]
    natural = sum(
        max(w, _GAP + len(_heading(c))) for c, w in zip(columns, layout.widths, strict=True)
    )
    if natural + sum(needs) <= room:  # they fit without folding a heading
        columns += others
        layout = layout._replace(
            widths=layout.widths + needs, whole=layout.whole + [True] * len(others)
        )
    tables: list[Table | Text] = []
    for i, part in enumerate(_split(layout.widths, room=room)):
        tables.append(
            Text(
                terminal_title(board)
                if not i
                else ("further shifts" if board.shift else "further attacks"),
                style="bold",
            )
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("#", justify="right")
        table.add_column("victim", width=layout.name, overflow="fold")
        for at in part:
            table.add_column(
                Text(_heading(columns[at])),
                justify="right",
                overflow="fold",
                no_wrap=columns[at].key in _FIRST,
                width=None if layout.whole[at] else layout.widths[at] - _GAP,
            )
        for row in board.rows:
            cells = [_cell_of(columns[at], row, board.headline, layout.whole[at]) for at in part]
            style = "dim" if row.reasons else None
            table.add_row(
                rank_text(row, board.headline), Text(row.title_with_name), *cells, style=style
            )
        tables.append(table)
    return [*tables, Text("\n".join([*_caption(board), ""]), style="italic")]


class _Layout(NamedTuple):
    """Widths of the columns of a board in characters, including the space between them.

    Attributes:
        name: width of the column of victims.
        widths: width of each other column.
        whole: whether each other column shows its intervals.
    """

    name: int
    widths: list[int]
    whole: list[bool]


def _layout(board: Board, columns: Sequence[Column], width: int) -> _Layout:
    """Return the first layout in which all columns share a table, else one for several tables."""
    whole = max((len(row.title_with_name) for row in board.rows), default=0)
    folded = (
        max(
            (len(part) for row in board.rows for part in row.title_with_name.split(" (")), default=0
        )
        + 2
    )

    def layout(name: int, *intervals: str) -> _Layout:
        """`intervals`: the columns, or roles of columns, that show their intervals."""
        kept = [c.key in intervals or c.role in intervals for c in columns]
        needs = [_needed(board, c, whole=w) for c, w in zip(columns, kept, strict=True)]
        return _Layout(max(name, _LEAST), needs, kept)

    several = layout(min(folded, width // 3), "score")
    for candidate in (
        layout(whole, "score", "attack"),
        layout(whole, "score"),
        layout(folded, "score"),
        layout(folded, "worst_case"),
    ):
        if _RANK_WIDTH + candidate.name + sum(candidate.widths) <= width:
            return candidate
    return several


def _needed(board: Board, column: Column, *, whole: bool) -> int:
    """Return the width of a column in characters, including the space beside it."""
    cells = [_cell_of(column, row, board.headline, whole) for row in board.rows]
    if column.key in _FIRST:
        heading = len(_heading(column))
    else:
        heading = min(max(map(len, _heading(column).split())), _NARROW)
    return _GAP + max([heading, *map(len, cells)])


def _heading(column: Column) -> str:
    return f"{column.heading} {column.unit}".strip()


def _cell_of(column: Column, row: Row, rung: int, whole: bool) -> Text:  # noqa: FBT001
    value = column.read(row, rung)
    style = "bold" if column.key == "worst_case" else ""
    return Text(value.short if whole else value.text, style=style)


def terminal_title(board: Board) -> str:
    """Return the title above a board's table, which is unique on a page."""
    aim = objective_words(board.objective, board.dataset) if board.objective != "untargeted" else ""
    touched = channel_words(board.channels, board.dataset)
    relative = "relative to a training image's mean norm" if board.budget == "mean_norm" else ""
    norm = "" if board.norm == "linf" or board.shift else NORMS.get(board.norm, board.norm)
    words = filter(None, [THREATS[board.threat], norm, relative, aim, touched, board.image_set])
    return f"{plain(board.dataset.heading)} at {board.sign} {board.at}, {', '.join(words)}"


def _caption(board: Board) -> list[str]:
    """Return the lines below a board: its images and setting, and why rows have no rank."""
    notes = [
        f"{row.title_with_name}: {row.standing}. {'; '.join(row.reasons)}" for row in board.rows
    ]
    reasons = [note for note, row in zip(notes, board.rows, strict=True) if row.reasons]
    return [
        facts(board),
        f"{board.score.key}, [95 % interval]",
        *argmax_words(board),
        *beyond_words(board),
        *spec_words(board),
        *(f"{row.title_with_name}: {note}" for row in board.rows for note in row.notes),
        *(f"{DASH} {note}" for note in reasons),
        *([CONTROL] if board.control else []),
    ]


def spec_words(board: Board) -> list[str]:
    """Return the whole spec of each model whose name is shortened in a table.

    A title that a person chose stands alone.
    """
    rows = [row for row in board.rows if not row.model.named]
    whole = {row.short_name: plain(row.key.victim) for row in rows}
    return [f"{short} is {name}" for short, name in whole.items() if name != short]


def argmax_words(board: Board) -> list[str]:
    """Return how clean scores are decided at an operating point, and what they are by argmax."""
    decided = [(row, row.argmax) for row in board.rows if row.argmax is not None]
    if not decided or not board.score.clean:
        return []
    kind, short = board.score.kind, board.score.short
    moved = []
    for row, argmax in decided:
        by_argmax, clean = (measured(e.value, kind, short) for e in (argmax, row.clean))
        if by_argmax != clean:
            moved.append(f"{row.title_with_name} has {by_argmax} instead of {clean}")
    if not moved:
        moved = ["every clean score is the same"]
    elif len(moved) < len(board.rows):
        moved.append("every other clean score is the same")
    return [
        "clean scores are decided at the operating point (Youden's index on validation images); by "
        f"argmax, the network's own decision, {'; '.join(moved)}"
    ]


def beyond_words(board: Board) -> list[str]:
    """Return a line on each attack that ran on some rows and does not rank the board."""
    ranked = [row for row in board.rows if row.standing == "ranked"]
    lines = []
    for column in board.columns:
        if column in board.common or column in board.oblivious or board.control:
            continue
        met = [row for row in board.rows if column in row.attacked_by]
        lacking = [row for row in ranked if column not in row.attacked_by | row.not_applicable]
        if not met or not lacking:
            continue
        lines.append(
            f"{column} counts in the worst case of the {len(met)} of {len(board.rows)} rows on "
            "which it ran; without it the others may rank too high. To run it on them: "
            + "; ".join(dict.fromkeys(commands(row, [column], met) for row in lacking[:_MOST]))
            + (f"; and {len(lacking) - _MOST} more" if len(lacking) > _MOST else "")
        )
    return lines


def _split(widths: list[int], *, room: int) -> list[list[int]]:
    """Return the indices of the columns of each table: as many as fit, at least one."""
    tables: list[list[int]] = [[]]
    free = room
    for at, width in enumerate(widths):
        if width > free and tables[-1]:
            tables.append([])
            free = room
        tables[-1].append(at)
        free -= width
    return tables


def markdown(boards: list[Board], *, title: str, failures: Sequence[Failure] = ()) -> str:
    """Return every board, and its transfer matrices, as Markdown tables; names are escaped."""
    transfers, sections = matrices(boards), [f"# {_cell(title)}"]
    if failures:
        sections.append(f"**Not scored: {len(failures)}.** {FAILURES_MEAN}")
        sections.append(
            "\n".join(f"- {_cell(failure.label)}: {_cell(failure.reason)}" for failure in failures)
        )
    for board in boards:
        sections.append(_markdown(board))
        sections += [_markdown_matrix(matrix) for matrix in transfers if matrix.board is board]
    return "\n\n".join(sections) + "\n"


def _markdown_matrix(matrix: Matrix) -> str:
    heads = ["made on", *(victim.title for victim in matrix.victims)]
    lines = [f"### {_cell(matrix_title(matrix))}", "", _cell(matrix_key(matrix)), ""]
    lines += ["| " + " | ".join(map(_cell, heads)) + " |", "|---|" + "--:|" * len(matrix.victims)]
    for heading, cells in _matrix_rows(matrix):
        texts = [heading, *(_success(matrix, cell) for cell in cells)]
        lines.append("| " + " | ".join(map(_cell, texts)) + " |")
    return "\n".join(lines)


def _markdown(board: Board) -> str:
    columns = board_columns(board)
    lines = [f"## {_cell(board.dataset.heading)}", "", _cell(facts(board)), ""]
    lines += [f"{CONTROL.capitalize()}.", ""] if board.control else []
    for words in (*argmax_words(board), *beyond_words(board)):
        lines += [f"{_cell(words[:1].upper() + words[1:])}.", ""]
    at = f" at {board.at}"
    heads = [f"{c.heading}{at if c.key == 'worst_case' else ''}" for c in columns]
    titles = [
        f"{head}, {c.unit}" if c.unit else head for c, head in zip(columns, heads, strict=True)
    ]
    lines.append("| " + " | ".join(_heading_cell(title) for title in titles) + " |")
    lines.append(
        "|" + "|".join("--:" if c.kind or c.role in _COUNTS else "---" for c in columns) + "|"
    )
    for row in board.rows:
        values = [c.read(row, board.headline) for c in columns]
        lines.append("| " + " | ".join(_cell(v.short or v.text) for v in values) + " |")
    return "\n".join(lines)


_COUNTS = ("rank", "run")


def _heading_cell(title: str) -> str:
    return title if title == "#" else _cell(title)


def _cell(text: str) -> str:
    escaped = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped)


def write_tables(
    boards: list[Board],
    folder: Path,
    *,
    title: str,
    failures: Sequence[Failure] = (),
    csv: str = "",
) -> tuple[Path, Path]:
    """Write `leaderboard.csv` and `leaderboard.md` into `folder` and return their paths.

    Args:
        boards: the boards to write.
        folder: the folder of the files.
        title: heading of the Markdown file.
        failures: cases without a usable record.
        csv: the result of `csv_text`, if the caller has it.
    """
    return (
        write_text(folder / "leaderboard.csv", csv or csv_text(boards)),
        write_text(folder / "leaderboard.md", markdown(boards, title=title, failures=failures)),
    )
