"""Compute: worst case at the headline radius against what the victim costs to run, as inline SVG.

The cost of one image forward + backward is taken from the records: seconds of an attack over the
images it forwarded and back-propagated, times two. Of the attacks that all rows have the least
counts: other work on the machine only adds. The attack's own work is in it, the same for all rows.
The time in a model's card is not used: cards are measured one by one, on different days and numbers
of threads, and the same architecture differs by 6 times there. Parameters are no cost: weights are
shared over pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med.bench.record import Record

from .board import Board, Row
from .figures import colour, drawn, shape
from .svg import INK, drawing, inline, plain_axes, stroke
from .text import SCALE, plain

_MARKERS = "os^"
_LEAST = 2  # rows that are worth a figure
_TICKS = 3


class Compute(NamedTuple):
    """What the figure shows.

    Attributes:
        cost: row -> ms of one image forward + backward.
        where: machines the cost was measured on.
        left: rows without a cost.
    """

    cost: dict[Row, float]
    where: tuple[str, ...]
    left: int


def compute(board: Board) -> Compute | None:
    """Return the cost of the rows of a white-box board; None where fewer than two have one.

    Elsewhere the passes counted are of another model, or repeat those of the white box.
    """
    rows = drawn(board)
    if board.threat != "white_box" or board.channels:
        return None
    timed = {row: _timed(row) for row in rows}
    timed = {row: own for row, own in timed.items() if own}
    shared = set.intersection(*(set(own) for own in timed.values())) if timed else set()
    if len(timed) < _LEAST or not shared:
        return None
    cost = {row: min(own[c] for c in shared) for row, own in timed.items()}
    records = [row.runs[c].record for row in cost for c in sorted(shared)]
    where = {_machine(record) for record in records}
    return Compute(cost, tuple(sorted(where)), len(rows) - len(cost))


def _timed(row: Row) -> dict[str, float]:
    """Return the cost by each attack of a row in ms; oblivious ones climb another model."""
    found = {}
    for column, run in row.runs.items():
        cost = run.record.cost
        passes = cost.forward + cost.backward if cost else 0
        if cost and passes and cost.seconds > 0 and column not in row.oblivious:
            found[column] = 2000 * cost.seconds / passes
    return found


def _machine(record: Record) -> str:
    source = record.provenance
    return f"{plain(source.device)}, {source.threads} thread{'s' if source.threads != 1 else ''}"


def compute_chart(board: Board, found: Compute, prefix: str) -> str:
    """Return worst-case score against cost with 95 % intervals as an `<svg>` element.

    Args:
        board: colours and markers are those of its curves.
        found: of `compute`.
        prefix: starts every id inside, so that ids stay unique on the page.
    """
    full, said = SCALE[board.score.kind][0], []
    place = {row: i for i, row in enumerate(drawn(board))}
    with drawing(prefix, 6.6, 3.0) as figure:
        axes = figure.add_axes((0.085, 0.155, 0.885, 0.82))
        for row, ms in found.cost.items():
            e, number = row.worst[board.headline], place[row]
            ranked = row.standing in ("ranked", "control")
            hue = stroke(colour(number))
            axes.plot([ms, ms], [full * e.low, full * e.high], color=hue, linewidth=1.2, alpha=0.5)
            axes.plot(
                [ms],
                [full * e.value],
                marker=_MARKERS[shape(number)],
                markersize=7,
                color=hue,
                markerfacecolor=hue if ranked else "none",
                gid=f"curve-{number}",
            )
            said.append(f"{row.title}: {ms:.3g} ms, {full * e.value:.3g}")
        _axes(axes, list(found.cost.values()), full)
        axes.set_xlabel("one image forward + backward, ms (log scale)", color=INK)
        axes.set_ylabel(board.score.axis, color=INK)
        plain_axes(axes)
        label = f"Worst-case {board.score.name} at ε = {board.at} against cost on "
        return inline(
            figure, prefix=prefix, label=f"{label}{plain(board.dataset.heading)}. {'; '.join(said)}"
        )


def _axes(axes: object, costs: list[float], full: float) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)  # noqa: S101 - imported late
    low, high = min(costs) / 1.4, max(costs) * 1.4
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks: list[float] = []
    for mantissas in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):  # the finer where few fit
        if len(ticks) < _TICKS:
            steps = [m * 10.0**e for e in range(-4, 7) for m in mantissas]
            ticks = [tick for tick in steps if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.03 * full, 1.03 * full)
    levels = [full * step / 5 for step in range(6)]
    axes.set_yticks(levels, [f"{level:g}" for level in levels])
