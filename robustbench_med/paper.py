"""Tables for a paper: LaTeX in the style of booktabs, and the texts in its cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from robustbench_med.printable import plain
from robustbench_med.stats import Estimate

if TYPE_CHECKING:
    import pandas as pd

DASH = "--"
_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{NO-BREAK SPACE}": "~",
    # letters and signs of our own headings that pdflatex lacks
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "−": "$-$",
    "±": r"$\pm$",
    "∈": r"$\in$",
    "·": r"$\cdot$",
    "–": "--",
    "—": "---",
    "†": r"\dag{}",
}


def escape(text: str) -> str:
    r"""Return `text` as LaTeX that prints it, on one line.

    >>> escape("resnet_50 & 10 % at ε")
    'resnet\\_50 \\& 10 \\% at $\\varepsilon$'
    """
    return "".join(_ESCAPES.get(sign, sign) for sign in plain(text))


def cell(estimate: Estimate, *, percent: bool) -> str:
    r"""Return an estimate with its 95 % interval as LaTeX; a dash where it is undefined.

    Args:
        estimate: a share or a Dice.
        percent: whether it is printed in percent.

    >>> cell(Estimate(value=0.5, low=0.251, high=0.749), percent=True)
    '50.0 {\\scriptsize[25.1, 74.9]}'
    """
    factor, digits = (100.0, 1) if percent else (1.0, 3)
    value, low, high = (
        f"{factor * number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    if not math.isfinite(estimate.value):
        return DASH
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return value
    return rf"{value} {{\scriptsize[{low}, {high}]}}"


def latex_table(cells: pd.DataFrame, *, caption: str, label: str, texts: int = 1) -> str:
    """Return a table environment for LaTeX; the document loads the package `booktabs`.

    Args:
        cells: cells and column names as LaTeX, see `escape` and `cell`; the index is not printed.
        caption: the caption as LaTeX.
        label: the label that the document refers to the table by.
        texts: number of columns that are aligned to the left; the others are aligned to the right.
    """
    layout = "l" * texts + "r" * (cells.shape[1] - texts)
    styler = cells.style.hide(axis="index")
    table: str = styler.to_latex(
        hrules=True, caption=caption, label=label, position="htbp", column_format=layout
    )
    return table.replace("\\caption", "\\centering\n\\caption", 1)
