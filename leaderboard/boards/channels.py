"""Bars: the worst-case score of a victim if an attacker may change one channel, or all of them.

The bars compare boards that differ only in channels. Only attacks that ran on every one of these
boards count, on the images that they share; otherwise the channel with the most attacks would look
like the most sensitive one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from robustbench_med.bench.record import Stored
from robustbench_med.stats import Estimate
from robustbench_med.worst_case import lowest, means, on_rungs, rung_of, score_table

from ..svg import drawing, ink, inline, plain_axes, stroke
from ..wording.text import SCALE, number
from ..wording.threat_model import channel_label
from .board import Board, Row, RowKey
from .charts import colour, rows_with_curve

_LEAST = 2  # a comparison needs so many boards
_CLEAN = "clean"
_WIDEST = 10  # longest label below a bar, in letters; the table beside it has the full label


class Bar(NamedTuple):
    """A worst case at the headline radius; `doubted` if its row has no rank."""

    label: str
    estimate: Estimate
    doubted: bool = False


class Group(NamedTuple):
    """The bars of one victim, the clean one first if scored; `place` is that of its curve."""

    title: str
    place: int
    bars: tuple[Bar, ...]

    def bar(self, label: str) -> Bar | None:
        """Return the bar of a label; None if it was not run."""
        return next((bar for bar in self.bars if bar.label == label), None)


@dataclass(frozen=True, eq=False)
class Bars:
    """One chart for each victim.

    Attributes:
        board: the first of the compared boards.
        labels: the channels that may change, for each bar; the clean image first if it is scored.
        attacks: the attacks of the worst case.
    """

    board: Board
    labels: tuple[str, ...]
    attacks: tuple[str, ...]
    groups: tuple[Group, ...]


def channel_bars(boards: list[Board]) -> list[Bars]:
    """Return bars for the boards that differ only in channels, in the order of the boards."""
    families: dict[tuple[object, ...], list[Board]] = {}
    for board in boards:
        families.setdefault((*board.family, board.threat), []).append(board)
    charts = [_bars(family) for family in families.values() if len(family) >= _LEAST]
    return [bars for bars in charts if bars is not None]


def _bars(boards: list[Board]) -> Bars | None:
    at = boards[0].ladder[boards[0].headline]
    boards = [board for board in boards if rung_of(at, board.ladder) >= 0]
    if len(boards) < _LEAST:
        return None
    shared = (c for c in boards[0].columns if all(c in b.columns for b in boards))
    attacks = tuple(c for c in shared if c not in boards[0].oblivious)
    # one channel after the other, then several, and at the end all of them
    ordered = [b for b in boards if b.channels] + [b for b in boards if not b.channels]
    labels = tuple(channel_label(board.channels, board.dataset) for board in ordered)
    curve_of = {row.key: i for i, row in enumerate(rows_with_curve(boards[0]))}
    groups = [_group(key, ordered, labels, attacks, curve_of[key]) for key in curve_of]
    compared = tuple(group for group in groups if _compared(group) >= _LEAST)
    clean = (_CLEAN,) if boards[0].score.clean else ()
    return Bars(boards[0], (*clean, *labels), attacks, compared) if compared else None


def _group(
    key: RowKey,
    boards: list[Board],
    labels: tuple[str, ...],
    attacks: tuple[str, ...],
    curve: int,
) -> Group:
    rows = {
        label: row
        for label, board in zip(labels, boards, strict=True)
        for row in board.rows
        if row.key == key and _runs(row, attacks)
    }
    tables = {
        label: lowest([score_table(run, boards[0].ladder) for run in _runs(row, attacks)])
        for label, row in rows.items()
    }
    shared = sorted(set.intersection(*(set(t.index) for t in tables.values())) if tables else ())
    at = boards[0].headline
    bars: list[Bar] = []
    for label, row in rows.items():
        average = means(tables[label].loc[shared], _runs(row, attacks)[0])
        known = on_rungs(tables[label], average, len(boards[0].ladder))
        if not bars and boards[0].score.clean:
            bars.append(Bar(_CLEAN, known[0]))
        bars.append(Bar(label, known[at + 1], row.standing not in ("ranked", "control")))
    return Group(next((row.title for row in rows.values()), ""), curve, tuple(bars))


def _compared(group: Group) -> int:
    return sum(bar.label != _CLEAN for bar in group.bars)


def _runs(row: Row, attacks: tuple[str, ...]) -> list[Stored]:
    """Return the records of `attacks` on a row; an empty list unless all ran and are valid."""
    runs = [row.runs[c] for c in attacks if c in row.runs]
    whole = len(runs) == len(attacks) and all(run.record.status == "ok" for run in runs)
    return runs if whole else []


def chart(bars: Bars, group: Group, prefix: str) -> str:
    """Return the bars of one victim with 95 % intervals as an `<svg>` element.

    Args:
        bars: the compared boards.
        group: the victim.
        prefix: prefix of every id inside, so that ids stay unique on the page.
    """
    score = bars.board.score
    full = SCALE[score.kind][0]
    hue_of_row = stroke(colour(group.place))
    names = [
        b.label if len(b.label) <= _WIDEST else f"{b.label[: _WIDEST - 1]}…" for b in group.bars
    ]
    each = max(0.5, 0.08 * max(map(len, names)))  # inches a bar, so that labels do not touch
    with drawing(prefix, 0.3 + each * len(names), 2.1) as figure:
        axes = figure.add_axes((0.1, 0.2, 0.89, 0.76))
        for x, bar in enumerate(group.bars):
            e = bar.estimate
            clean = bar.label == _CLEAN
            hue = ink() if clean else hue_of_row
            last = x == len(group.bars) - 1
            axes.bar(
                x,
                full * e.value,
                width=0.72,
                facecolor="none" if bar.doubted else hue,
                edgecolor=hue,
                linewidth=1.2 if bar.doubted else 0,
                alpha=0.35 if clean else 1 if last or bar.doubted else 0.6,
            )
            axes.plot([x, x], [full * e.low, full * e.high], color=ink(), linewidth=1.2)
        values = [number(bar.estimate.value, score.kind) for bar in group.bars]
        labels = [f"{name}\n{value}" for name, value in zip(names, values, strict=True)]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.55, len(labels) - 0.45)
        axes.set_ylim(0, 1.02 * full)
        ticks = [0.0, 0.5 * full, full]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        plain_axes(axes)
        axes.tick_params(axis="x", length=0)
        texts = ", ".join(f"{b.label} {value}" for b, value in zip(group.bars, values, strict=True))
        label = f"{group.title}, worst-case {score.name} at ε = {bars.board.at}: {texts}"
        return inline(figure, prefix=prefix, label=label)
