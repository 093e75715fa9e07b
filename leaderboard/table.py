"""Boards and transfer matrices to terminal tables and Markdown; writes them, and the CSV."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Estimate
from robustbench_med.files import write_text
from robustbench_med.stats import UNDEFINED

from .board import Board, Row
from .commands import commands
from .frame import guard, long_frame
from .objective import channel_words, objective_words
from .price import Price, change, counted, prices, times, trained_with
from .text import DASH, FAILURES_MEAN, NORMS, THREATS, number, plain, radii, short
from .transfer import Cell, Matrix, matrices

CONTROL = "a control is no attack: nobody is ranked"
_LEAST = 14  # characters of the column of victims, at least
_PLACE = 7  # characters of the place, with the space around it and the victim
_GAP = 3  # characters beside a column
_NARROW = 16  # characters of a word of a heading; longer ones are folded
_MOST = 3  # commands of a line; the others differ in the victim alone


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
) -> list[Table | Text]:
    """Return the tables of each board, with all attacks, weak to strong, and its notes.

    Where `width` characters do not hold them, further tables of the same rows follow. Attacks have
    their intervals where there is room. After the board that a transfer matrix stands on, the
    matrix.

    Args:
        made: all boards.
        width: of the terminal, in characters.
        only: the boards that are shown; by default all.
    """
    found = matrices(made)
    tables: list[Table | Text] = []
    for board in made if only is None else only:
        tables += _terminal(board, width)
        for matrix in found:
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


def _terminal(board: Board, width: int) -> list[Table | Text]:
    """Return the table of a board, those that continue it with further attacks, and what it says.

    The columns of a board share a table as long as they fit: for that attacks give up their
    intervals, and the name that one types moves below the title.
    """
    score = board.score
    clean = [score.clean] if score.clean else []
    layout = _layout(board, width)
    name, needs = layout.name, layout.attacks
    rest = width - _PLACE - name
    parts = _parted(needs, first=rest - layout.scores, rest=rest)
    tables: list[Table | Text] = []
    for i, part in enumerate(parts):
        columns = [board.columns[place] for place in part]
        tables.append(Text(terminal_title(board) if not i else "further attacks", style="bold"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("#", justify="right")
        table.add_column("victim", width=name, overflow="fold")
        for heading in [score.worst, *clean] if not i else []:
            table.add_column(Text(heading), justify="right", no_wrap=True)
        for at in part:
            table.add_column(
                Text(board.columns[at]),
                justify="right",
                overflow="fold",
                width=None if layout.wide else needs[at] - _GAP,
            )
        for row in board.rows:
            texts = _cells_of(board, row, columns, layout=layout, first=not i)
            style = "dim" if row.reasons else None
            table.add_row(place(row, board.headline), Text(row.typed), *texts, style=style)
        tables.append(table)
    return [*tables, Text("\n".join([*_caption(board), ""]), style="italic")]


class _Layout(NamedTuple):
    """Widths of the columns of a board in characters, with the space beside them.

    Attributes:
        name: of the victim.
        scores: of worst case and clean together.
        attacks: of each attack.
        wide: whether attacks have their intervals.
        clean: whether the clean score has its interval.
    """

    name: int
    scores: int
    attacks: list[int]
    wide: bool
    clean: bool


def _layout(board: Board, width: int) -> _Layout:
    """Return the first layout in which all attacks share a table, else one for several tables."""
    score, at = board.score, board.headline
    whole = max((len(row.typed) for row in board.rows), default=0)
    folded = max((len(part) for row in board.rows for part in row.typed.split(" (")), default=0) + 2
    cell = _GAP + len(short(Estimate(value=0.5, low=0.25, high=0.75), score.kind))
    narrow = [_needed(board, column) for column in board.columns]
    scored = [len(short(row.worst[at], score.kind)) for row in board.rows]
    worst = _GAP + max([len(score.worst), *scored])
    clean = [len(short(row.clean, score.kind)) for row in board.rows]
    bare = [len(number(row.clean.value, score.kind)) for row in board.rows]

    def layout(name: int, *, wide: bool = False, interval: bool = True) -> _Layout:
        texts = [len(score.clean), *(clean if interval else bare)]
        scores = worst + (_GAP + max(texts) if score.clean else 0)
        attacks = [cell] * len(narrow) if wide else narrow
        return _Layout(max(name, _LEAST), scores, attacks, wide, interval)

    several = layout(min(folded, width // 3))
    for one in (
        layout(whole, wide=True),
        layout(whole),
        layout(folded),
        layout(folded, interval=False),
    ):
        if _PLACE + one.name + one.scores + sum(one.attacks) <= width:
            return one
    return several


def _cells_of(
    board: Board, row: Row, columns: list[str], *, layout: _Layout, first: bool
) -> list[Text]:
    at, kind = board.headline, board.score.kind
    cells = [row.scores[c][at] if c in row.scores else UNDEFINED for c in columns]
    texts = [Text(short(e, kind) if layout.wide else number(e.value, kind)) for e in cells]
    if not first:
        return texts
    clean = short(row.clean, kind) if layout.clean else number(row.clean.value, kind)
    own = [Text(clean)] if board.score.clean else []
    return [Text(short(row.worst[at], kind), style="bold"), *own, *texts]


def terminal_title(board: Board) -> str:
    """Return what a board is called above its table: no two of a page are called the same."""
    aim = objective_words(board.objective, board.dataset) if board.objective != "untargeted" else ""
    touched = channel_words(board.channels, board.dataset)
    relative = "relative to a training image's mean norm" if board.budget == "mean_norm" else ""
    norm = "" if board.norm == "linf" else NORMS.get(board.norm, board.norm)
    told = filter(None, [THREATS[board.threat], norm, relative, aim, touched, board.drawn])
    return f"{plain(board.dataset.heading)} at ε = {board.at}, {', '.join(told)}"


def _caption(board: Board) -> list[str]:
    """Return the lines below a board: what it was measured on, and why rows have no rank."""
    notes = [f"{row.typed}: {row.standing}. {'; '.join(row.reasons)}" for row in board.rows]
    kept = [note for note, row in zip(notes, board.rows, strict=True) if row.reasons]
    return [
        facts(board),
        f"{board.score.key}, [95 % interval]",
        *argmax_words(board),
        *beyond_words(board),
        *(f"{row.typed}: {note}" for row in board.rows for note in row.notes),
        *(f"{DASH} {note}" for note in kept),
        *([CONTROL] if board.control else []),
    ]


def argmax_words(board: Board) -> list[str]:
    """Return how clean accuracy is decided where a threshold was chosen, and what it is without."""
    found = [(row, row.argmax) for row in board.rows if row.argmax is not None]
    if not found or not board.score.clean:
        return []
    kind = board.score.kind
    moved = [(r, e) for r, e in found if number(e.value, kind) != number(r.clean.value, kind)]
    said = "; ".join(
        f"{row.typed} {number(e.value, kind)} instead of {number(row.clean.value, kind)}"
        for row, e in moved
    )
    return [
        "decided at the operating point (Youden's index on validation); by argmax, the network's "
        "own decision, clean is " + (said or "the same") + ("; else the same" if said else "")
    ]


def beyond_words(board: Board) -> list[str]:
    """Return a line on each attack that some rows met and the board does not rank by."""
    ranked = [row for row in board.rows if row.standing == "ranked"]
    lines = []
    for column in board.columns:
        if column in board.common or column in board.oblivious or board.control:
            continue
        met = [row for row in board.rows if column in row.met]
        lacking = [row for row in ranked if column not in row.met | row.own]
        if not met or not lacking:
            continue
        lines.append(
            f"{column} counts in the worst case of the {len(met)} of {len(board.rows)} rows that "
            "met it; the others may stand too high for want of it. To run it on them: "
            + "; ".join(dict.fromkeys(commands(row, [column], met) for row in lacking[:_MOST]))
            + (f"; and {len(lacking) - _MOST} more" if len(lacking) > _MOST else "")
        )
    return lines


def _needed(board: Board, column: str) -> int:
    """Return the characters that a column without intervals takes, with the space beside it."""
    word = max(map(len, column.split()), default=0)
    value = len(number(1.0, board.score.kind))
    return _GAP + max(value, min(word, _NARROW))


def _parted(needs: list[int], *, first: int, rest: int) -> list[list[int]]:
    """Return the places of columns in tables: as many each as its room holds, one at least."""
    parts: list[list[int]] = [[]]
    room = first
    for place, need in enumerate(needs):
        if need > room and (parts[-1] or len(parts) == 1):
            parts.append([])
            room = rest
        parts[-1].append(place)
        room -= need
    return parts


def markdown(made: list[Board], *, title: str, failures: Sequence[Failure] = ()) -> str:
    """Return every board, and its transfer matrices, as Markdown tables; names are escaped."""
    found, parts = matrices(made), [f"# {_cell(title)}"]
    if failures:
        parts.append(f"**Not scored: {len(failures)}.** {FAILURES_MEAN}")
        parts.append("\n".join(f"- {_cell(one.label)}: {_cell(one.reason)}" for one in failures))
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
    argmax = bool(score.clean) and any(row.argmax is not None for row in board.rows)
    heads = [
        "#",
        "victim",
        "name",
        f"{score.worst} at {board.at}",
        *([score.clean] if score.clean else []),
        *(["clean by argmax"] if argmax else []),
        *board.columns,
        *(["defense", "knowledge", "clean change", "time a pass"] if found else []),
        "attacks run",
        "note",
    ]
    lines = [f"## {_cell(board.dataset.heading)}", "", _cell(facts(board)), ""]
    lines += [f"{CONTROL.capitalize()}.", ""] if board.control else []
    for words in (*argmax_words(board), *beyond_words(board)):
        lines += [f"{_cell(words[:1].upper() + words[1:])}.", ""]
    lines += ["| " + " | ".join(map(_cell, heads)) + " |"]
    extra = "---|---|--:|--:|" if found else ""
    averages = 1 + bool(score.clean)
    numbers = averages + argmax + len(board.columns)
    lines += ["|--:|---|---|" + "--:|" * numbers + extra + ":-:|---|"]
    for row in board.rows:
        cells = [row.scores[c][at] if c in row.scores else UNDEFINED for c in board.columns]
        note = f"{row.standing}: {'; '.join(row.reasons)}" if row.reasons else "; ".join(row.notes)
        ran = f"{len(row.met)}/{len(board.columns) - len(row.own)}"
        first = [*(row.worst[at], row.clean)[:averages]]
        first += [row.argmax or row.clean] if argmax else []
        written = [short(e, score.kind) for e in (*first, *cells)]
        texts = [
            row.title,
            row.key.victim,
            *written,
            *(_defense(board, row, found) if found else []),
            ran,
            note,
        ]
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
    made: list[Board], folder: Path, *, title: str, failures: Sequence[Failure] = ()
) -> tuple[Path, Path]:
    """Write `leaderboard.csv` and `leaderboard.md` into `folder` and return their paths."""
    frame = long_frame(made)
    for name in frame.select_dtypes(exclude="number"):  # few values, many lines
        frame[name] = frame[name].map({value: guard(value) for value in frame[name].unique()})
    text = frame.to_csv(index=False, lineterminator="\n")
    return (
        write_text(folder / "leaderboard.csv", text),
        write_text(folder / "leaderboard.md", markdown(made, title=title, failures=failures)),
    )
