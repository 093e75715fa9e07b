"""Describe the columns of a board once, for the terminal, Markdown, CSV, the page and JSON.

`board_columns` lists the columns of a board in their order. Each has a heading, a unit, and a
function that reads the value of a row at one radius. The writers only add the layout, so that a row
has the same numbers in every output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from robustbench_med.stats import Estimate

from .boards.board import Board, Row
from .boards.certified_masks import ProvedMasks, proved_masks
from .boards.defenses import DefenseEffect, defense_effects, ratio_text, signed_change, trained_with
from .wording.text import DASH, interval, number, plain, short

Role = Literal["rank", "victim", "score", "attack", "defense", "run", "note"]


class Value(NamedTuple):
    """The value of one column in one row, at one radius.

    Attributes:
        value: the number (a share from 0 to 1 if the unit is %) or a text; None if undefined.
        text: the value as text, without interval and unit; a dash if it is undefined.
        low, high: bounds of its 95 % interval; None if it has none.
        interval: the bounds as text.
        short: the text and a rounded interval, for terminals.
        reason: the reason why there is no value: "not run".
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
        key: its name in CSV, JSON and the page; for an attack, its heading.
        heading: its name in tables, without the unit.
        unit: the unit of the text: "%", "points", "×"; empty for a Dice, a count and a name.
        role: its subject; a writer gives all columns of one role the same layout.
        kind: the format of its numbers, a key of `text.SCALE`; empty for other values.
        at_radius: whether its value depends on the radius.
        read: returns the value of a row at an index of the board's ladder.
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


# keys of the columns on certified masks, on boards that have them
PROVED = ("certified_dice", "certified_pixels", "certified_radius")
UNITS = {"percent": "%"}  # kind of a value -> its unit; a Dice has none


def board_columns(board: Board) -> tuple[Column, ...]:
    """Return the columns of a board, in the order that all outputs use."""
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
    """Return how many attacks ran on a row, out of those that can run on it: "5/6"."""
    return f"{len(row.attacked_by)}/{len(board.columns) - len(row.not_applicable)}"


def note(row: Row) -> str:
    """Return why a row has no rank, or else the remarks on it."""
    return f"{row.standing}: {'; '.join(row.reasons)}" if row.reasons else "; ".join(row.notes)


def rank_text(row: Row, rung: int) -> str:
    """Return the rank of a row as text: "1=" if rows share it, a dash if the row has none."""
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
            # without an operating point, the decision is already the network's own
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
    """Return the columns on the effect and the cost of each defense."""
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
    return [*columns, *_proved(board)]


def _proved(board: Board) -> list[Column]:
    """Return the columns on certified masks; none if no row has them."""
    proved = proved_masks(board)
    if not proved:
        return []

    def column(key: str, heading: str, kind: str, read: Callable[[Row], Estimate]) -> Column:
        def value(row: Row, _rung: int) -> Value:
            if row not in proved:
                return Value(None, DASH, short=DASH)
            return estimate_value(read(row), kind)

        return Column(key, heading, UNITS.get(kind, ""), "defense", kind, False, value)

    dice, pixels, radius = PROVED
    return [
        column(dice, "certified Dice", "unit", lambda row: proved[row].proved.dice),
        column(pixels, "pixels certified", "percent", lambda row: proved[row].proved.certified),
        column(radius, "certified L2 radius", "unit", lambda row: _exact(proved[row])),
    ]


def _exact(found: ProvedMasks) -> Estimate:
    radius = found.proved.radius
    return Estimate(value=radius, low=math.nan, high=math.nan)


def defense_spec(row: Row, costs: dict[Row, DefenseEffect]) -> str:
    """Return the specs of a row's defenses: the one that trained it, and the one that wraps it."""
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
