"""Curves of robust accuracy against the radius, as inline SVG that follows the colours of the page.

matplotlib draws; then namespaces, inline styles and unused ids are taken out, because the page's
Content-Security-Policy allows no inline style and ids must be unique on a page of many figures.
"""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

from .board import Board, Row
from .text import NORMS, unit

COLOURS = 8  # --curve-1 ... --curve-8 in style.css; chosen to differ for colour-blind readers
_INK, _FAINT = "#010203", "#040506"  # stand-ins, replaced by the page's variables
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
    """Return worst-case accuracy against eps with 95 % bands as an `<svg>` element.

    Args:
        board: the board; the legend is the page's own, in the order of `drawn`.
        prefix: starts every id inside, so that ids stay unique on the page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": prefix, "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6.6, 3.7))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.085, 0.125, 0.885, 0.86))
        grey = _scale(board)
        x = [0.0, *(eps * grey for eps in board.ladder)]
        for place, row in enumerate(drawn(board)):
            estimates = (row.clean, *row.worst)
            stroke = f"#0a0b{colour(place):02x}"
            axes.plot(
                x,
                [100 * e.value for e in estimates],
                color=stroke,
                linewidth=1.8,
                linestyle="-" if row.standing in ("ranked", "control") else (0, (3, 2)),
                marker=_MARKERS[shape(place)],
                markersize=3.5,
                gid=f"curve-{place}",
            )
            low, high = [100 * e.low for e in estimates], [100 * e.high for e in estimates]
            band = axes.fill_between(x, low, high, color=stroke, alpha=0.11, linewidth=0)
            band.set_gid(f"band-{place}")
        _axes(axes, board, x)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    label = f"Worst-case accuracy against radius on {board.dataset.heading}, {board.setting}"
    return _inline(buffer.getvalue(), prefix=prefix, label=label)


def _scale(board: Board) -> float:
    """Return what a radius is multiplied with on the axis: grey levels, or percent."""
    if board.budget == "mean_norm":
        return 100.0
    return 255.0 if board.norm == "linf" else 1.0


def _axes(axes: Any, board: Board, x: list[float]) -> None:  # noqa: ANN401 - imported late
    axes.axvline(x[board.headline + 1], color=_INK, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    if len(x) > 2 and x[-1] / x[1] >= 12:  # low radii would be crushed on a linear axis
        axes.set_xscale("asinh", linear_width=x[2])
    axes.set_xticks(x, [f"{value:.3g}" for value in x])
    axes.minorticks_off()
    axes.set_xlim(0, x[-1] * 1.02)
    axes.set_ylim(-1.5, 101.5)
    axes.set_yticks(range(0, 101, 20))
    counted = unit(board.norm, board.budget)
    label = f"radius ε, {NORMS.get(board.norm, board.norm)}" + (f" ({counted})" if counted else "")
    axes.set_xlabel(label, color=_INK)
    axes.set_ylabel("worst-case accuracy, %", color=_INK)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.tick_params(color=_FAINT, labelcolor=_INK, length=3)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_FAINT)


def _inline(svg: str, *, prefix: str, label: str) -> str:
    """Return matplotlib's `svg` fit for HTML under a strict Content-Security-Policy."""
    root = ElementTree.fromstring(svg)  # noqa: S314 - written by matplotlib a moment ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                parent.remove(child)
    referred = set(re.findall(r"#([\w-]+)", svg))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
        styles = [part.partition(":") for part in attributes.pop("style", "").split(";") if part]
        attributes |= {name.strip(): value.strip() for name, _, value in styles}
        _split_font(attributes)
        ident = attributes.pop("id", "")
        if re.fullmatch(r"(curve|band)-\d+", ident):
            attributes["class"] = ident.replace("-", " n")
        elif ident in referred:
            attributes["id"] = f"{prefix}-{ident}"
        if "href" in attributes:
            attributes["href"] = f"#{prefix}-{attributes['href'].removeprefix('#')}"
        element.attrib = {k: _repaint(v, prefix) for k, v in attributes.items()}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _split_font(attributes: dict[str, str]) -> None:
    # the `font` shorthand is no presentation attribute; the family comes from the page
    font = attributes.pop("font", "")
    if size := re.search(r"([\d.]+)px", font):
        attributes["font-size"] = size[1]


def _repaint(value: str, prefix: str) -> str:
    value = value.replace(_INK, "var(--muted)").replace(_FAINT, "var(--line)")
    value = re.sub(r"#0a0b(\d\d)", lambda m: f"var(--curve-{int(m[1], 16)})", value)
    return value.replace("url(#", f"url(#{prefix}-")
