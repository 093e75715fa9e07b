"""Boards in long format: what the CSV file holds."""

from __future__ import annotations

import math

import pandas as pd

from robustbench_med.bench.record import Estimate, Record

from .board import Board, Row
from .price import Price, prices, trained_with

WORST = "worst_case"
_SPREAD = {  # column of the CSV -> field
    "prediction_changed": "changed",
    "prediction_wrong": "wrong",
    "control_changed": "control_changed",
    "control_wrong": "control_wrong",
}


def long_frame(made: list[Board]) -> pd.DataFrame:
    """Return everything in long format: a row a (board, victim, attack, radius, metric)."""
    lines = []
    for board in made:
        found = prices(board)
        lines += [line for row in board.rows for line in _lines(board, row, found.get(row))]
    return pd.DataFrame(lines)


def _lines(board: Board, row: Row, price: Price | None) -> list[dict[str, object]]:
    head: dict[str, object] = {
        "dataset": board.dataset.name,
        "synthetic": board.dataset.synthetic,
        "objective": board.objective,
        "threat": board.threat,
        "norm": board.norm,
        "budget": board.budget,
        "channels": "+".join(f"{name}={share:g}" for name, share in board.channels.items()),
        "victim": row.model.name,
        "title": row.model.title,
        "family": row.model.family,
        "name": row.key.victim,
        "defense": row.key.defense,
        "defense_version": row.key.defense_version,
        "operating_point": row.key.operating_point,
        "clean_by_argmax": row.argmax.value if row.argmax else None,
        "fitted_on": row.key.train,
        "images": board.drawn,
        "trained_with": str(trained_with(row)),
        "clean_change": price.clean if price else math.nan,
        "slower": price.slower if price else None,
        "victim_sha256": row.key.weights,
        "draws": row.key.draws,
        "standing": row.standing,
        "reasons": "; ".join(row.reasons),
        "notes": "; ".join(row.notes),
    }

    def line(
        attack: str,
        knows: str,
        case: str,
        n: int,
        eps: float,
        metric: str,
        e: Estimate,
        place: tuple[int | None, int | None] = (None, None),
    ) -> dict[str, object]:
        cell: dict[str, object] = {
            "rank": place[0],
            "sharing": place[1],
            "attack": attack,
            "knowledge": knows,
        }
        cell |= {"case_id": case, "n": n, "patients": row.patients, "eps": eps}
        return head | cell | {"metric": metric, "value": e.value, "low": e.low, "high": e.high}

    lines = []
    if board.score.clean:
        lines.append(line(WORST, "adaptive", "", row.images, 0.0, board.score.metric, row.clean))
    for rung, (eps, e) in enumerate(zip(board.ladder, row.worst, strict=True)):
        place = row.ranks[rung], row.sharing[rung] or None  # ranked by the worst case alone
        lines.append(line(WORST, "adaptive", "", row.images, eps, board.score.metric, e, place))
    for column, run in row.runs.items():
        record, knows = run.record, run.record.case.knowledge
        for eps, metric, estimate in measured(record):
            lines.append(line(column, knows, record.case_id, record.n, eps, metric, estimate))
    return lines


def measured(record: Record) -> list[tuple[float, str, Estimate]]:
    """Return every estimate of a record as (radius on the ladder, metric, estimate).

    The median distance of a minimum-norm attack, in image units, has no radius: NaN.
    """
    found = [(rung.eps, name, e) for rung in record.rungs for name, e in rung.metrics.items()]
    if record.distance is not None:
        found.append((math.nan, "median_distance", record.distance))
    if record.spread is not None:
        for eps, rung in zip(record.case.ladder, record.spread.rungs, strict=True):
            found += [
                (eps, f"universal_{name}", getattr(rung, field)) for name, field in _SPREAD.items()
            ]
    return found


def guard(value: object) -> object:
    """Return text that no spreadsheet runs as a formula: an apostrophe leads where one might.

    >>> guard("=1+1"), guard(-1.0), guard("resnet")
    ("'=1+1", -1.0, 'resnet')
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value
