"""The critical radius of a row: where its worst case first falls below a half, in words."""

from __future__ import annotations

from robustbench_med.stats import Estimate
from robustbench_med.stats.crossing import HALF, Crossing, crossing

from ..wording.text import measured, radius
from .board import Board, Row

_WHOLE = Estimate(value=1.0, low=1.0, high=1.0)  # the clean score where it is 1 by construction


def critical(board: Board, row: Row, level: float = HALF) -> Crossing | None:
    """Return where the worst case of a row falls below a level; None if nothing was scored."""
    clean = row.clean if board.score.clean else _WHOLE
    return crossing((0.0, *board.ladder), (clean, *row.worst), level)


def critical_name(norm: str) -> str:
    """Return what a board's critical radius is called: of a shift it is a severity."""
    return "Critical severity" if norm == "severity" else "Critical radius"


def critical_head(board: Board, level: float = HALF, name: str = "") -> str:
    """Return the name of a critical radius and its level in words.

    Args:
        board: the board.
        level: the level.
        name: the score that falls below it; by default the score of the board.
    """
    kind = board.score.kind if not name else "percent"
    below = f"{name or board.score.name} below {measured(level, kind)}"
    return f"{critical_name(board.norm)} ({below})"


def critical_words(board: Board, found: Crossing) -> str:
    """Return a critical radius of a board with its interval in words."""
    return found.words(lambda eps: radius(eps, board.norm, board.budget) if eps else "0")
