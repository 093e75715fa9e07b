"""Charts of a board as inline SVG: robustness curves, certified accuracy, score against cost.

The cost of one image forward + backward comes from the records: the seconds of an attack, divided
by the number of images it forwarded and back-propagated, times two. Among the attacks that all rows
have, the cheapest counts, because other work on the machine only adds time. The cost includes the
attack's own work, which is the same for all rows. The time in a model's card is not used: cards are
measured one by one, on different days and numbers of threads, and the same architecture differs by
6 times there. The number of parameters does not measure cost either, since weights are shared over
pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from robustbench_med import spec
from robustbench_med.bench.record import Certificate, Record
from robustbench_med.errors import SpecError

from ..svg import drawing, ink, inline, plain_axes, stroke
from ..wording.text import NORMS, SCALE, number, plain, unit
from .board import Board, Row

COLOURS = 8  # --curve-1 ... --curve-8 in style.css; chosen to differ for colour-blind readers
_MARKERS = "os^"


def colour(curve: int) -> int:
    """Return the number (1 to COLOURS) of the colour of a curve."""
    return curve % COLOURS + 1


def shape(curve: int) -> int:
    """Return the number of the marker of a curve, which changes when the colours repeat."""
    return curve // COLOURS


def rows_with_curve(board: Board) -> list[Row]:
    """Return the rows that have a curve: all with a worst case, at most three for each colour."""
    rows = [row for row in board.rows if row.standing != "invalid" and row.images]
    return rows[: COLOURS * len(_MARKERS)]


def curves(board: Board, prefix: str) -> str:
    """Return the worst-case score against eps with 95 % bands as an `<svg>` element.

    Args:
        board: the board; the page writes the legend, in the order of `rows_with_curve`.
        prefix: prefix of every id inside, so that ids stay unique on the page.
    """
    with drawing(prefix, 6.6, 3.7) as figure:
        axes = figure.add_axes((0.085, 0.125, 0.885, 0.86))
        grey, full = _scale(board), SCALE[board.score.kind][0]
        start = 0 if board.score.clean else 1
        x = [0.0, *(eps * grey for eps in board.ladder)][start:]
        for curve, row in enumerate(rows_with_curve(board)):
            estimates = (row.clean, *row.worst)[start:]
            colour_ = stroke(colour(curve))
            axes.plot(
                x,
                [full * e.value for e in estimates],
                color=colour_,
                linewidth=1.8,
                linestyle="-" if row.standing in ("ranked", "control") else (0, (3, 2)),
                marker=_MARKERS[shape(curve)],
                markersize=3.5,
                gid=f"curve-{curve}",
                label=row.title,
            )
            low, high = [full * e.low for e in estimates], [full * e.high for e in estimates]
            band = axes.fill_between(x, low, high, color=colour_, alpha=0.11, linewidth=0)
            band.set_gid(f"band-{curve}")
        _axes(axes, board, x)
        label = f"Worst-case {board.score.name} against radius on {plain(board.dataset.heading)}"
        return inline(figure, prefix=prefix, label=f"{label}, {board.setting}")


def _scale(board: Board) -> float:
    """Return the factor of a radius on the axis, in units of the data or percent."""
    if board.native_axis is not None:
        return board.native_axis.high - board.native_axis.low
    if board.budget == "mean_norm":
        return 100.0
    return 255.0 if board.norm == "linf" else 1.0


def _axes(axes: Any, board: Board, x: list[float]) -> None:  # noqa: ANN401 - imported late
    at = x[board.headline - len(board.ladder)]  # the clean image may be left out
    axes.axvline(at, color=ink(), linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    radii = [value for value in x if value > 0]
    # small radii would be too close to each other on a linear axis
    if len(radii) > 1 and radii[-1] / radii[0] >= 12:
        axes.set_xscale("asinh", linear_width=radii[1])
    axes.set_xticks(x, [f"{value:.3g}" for value in x])
    axes.minorticks_off()
    axes.set_xlim(0, x[-1] * 1.02)
    full = SCALE[board.score.kind][0]
    axes.set_ylim(-0.015 * full, 1.015 * full)
    ticks = [full * step / 5 for step in range(6)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    counted = board.native_axis.unit if board.native_axis else unit(board.norm, board.budget)
    label = f"radius ε, {NORMS.get(board.norm, board.norm)}" + (f" ({counted})" if counted else "")
    label = "severity" if board.shift else label
    axes.set_xlabel(label, color=ink())
    axes.set_ylabel(board.score.axis, color=ink())
    plain_axes(axes)


def certificate(row: Row) -> tuple[Record, Certificate] | None:
    """Return the certificate of a row and its record; all runs have the same, so the first."""
    records = (run.record for run in row.runs.values() if run.record.status == "ok")
    pairs = ((record, record.certificate) for record in records if record.certificate is not None)
    return next(((record, proved) for record, proved in pairs if len(proved.radii)), None)


def certified(board: Board) -> dict[Row, int]:
    """Return the rows with a certificate, each with its place among the curves of the board."""
    return {row: curve for curve, row in enumerate(rows_with_curve(board)) if certificate(row)}


def certified_curves(board: Board, prefix: str) -> str:
    """Return certified accuracy against the L2 radius with 95 % bands as an `<svg>` element.

    A share at one radius holds for all smaller radii. The curve has steps, so that it shows only
    what is proved.

    Args:
        board: a board with a row in `certified`; the colours are those of its other curves.
        prefix: prefix of every id inside, so that ids stay unique on the page.
    """
    with drawing(prefix, 6.6, 3.0) as figure:
        axes = figure.add_axes((0.085, 0.155, 0.885, 0.82))
        furthest = 0.0
        for row, curve in certified(board).items():
            known = certificate(row)
            assert known is not None  # noqa: S101 - rows of `certified` have one
            radii, correct = known[1].radii, known[1].correct
            furthest, paint = max(furthest, *radii), stroke(colour(curve))
            values, low, high = (
                [100 * getattr(e, field) for e in correct] for field in ("value", "low", "high")
            )
            axes.step(
                radii,
                values,
                where="pre",
                color=paint,
                linewidth=1.8,
                gid=f"curve-{curve}",
                label=row.title,
            )
            band = axes.fill_between(
                radii, low, high, step="pre", color=paint, alpha=0.11, linewidth=0
            )
            band.set_gid(f"band-{curve}")
        axes.set_xlim(0, (furthest or 1) * 1.02)
        axes.set_ylim(-1.5, 101.5)
        axes.set_yticks([0, 20, 40, 60, 80, 100])
        axes.set_xlabel("certified radius, L2 in image units", color=ink())
        axes.set_ylabel("certified accuracy, %", color=ink())
        plain_axes(axes)
        label = f"Certified accuracy against L2 radius on {plain(board.dataset.heading)}"
        return inline(figure, prefix=prefix, label=label)


def certified_words(row: Row) -> str:
    """Return the noise of a row's certificate and how often it abstains: "σ = 0.25, abstains …"."""
    known = certificate(row)
    if known is None:
        return ""
    record, proved = known
    percent = number(proved.abstained.value)
    return ", ".join(filter(None, [_sigma(record), f"abstains on {percent} % of images"]))


def _sigma(record: Record) -> str:
    card = record.defense_card
    try:
        parameters = spec.parse(record.case.defense).parameters
    except SpecError:
        parameters = {}
    sigma = parameters.get("sigma", card.parameters.get("sigma") if card else None)
    return "" if sigma is None else plain(f"σ = {sigma}")


_MARKERS = "os^"
_LEAST = 2  # a figure needs so many rows
_TICKS = 3


class Compute(NamedTuple):
    """The data of the cost figure.

    Attributes:
        cost: row -> ms of one image forward + backward.
        where: the machines on which the cost was measured.
        without_cost: rows without a cost.
    """

    cost: dict[Row, float]
    where: tuple[str, ...]
    without_cost: int


def compute(board: Board) -> Compute | None:
    """Return the cost of the rows of a white-box board; None if fewer than two have one.

    On other boards the passes belong to another model, or repeat those of the white box.
    """
    rows = rows_with_curve(board)
    if board.threat != "white_box" or board.channels:
        return None
    timed = {row: _timed(row) for row in rows}
    timed = {row: costs for row, costs in timed.items() if costs}
    shared = set.intersection(*(set(costs) for costs in timed.values())) if timed else set()
    if len(timed) < _LEAST or not shared:
        return None
    cost = {row: min(costs[c] for c in shared) for row, costs in timed.items()}
    records = [row.runs[c].record for row in cost for c in sorted(shared)]
    where = {_machine(record) for record in records}
    return Compute(cost, tuple(sorted(where)), len(rows) - len(cost))


def _timed(row: Row) -> dict[str, float]:
    """Return the cost by each attack of a row in ms, without oblivious attacks.

    Oblivious attacks compute the gradients of another model.
    """
    costs = {}
    for column, run in row.runs.items():
        cost = run.record.cost
        passes = cost.forward + cost.backward if cost else 0
        if cost and passes and cost.seconds > 0 and column not in row.oblivious:
            costs[column] = 2000 * cost.seconds / passes
    return costs


def _machine(record: Record) -> str:
    source = record.provenance
    return f"{plain(source.device)}, {source.threads} thread{'s' if source.threads != 1 else ''}"


def compute_chart(board: Board, costs: Compute, prefix: str) -> str:
    """Return worst-case score against cost with 95 % intervals as an `<svg>` element.

    Args:
        board: the board; colours and markers are those of its curves.
        costs: the result of `compute`.
        prefix: prefix of every id inside, so that ids stay unique on the page.
    """
    full, words = SCALE[board.score.kind][0], []
    curve_of = {row: i for i, row in enumerate(rows_with_curve(board))}
    with drawing(prefix, 6.6, 3.0) as figure:
        axes = figure.add_axes((0.085, 0.155, 0.885, 0.82))
        for row, ms in costs.cost.items():
            e, number = row.worst[board.headline], curve_of[row]
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
                label=row.title,
            )
            words.append(f"{row.title}: {ms:.3g} ms, {full * e.value:.3g}")
        _cost_axes(axes, list(costs.cost.values()), full)
        axes.set_xlabel("one image forward + backward, ms (log scale)", color=ink())
        axes.set_ylabel(board.score.axis, color=ink())
        plain_axes(axes)
        label = f"Worst-case {board.score.name} at {board.sign} {board.at} against cost on "
        return inline(
            figure,
            prefix=prefix,
            label=f"{label}{plain(board.dataset.heading)}. {'; '.join(words)}",
        )


def _cost_axes(axes: object, costs: list[float], full: float) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)  # noqa: S101 - imported late
    low, high = min(costs) / 1.4, max(costs) * 1.4
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks: list[float] = []
    # the second, finer list is used if the first gives too few ticks
    for mantissas in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        if len(ticks) < _TICKS:
            steps = [m * 10.0**e for e in range(-4, 7) for m in mantissas]
            ticks = [tick for tick in steps if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.03 * full, 1.03 * full)
    levels = [full * step / 5 for step in range(6)]
    axes.set_yticks(levels, [f"{level:g}" for level in levels])
