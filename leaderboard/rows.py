"""The columns of a board: one description that the terminal, Markdown, CSV, page and JSON write.

`board_columns` lists the columns of a board in their order. Each has a heading, a unit, and a
function that reads the value of a row at one radius. A writer adds layout alone, so that a row
holds the same numbers everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from robustbench_med.stats import Estimate

from .boards.board import Board, Row
from .boards.defenses import DefenseEffect, defense_effects, ratio_text, signed_change, trained_with
from .wording.text import DASH, interval, number, plain, short

Role = Literal["rank", "victim", "score", "attack", "defense", "run", "note"]


class Value(NamedTuple):
    """The value of one column in one row, at one radius.

    Attributes:
        value: the number itself (a share from 0 to 1 where the unit is %), or a text; None where
            it is not defined.
        text: as tables show it, without interval and unit; a dash where it is not defined.
        low, high: bounds of its 95 % interval; None where it has none.
        interval: these bounds as tables show them.
        short: the text and a rounded interval, for terminals.
        reason: why there is no value: "not run".
    """

    value: float | str | None
    text: str
    low: float | None = None
    high: float | None = None
    interval: str = ""
    short: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a board.

    Attributes:
        key: what CSV, JSON and the page call it; of an attack its heading.
        heading: what tables call it, without its unit.
        unit: of the text: "%", "points", "×"; empty of a Dice, a count and a name.
        role: what it is about; a writer lays out the columns of one role alike.
        kind: how its numbers are written, a key of `text.SCALE`; empty of other values.
        at_radius: whether its value depends on the radius.
        read: the value of a row at a place on the ladder of the board.
    """

    key: str
    heading: str
    unit: str
    role: Role
    kind: str
    at_radius: bool
    read: Callable[[Row, int], Value]

    @property
    def title(self) -> str:
        """The heading with the unit: "worst case, %"."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


UNITS = {"percent": "%"}  # kind of a value -> unit of its text; a Dice has none


def board_columns(board: Board) -> tuple[Column, ...]:
    """Return the columns of a board in the order in which every output writes them."""
    costs = defense_effects(board)
    return (
        Column("rank", "#", "", "rank", "", True, _rank),
        _text("title", "victim", "victim", lambda row: row.title),
        _text("name", "name", "victim", lambda row: row.key.victim),
        *_scores(board),
        *(_attack(board, column) for column in board.columns),
        *(_defenses(board, costs) if costs else ()),
        _text("attacks_run", "attacks run", "run", lambda row: attacks_run(board, row)),
        Column("images", "images", "", "run", "", False, lambda row, _: _count(row.images)),
        _text("note", "note", "note", note),
    )


def attacks_run(board: Board, row: Row) -> str:
    """Return how many of the attacks that a row can have ran on it: "5/6"."""
    return f"{len(row.attacked_by)}/{len(board.columns) - len(row.not_applicable)}"


def note(row: Row) -> str:
    """Return why a row has no rank, or what else a reader should know of it."""
    return f"{row.standing}: {'; '.join(row.reasons)}" if row.reasons else "; ".join(row.notes)


def rank_text(row: Row, rung: int) -> str:
    """Return the rank of a row as text: "1=" where rows share it, a dash where it has none."""
    rank = row.ranks[rung]
    return DASH if rank is None else f"{rank}{'=' if row.sharing[rung] > 1 else ''}"


def estimate_value(estimate: Estimate, kind: str, reason: str = "") -> Value:
    """Return an estimate as the value of a column."""
    return Value(
        _finite(estimate.value),
        number(estimate.value, kind),
        _finite(estimate.low),
        _finite(estimate.high),
        interval(estimate, kind),
        short(estimate, kind),
        reason,
    )


def _scores(board: Board) -> list[Column]:
    """Return the columns of the worst case, the clean score, and the clean score by argmax."""
    score = board.score
    unit = UNITS.get(score.kind, "")

    def column(key: str, heading: str, read: Callable[[Row, int], Estimate]) -> Column:
        return Column(
            key,
            heading,
            unit,
            "score",
            score.kind,
            key == "worst_case",
            lambda row, rung: estimate_value(read(row, rung), score.kind),
        )

    columns = [column("worst_case", score.worst, lambda row, rung: row.worst[rung])]
    if score.clean:
        columns.append(column("clean", score.clean, lambda row, _: row.clean))
        if any(row.argmax is not None for row in board.rows):
            # without an operating point the decision is the network's own already
            argmax = column("clean_by_argmax", "clean by argmax", lambda r, _: r.argmax or r.clean)
            columns.append(argmax)
    return columns


def _attack(board: Board, attack: str) -> Column:
    kind = board.score.kind

    def read(row: Row, rung: int) -> Value:
        if attack in row.scores:
            return estimate_value(row.scores[attack][rung], kind)
        return Value(None, DASH, short=DASH, reason=_missing(board, row, attack))

    return Column(attack, attack, UNITS.get(kind, ""), "attack", kind, True, read)


def _missing(board: Board, row: Row, attack: str) -> str:
    """Return why a row has no score under an attack."""
    if attack in row.attacked_by:
        return "invalid"
    if attack in row.not_applicable:
        return "no defense" if attack in board.oblivious else "itself"
    return "not run"


def _defenses(board: Board, costs: dict[Row, DefenseEffect]) -> list[Column]:
    """Return the columns that say what each defense changes and costs."""
    kind = board.score.kind
    points = "points" if kind == "percent" else ""

    def moved(row: Row, values: Callable[[DefenseEffect], float]) -> Value:
        value = values(costs[row]) if row in costs else math.nan
        written = signed_change(value, kind)
        return Value(_finite(value), written, short=written)

    def slower(row: Row, _rung: int) -> Value:
        ratio = costs[row].slower if row in costs else None
        written = DASH if ratio is None else ratio_text(ratio).removesuffix(" ×")
        return Value(ratio, written, short=written)

    columns = [
        _text("defense", "defense", "defense", lambda row: defense_spec(row, costs)),
        _text("knowledge", "knowledge", "defense", lambda row: _knowledge(row, costs)),
        Column(
            "worst_change",
            "worst change",
            points,
            "defense",
            kind,
            True,
            lambda row, rung: moved(row, lambda cost: cost.worst[rung]),
        ),
        Column("slower", "time a pass", "×", "defense", "plain", False, slower),
    ]
    if board.score.clean:
        clean = Column(
            "clean_change",
            "clean change",
            points,
            "defense",
            kind,
            False,
            lambda row, _: moved(row, lambda cost: cost.clean),
        )
        columns.insert(2, clean)
    return columns


def defense_spec(row: Row, costs: dict[Row, DefenseEffect]) -> str:
    """Return the defenses of a row as one types them: what it was trained with, what wraps it."""
    if row not in costs:
        return "none"
    wrapper = row.key.defense
    specs = [str(trained_with(row)), wrapper if wrapper != "none" else ""]
    return " + ".join(filter(None, specs))


def _knowledge(row: Row, costs: dict[Row, DefenseEffect]) -> str:
    if row not in costs:
        return DASH
    return " and ".join(sorted({run.record.case.knowledge for run in row.runs.values()}))


def _rank(row: Row, rung: int) -> Value:
    return Value(row.ranks[rung], rank_text(row, rung))


def _text(key: str, heading: str, role: Role, read: Callable[[Row], str]) -> Column:
    def value(row: Row, _rung: int) -> Value:
        text = plain(read(row))
        return Value(text, text, short=text)

    return Column(key, heading, "", role, "", False, value)


def _count(count: int) -> Value:
    text = str(count) if count else DASH
    return Value(count, text, short=text)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
