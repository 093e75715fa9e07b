"""Prepare boards, matrices and figures for the templates of the page."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from .boards.board import Board, Row, RowKey, with_ids
from .boards.certified_masks import mask_words, proved_masks
from .boards.channels import Bars, channel_bars, chart
from .boards.charts import (
    certified,
    certified_curves,
    certified_words,
    compute,
    compute_chart,
    curves,
    rows_with_curve,
)
from .boards.defenses import defense_effects, defense_names
from .boards.detectors import RULE, detectors, has_detectors
from .boards.transfer import matrices
from .gallery import PAGE_BYTES, gallery, regions_shown, shown
from .headline import lone_result, radius_words, verdict
from .rows import board_columns
from .tables import facts, patients, radii_words
from .wording import text
from .wording.metrics import shape_words, spacing_words
from .wording.records import commit_words
from .wording.score import NOTHING, Score
from .wording.threat_model import class_words, radius_label

TASKS = {
    "single_label": "classification",
    "multi_label": "findings",
    "segmentation": "segmentation",
}


def views(boards: list[Board]) -> list[list[dict[str, Any]]]:
    """Return the contents of each board's section, grouped by dataset.

    A transfer matrix is shown with its first board.
    """
    all_matrices, channels = matrices(boards), channel_bars(boards)
    budget = PAGE_BYTES // max(len(boards), 1)
    groups: dict[str, list[dict[str, Any]]] = {}
    defenses = _defenses(boards)
    proved: set[tuple[str, RowKey]] = set()
    for ident, board in with_ids(boards):
        view = _view(board, ident, budget)
        view["matrices"] = [matrix for matrix in all_matrices if matrix.board is board]
        charts = [bars for bars in channels if bars.board is board]
        view["bars"] = [(bars, _charts(bars, f"{ident}-bars-{i}")) for i, bars in enumerate(charts)]
        marks = {
            row: [f"d{defenses.index(n)}" for n in view["defense_titles"][row]]
            for row in board.rows
        }
        view["marks"] = {row: ["defended", *m] if m else ["undefended"] for row, m in marks.items()}
        view["certified"] = _certified(board, ident, proved)
        view["proved_masks"] = [
            (row, found, mask_words(found)) for row, found in proved_masks(board).items()
        ]
        groups.setdefault(board.dataset.name, []).append(view)
    return list(groups.values())


def _charts(bars: Bars, ident: str) -> list[Markup]:
    drawn = (chart(bars, group, f"{ident}-{i}") for i, group in enumerate(bars.groups))
    return [Markup(svg) for svg in drawn]  # noqa: S704 - drawn by channels.py


def _certified(board: Board, ident: str, proved: set[tuple[str, RowKey]]) -> dict[str, Any]:
    """Return the figure of certificates, or an empty dict if earlier boards have shown them all.

    A certificate concerns the clean images and does not depend on an attack, so it is shown once.
    """
    places = certified(board)
    keys = {(board.dataset.name, row.key) for row in places}
    if keys <= proved:
        return {}
    proved |= keys
    svg = Markup(certified_curves(board, f"{ident}-certified"))  # noqa: S704 - drawn by certified.py
    rows = [(curve, row.title, certified_words(row)) for row, curve in places.items()]
    return {"svg": svg, "rows": rows}


def _defenses(boards: list[Board]) -> list[str]:
    """Return the names of the defenses of a page, sorted, for the filter."""
    names: set[str] = set()
    for board in boards:
        for row, price in defense_effects(board).items():
            names.update(defense_names(row, price.against))
    return sorted(names)


def choices(boards: list[Board]) -> dict[str, list[str]]:
    """Return the choices of each filter of the page; the template omits filters with one choice."""
    rows = [row for board in boards for row in board.rows]
    return {
        "tasks": sorted({TASKS[board.dataset.task] for board in boards}),
        "modalities": sorted({text.plain(board.dataset.modality) for board in boards}),
        "families": sorted({text.plain(row.model.family) for row in rows}),
        "defenses": _defenses(boards),
    }


def _view(board: Board, ident: str, budget: int) -> dict[str, Any]:
    rows, pictures = rows_with_curve(board), gallery(board, budget=budget)
    columns = board_columns(board)
    price, costs = defense_effects(board), compute(board)
    attacks = [column for column in columns if column.role == "attack"]
    as_bars = len(board.rows) == 1 and len(attacks) > 1
    return {
        "board": board,
        "columns": {column.key: column for column in columns},
        "attacks": [] if as_bars else attacks,
        "bars_of": attacks if as_bars else [],
        "id": ident,
        "ids": _row_ids(board, ident),
        "task": TASKS[board.dataset.task],
        "radius": radius_words(board),
        "verdict": verdict(board),
        "outcome": verdict(board) or lone_result(board),
        "attack_names": _attack_names(board),
        "about": _about(board),
        "facts": _facts(board),
        "summary": facts(board),
        "radii": [
            radius_label(eps, board.dataset, board.norm, board.budget) for eps in board.ladder
        ],
        "unit": "" if board.native_axis else text.unit(board.norm, board.budget),
        "legend": rows,
        "curve": {row: number for number, row in enumerate(rows)},
        "unranked": any(row.standing not in ("ranked", "control") for row in rows),
        "svg": Markup(curves(board, ident)) if rows else "",  # noqa: S704 - drawn by figures.py
        "costs": costs,
        "cost_svg": Markup(  # noqa: S704 - drawn by compute.py
            compute_chart(board, costs, f"{ident}-cost") if costs else ""
        ),
        "knows": " ".join(
            filter(None, [text.KNOWS.get(board.threat, ""), text.BLIND if board.oblivious else ""])
        ),
        "defense_effects": price,
        "defense_titles": {
            row: defense_names(row, price[row].against) if row in price else []
            for row in board.rows
        },
        "detectors": detectors(board),
        "rule": RULE if has_detectors(board) else "",
        "pictures": pictures,
        "regions": regions_shown(board, pictures),
        "shown": shown(pictures, shift=board.shift),
    }


def _row_ids(board: Board, ident: str) -> dict[Row, str]:
    """Return the anchor of each row; it does not depend on the rank, so that links stay valid."""
    idents: dict[Row, str] = {}
    for row in board.rows:
        words = [row.model.name, row.key.defense if row.key.defense != "none" else ""]
        words += [f"{row.key.draws}-passes"] if row.key.draws > 1 else []
        words += [row.distinction] if row.distinction else []
        slug = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
        stem = f"{ident}--{slug or 'row'}"
        idents[row] = next(
            c for c in (stem, *(f"{stem}-{i}" for i in range(2, 9999))) if c not in idents.values()
        )
    return idents


def _attack_names(board: Board) -> dict[str, str]:
    """Return the registry name of the attack of each column."""
    runs = {column: run for row in board.rows for column, run in row.runs.items()}
    return {column: run.record.attack_card.name for column, run in runs.items()}


def _about(board: Board) -> list[tuple[str, str]]:
    """Return the facts that all boards of a dataset have in common."""
    card = board.dataset
    modality = ("Modality", f"{text.plain(card.modality)}, {shape_words(card)}")
    if card.task == "segmentation":
        word = "region" if len(card.parts) == 1 else "regions"
        regions = (f"{len(card.parts)} {word}", ", ".join(map(class_words, card.parts)))
        pixel = "voxel" if len(card.size) == 3 else "pixel"
        return [modality, regions, (f"Size of a {pixel}", spacing_words(card))]
    classes = "findings" if card.task == "multi_label" else "classes"
    named = (f"{len(card.classes)} {classes}", ", ".join(map(text.plain, card.classes)))
    return [modality, named]


def _facts(board: Board) -> list[tuple[str, str]]:
    sizes = sorted({row.images for row in board.rows if row.images})
    splits = sorted({run.record.case.split for row in board.rows for run in row.runs.values()})
    return [
        ("Images", f"{' / '.join(map(str, sizes)) or 'none'} ({', '.join(splits)} split)"),
        ("Patients", patients(board)),
        (
            "Severities" if board.shift else f"Radii ε, {text.NORMS.get(board.norm, board.norm)}",
            radii_words(board),
        ),
    ]


def _leading(scores: list[Score]) -> list[Score]:
    """Return the scores that the head of the page explains, shares first.

    The boards of a particular goal explain their scores themselves, so these scores are left out
    unless the page has no others.
    """
    general = [score for score in scores if not score.attacked] or scores or [NOTHING]
    by_meaning: dict[str, Score] = {}
    for score in sorted(general, key=lambda score: score.kind):
        by_meaning.setdefault(score.counted, score)
    return list(by_meaning.values())


def origin(boards: list[Board]) -> dict[str, Any]:
    """Return the texts on where the records of the page come from and what their scores mean."""
    rows: list[Row] = [row for board in boards for row in board.rows]
    records = [run.record for row in rows for run in row.runs.values()]
    sources = [record.provenance for record in records]
    scores = _leading([board.score for board in boards])
    return {
        "counted": ", or ".join(score.counted for score in scores),
        "least": ", or ".join(score.least for score in scores),
        "names": " or ".join(score.name for score in scores),
        "versions": sorted({text.plain(p.version) for p in sources}),
        "torch": sorted({text.plain(p.torch) for p in sources}),
        "commits": sorted({commit_words(p) for p in sources if p.git_commit}),
        "shift": any(board.shift for board in boards),
        "attacks": not all(board.shift for board in boards),
        "rule": RULE if any(map(has_detectors, boards)) else "",
        "synthetic": _synthetic(boards),
        "sizes": _sizes(rows),
    }


def _synthetic(boards: list[Board]) -> str:
    """Return "all" or "some" if all or some datasets are phantoms; else an empty string."""
    phantoms = {board.dataset.synthetic for board in boards}
    return "all" if phantoms == {True} else "some" if True in phantoms else ""


def _sizes(rows: list[Row]) -> str:
    """Return the smallest and the largest number of images of a row: "32" or "32 to 90"."""
    sizes = sorted({row.images for row in rows if row.images})
    return (
        " to ".join(dict.fromkeys(f"{size:,}" for size in (sizes[0], sizes[-1]))) if sizes else ""
    )
