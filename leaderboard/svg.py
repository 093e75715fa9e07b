"""Convert matplotlib figures to inline SVG in the colours of the page.

Namespaces, inline styles and unused ids are removed, because the page's Content-Security-Policy
allows no inline style, and ids must be unique on a page with many figures.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _FAINT = "#010203", "#040506"  # placeholders, which variables of the page replace
# the colours of the page in its light mode, see templates/style.css
_PRINTED_INK, _PRINTED_FAINT = "#5a626d", "#e2e4e6"
PRINTED = (
    "#0069a8",
    "#c24a17",
    "#00805a",
    "#84489f",
    "#987000",
    "#bd3f78",
    "#4c5a70",
    "#6a5a2c",
)
_SAVE: ContextVar[Callable[[Figure], None] | None] = ContextVar("_SAVE", default=None)


@contextmanager
def printing(save: Callable[[Figure], None]) -> Iterator[None]:
    """Draw figures in the colours of print, and call `save` with each of them.

    Lines and bars keep their labels, so that `save` can add a legend.
    """
    token = _SAVE.set(save)
    try:
        yield
    finally:
        _SAVE.reset(token)


def ink() -> str:
    """Return the colour of text and marks; for the page a placeholder."""
    return _INK if _SAVE.get() is None else _PRINTED_INK


def faint() -> str:
    """Return the colour of a grid; for the page a placeholder."""
    return _FAINT if _SAVE.get() is None else _PRINTED_FAINT


def stroke(number: int) -> str:
    """Return the colour of a curve; for the page the placeholder of --curve-`number`."""
    return f"#0a0b{number:02x}" if _SAVE.get() is None else PRINTED[number - 1]


@contextmanager
def drawing(prefix: str, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of a size in inches; draw it and call `inline` inside the block."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    size: dict[Any, Any] = {"font.size": 10, "text.parse_math": False}  # a name may hold a "$"
    salted = {"svg.hashsalt": prefix, "svg.fonttype": "none"}
    with mpl.rc_context(size | salted), warnings.catch_warnings():
        # the reader's browser draws the letters, so a missing glyph only makes a text too narrow
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure


def plain_axes(axes: Any) -> None:  # noqa: ANN401 - imported late
    """Hide all lines of the axes except the grid of values and the bottom line."""
    axes.grid(axis="y", color=faint(), linewidth=0.6)
    axes.tick_params(color=faint(), labelcolor=ink(), length=3)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(faint())


def inline(figure: Figure, *, prefix: str, label: str) -> str:
    """Return `figure` as an `<svg>` element for HTML under a strict Content-Security-Policy.

    Args:
        figure: a figure that `drawing` yielded.
        prefix: prefix of every id inside, so that ids stay unique on the page.
        label: the text that a screen reader reads out.
    """
    save = _SAVE.get()
    if save is not None:
        save(figure)
        return ""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
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
    # SVG has no `font` attribute; the font family comes from the page
    font = attributes.pop("font", "")
    if size := re.search(r"([\d.]+)px", font):
        attributes["font-size"] = size[1]


def _repaint(value: str, prefix: str) -> str:
    value = value.replace(_INK, "var(--muted)").replace(_FAINT, "var(--line)")
    value = re.sub(r"#0a0b(\d\d)", lambda m: f"var(--curve-{int(m[1], 16)})", value)
    return value.replace("url(#", f"url(#{prefix}-")
