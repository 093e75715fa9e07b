"""What the page carries for downloads: every number of its boards.

The script makes CSV and JSON of it without a request.
"""

from __future__ import annotations

import json
import math
from typing import Any

from markupsafe import Markup

from robustbench_med.bench.record import Estimate

from .board import Board, Row


def embedded(named: list[tuple[str, Board]]) -> Markup:
    """Return the boards as JSON that may stand inside a `<script>` element: no `<` is left in it.

    Args:
        named: boards with their anchors.
    """
    text = json.dumps({"boards": [_board(ident, board) for ident, board in named]}, allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704 - JSON without markup


def _board(ident: str, board: Board) -> dict[str, Any]:
    return {
        "board": ident,
        "dataset": board.dataset.name,
        "synthetic": board.dataset.synthetic,
        "task": board.dataset.task,
        "modality": board.dataset.modality,
        "objective": board.objective,
        "threat": board.threat,
        "norm": board.norm,
        "budget": board.budget,
        "channels": board.channels,
        "drawn": board.drawn,
        "metric": board.score.metric,
        "radii": list(board.ladder),
        "headline": board.headline,
        "rows": [_row(row, clean=bool(board.score.clean)) for row in board.rows],
    }


def _row(row: Row, *, clean: bool) -> dict[str, Any]:
    return {
        "victim": row.model.name,
        "title": row.title,
        "family": row.model.family,
        "name": row.key.victim,
        "defense": row.key.defense,
        "defense_version": row.key.defense_version,
        "operating_point": row.key.operating_point,
        "weights_sha256": row.key.weights,
        "standing": row.standing,
        "reasons": list(row.reasons),
        "notes": list(row.notes),
        "ranks": list(row.ranks),
        "sharing": list(row.sharing),
        "images": row.images,
        "patients": row.patients,
        "clean": _estimate(row.clean) if clean else None,
        "clean_by_argmax": _estimate(row.argmax) if clean and row.argmax else None,
        "worst_case": [_estimate(e) for e in row.worst],
        "attacks": {c: [_estimate(e) for e in found] for c, found in row.scores.items()},
    }


def _estimate(e: Estimate) -> list[float | None]:
    """Return value, low, high; null where undefined."""
    values = (e.value, e.low, e.high)
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values]
