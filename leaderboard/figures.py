"""Curves of the worst case against the radius, as inline SVG."""

from __future__ import annotations

from typing import Any

from .board import Board, Row
from .svg import INK, drawing, inline, plain_axes, stroke
from .text import NORMS, SCALE, plain, unit

COLOURS = 8  # --curve-1 ... --curve-8 in style.css; chosen to differ for colour-blind readers
_MARKERS = "os^"


def colour(place: int) -> int:
    """Return the number (1 to COLOURS) of the colour of the row at `place` of its board."""
    return place % COLOURS + 1


def shape(place: int) -> int:
    """Return the number of the marker of the row at `place`: another once colours come round."""
    return place // COLOURS


def drawn(board: Board) -> list[Row]:
    """Return the rows that have a curve: all with a worst case, at most three a colour."""
    rows = [row for row in board.rows if row.standing != "invalid" and row.images]
    return rows[: COLOURS * len(_MARKERS)]


def curves(board: Board, prefix: str) -> str:
    """Return the worst-case score against eps with 95 % bands as an `<svg>` element.

    Args:
        board: the board; the legend is the page's own, in the order of `drawn`.
        prefix: starts every id inside, so that ids stay unique on the page.
    """
    with drawing(prefix, 6.6, 3.7) as figure:
        axes = figure.add_axes((0.085, 0.125, 0.885, 0.86))
        grey, full = _scale(board), SCALE[board.score.kind][0]
        start = 0 if board.score.clean else 1
        x = [0.0, *(eps * grey for eps in board.ladder)][start:]
        for place, row in enumerate(drawn(board)):
            estimates = (row.clean, *row.worst)[start:]
            colour_ = stroke(colour(place))
            axes.plot(
                x,
                [full * e.value for e in estimates],
                color=colour_,
                linewidth=1.8,
                linestyle="-" if row.standing in ("ranked", "control") else (0, (3, 2)),
                marker=_MARKERS[shape(place)],
                markersize=3.5,
                gid=f"curve-{place}",
            )
            low, high = [full * e.low for e in estimates], [full * e.high for e in estimates]
            band = axes.fill_between(x, low, high, color=colour_, alpha=0.11, linewidth=0)
            band.set_gid(f"band-{place}")
        _axes(axes, board, x)
        label = f"Worst-case {board.score.name} against radius on {plain(board.dataset.heading)}"
        return inline(figure, prefix=prefix, label=f"{label}, {board.setting}")


def _scale(board: Board) -> float:
    """Return what a radius is multiplied with on the axis: grey levels, or percent."""
    if board.budget == "mean_norm":
        return 100.0
    return 255.0 if board.norm == "linf" else 1.0


def _axes(axes: Any, board: Board, x: list[float]) -> None:  # noqa: ANN401 - imported late
    at = x[board.headline - len(board.ladder)]  # the clean image may be left out
    axes.axvline(at, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    radii = [value for value in x if value > 0]
    if len(radii) > 1 and radii[-1] / radii[0] >= 12:  # low ones would be crushed on a linear axis
        axes.set_xscale("asinh", linear_width=radii[1])
    axes.set_xticks(x, [f"{value:.3g}" for value in x])
    axes.minorticks_off()
    axes.set_xlim(0, x[-1] * 1.02)
    full = SCALE[board.score.kind][0]
    axes.set_ylim(-0.015 * full, 1.015 * full)
    ticks = [full * step / 5 for step in range(6)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    counted = unit(board.norm, board.budget)
    label = f"radius ε, {NORMS.get(board.norm, board.norm)}" + (f" ({counted})" if counted else "")
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel(board.score.axis, color=INK)
    plain_axes(axes)
