"""Write boards as CSV and JSON: the file `leaderboard.csv` and the downloads of the page."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

import pandas as pd
from markupsafe import Markup

from robustbench_med.bench.record import Record
from robustbench_med.stats import Estimate
from robustbench_med.worst_case import rung_of

from .boards.board import Board, Row, with_ids
from .boards.defenses import trained_with
from .boards.subgroups import by_subgroup
from .rows import PROVED, Column, Value, board_columns
from .wording.metrics import value_unit
from .wording.text import plain, radius
from .wording.threat_model import native_radius

WORST = "worst_case"
_UNIVERSAL = {  # metric of the CSV -> field
    "prediction_changed": "changed",
    "prediction_wrong": "wrong",
    "control_changed": "control_changed",
    "control_wrong": "control_wrong",
}


def csv_text(boards: list[Board]) -> str:
    """Return the text of `leaderboard.csv`, which is also the CSV download of the page."""
    frame = long_frame(boards)
    for name in frame.select_dtypes(exclude="number"):  # there are few values on many lines
        frame[name] = frame[name].map({value: guard(value) for value in frame[name].unique()})
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def packed_csv(text: str) -> Markup:
    """Return a CSV as the page holds it: compressed by gzip and written in base64."""
    packed = gzip.compress(text.encode(), compresslevel=6, mtime=0)
    return Markup(base64.b64encode(packed).decode())  # noqa: S704 - letters and digits alone


def guard(value: object) -> object:
    """Return a text that no spreadsheet runs as a formula, by an apostrophe in front if needed.

    >>> guard("=1+1"), guard(-1.0), guard("resnet")
    ("'=1+1", -1.0, 'resnet')
    """
    return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value


def long_frame(boards: list[Board]) -> pd.DataFrame:
    """Return boards in long format: a line for each (board, row, attack, radius, metric).

    Shares are numbers from 0 to 1 here. The column `unit` states the unit of each value.
    """
    lines = []
    for ident, board in with_ids(boards):
        columns = {column.key: column for column in board_columns(board)}
        lines += [line for row in board.rows for line in _lines(ident, board, row, columns)]
    return pd.DataFrame(lines)


def _lines(
    ident: str, board: Board, row: Row, columns: dict[str, Column]
) -> list[dict[str, object]]:
    """Return the lines of a row: the worst case, each attack, then all metrics of its records."""
    head = _head(ident, board, row, columns)
    unit = "share" if board.score.kind == "percent" else ""

    def line(
        about: dict[str, object], eps: float, value: Value, placed: dict[str, object] | None = None
    ) -> dict[str, object]:
        scored = {**_radius(board, eps), "metric": board.score.metric, "unit": unit}
        return head | (placed or _UNPLACED) | about | scored | _bounds(value)

    worst: dict[str, object] = {"attack": WORST, "knowledge": "adaptive", "case_id": ""}
    worst |= {"n": row.images, "patients": row.patients}
    lines = []
    if "clean" in columns:
        lines.append(line(worst, 0.0, columns["clean"].read(row, 0)))
    for rung, eps in enumerate(board.ladder):
        change = (
            columns["worst_change"].read(row, rung).value if "worst_change" in columns else None
        )
        placed = {"rank": row.ranks[rung], "sharing": row.sharing[rung] or None}
        value = columns[WORST].read(row, rung)
        lines.append(line(worst, eps, value, {**placed, "worst_change": change}))
    lines += [
        head | _UNPLACED | about | _radius(board, eps) | cell
        for about, eps, cell in _subgroup_cells(board, row, worst, unit)
    ]
    scored = set()
    for attack in row.scores:
        for rung, eps in enumerate(board.ladder):
            value = columns[attack].read(row, rung)
            if value.value is not None:
                lines.append(line(_run(row, attack), eps, value))
                scored.add((attack, rung))
    for attack, run in row.runs.items():
        for eps, metric, estimate in measured(run.record):
            if metric == board.score.metric and (attack, rung_of(eps, board.ladder)) in scored:
                continue  # the board has this number already
            counted = value_unit(metric, board.dataset)
            cell = {**_radius(board, eps), "metric": metric, "unit": counted}
            bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            lines.append(head | _UNPLACED | _run(row, attack) | cell | bounds)
    return lines


def _subgroup_cells(
    board: Board, row: Row, worst: dict[str, object], unit: str
) -> list[tuple[dict[str, object], float, dict[str, object]]]:
    """Return the worst case of each subgroup: the fields on its run, the radius, and its value.

    The subgroup stands in the name of the metric, `accuracy[sex=F]`, so that the metric of the
    board is of all its images alone. `difference[sex=F]` is that from all other images.
    """
    cells: list[tuple[dict[str, object], float, dict[str, object]]] = []

    def add(metric: str, estimate: Estimate, eps: float, n: int, patients: int | None) -> None:
        if math.isfinite(estimate.value):
            named: dict[str, object] = {"metric": metric, "unit": unit, "value": estimate.value}
            named |= {"low": estimate.low, "high": estimate.high}
            cells.append((worst | {"n": n, "patients": patients}, eps, named))

    known = row.patients is not None
    for grouping in by_subgroup(board, row):
        column = plain(grouping.column)
        for rung, eps in enumerate((0.0, *board.ladder)):
            if not rung and not board.score.clean:
                continue
            for group in grouping.subgroups:
                name = f"[{column}={plain(group.name)}]"
                counts = (group.images, group.patients if known else None)
                add(f"{board.score.metric}{name}", group.scores[rung], eps, *counts)
                add(f"difference{name}", group.difference[rung], eps, *counts)
            lowest = grouping.lowest(rung)
            add(f"{board.score.metric}[lowest {column}]", lowest, eps, row.images, row.patients)
    return cells


# only the worst case has a rank and is compared with the victim without the defense
_UNPLACED: dict[str, object] = {"rank": None, "sharing": None, "worst_change": None}


def _setting(ident: str, board: Board) -> dict[str, object]:
    """Return the fields that identify a board, in the CSV and in the JSON."""
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
    }


def _head(ident: str, board: Board, row: Row, columns: dict[str, Column]) -> dict[str, object]:
    """Return the fields that all lines of a row have in common."""

    def read(key: str) -> float | str | None:
        return columns[key].read(row, board.headline).value if key in columns else None

    return {
        **_setting(ident, board),
        "channels": "+".join(f"{name}={share:g}" for name, share in board.channels.items()),
        "image_set": board.image_set,
        "victim": row.model.name,
        "title": row.title,
        "family": row.model.family,
        "name": row.key.victim,
        "defense": row.key.defense,
        "defense_version": row.key.defense_version,
        "trained_with": str(trained_with(row)),
        "operating_point": row.key.operating_point,
        "fitted_on": row.key.train,
        "victim_sha256": row.key.weights,
        "draws": row.key.draws,
        "standing": row.standing,
        "reasons": "; ".join(row.reasons),
        "notes": "; ".join(row.notes),
        "attacks_run": read("attacks_run"),
        "clean_by_argmax": read("clean_by_argmax"),
        "clean_change": read("clean_change"),
        "slower": read("slower"),
        **{key: read(key) for key in PROVED if key in columns},
    }


def _run(row: Row, attack: str) -> dict[str, object]:
    """Return the fields on the run of a line, or on both runs if the attack ran twice."""
    names = [attack, *(name for name, base in row.repeats.items() if base == attack)]
    records = [row.runs[name].record for name in names]
    return {
        "attack": attack,
        "knowledge": records[0].case.knowledge,
        "case_id": "+".join(record.case_id for record in records),
        "n": records[0].n,
        "patients": row.patients,
    }


def _radius(board: Board, eps: float) -> dict[str, object]:
    """Return a radius in image units, in the form of the tables, and in the units of the data."""
    if not eps > 0:  # the clean image, or a distance, whose radius is NaN
        return {"eps": eps, "radius": "", "native_radius": ""}
    native = native_radius(eps, board.dataset, board.norm, board.budget)
    return {
        "eps": eps,
        "radius": radius(eps, board.norm, board.budget),
        "native_radius": native,
    }


def _bounds(value: Value) -> dict[str, object]:
    return {"value": value.value, "low": value.low, "high": value.high}


def measured(record: Record) -> list[tuple[float, str, Estimate]]:
    """Return every estimate of a record as (radius on the ladder, metric, estimate).

    The median distance of a minimum-norm attack has no radius, so its radius is NaN.
    """
    estimates = [(rung.eps, name, e) for rung in record.rungs for name, e in rung.metrics.items()]
    if record.distance is not None:
        estimates.append((math.nan, "median_distance", record.distance))
    if record.universal is not None:
        for eps, rung in zip(record.case.ladder, record.universal.rungs, strict=True):
            estimates += [
                (eps, f"universal_{name}", getattr(rung, field))
                for name, field in _UNIVERSAL.items()
            ]
    return estimates


def page_json(boards: list[Board]) -> Markup:
    """Return boards as JSON without the character `<`, so that a `<script>` element can hold it."""
    content = {"boards": [_board(ident, board) for ident, board in with_ids(boards)]}
    text = json.dumps(content, allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704 - JSON without markup


def _board(ident: str, board: Board) -> dict[str, Any]:
    columns = board_columns(board)
    return {
        **_setting(ident, board),
        "channels": board.channels,
        "image_set": board.image_set,
        "metric": board.score.metric,
        "radii": [_radius(board, eps) for eps in board.ladder],
        "headline": board.headline,
        "columns": [
            {"key": c.key, "heading": c.heading, "unit": _json_unit(c), "at_radius": c.at_radius}
            for c in columns
        ],
        "rows": [_row(board, row, columns) for row in board.rows],
    }


def _json_unit(column: Column) -> str:
    """Return the unit of a column's numbers in the JSON, where percentages are shares (0 to 1)."""
    return "share" if column.kind == "percent" else column.unit


def _row(board: Board, row: Row, columns: tuple[Column, ...]) -> dict[str, Any]:
    """Return the values of a row by column key; those of attacks are in the dict "attacks"."""
    rungs = range(len(board.ladder))
    known: dict[str, Any] = {
        "victim": row.model.name,
        "family": row.model.family,
        "defense_version": row.key.defense_version,
        "operating_point": row.key.operating_point,
        "weights_sha256": row.key.weights,
        "standing": row.standing,
        "reasons": list(row.reasons),
        "notes": list(row.notes),
        "sharing": list(row.sharing),
        "patients": row.patients,
        "attacks": {},
    }
    for column in columns:
        values = [_json_value(column, column.read(row, rung)) for rung in rungs]
        value = values if column.at_radius else values[board.headline]
        if column.role != "attack":
            known[column.key] = value
        elif column.key in row.scores:
            known["attacks"][column.key] = value
    return known


def _json_value(column: Column, value: Value) -> object:
    """Return a value as JSON: [value, low, high] for an estimate; null where it is undefined."""
    if column.role not in ("score", "attack"):
        return value.value
    return [
        None if number is None else float(f"{number:.6g}")
        for number in (value.value, value.low, value.high)
        if not isinstance(number, str)
    ]
