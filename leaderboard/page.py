"""Boards to one self-contained HTML page that needs no network and runs under a strict policy."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_med.bench.record import Estimate

from . import text
from .figures import colour, curves, drawn, shape
from .gallery import PAGE_BYTES, gallery
from .rank import Board, Row
from .table import facts, name, patients, place, write_text
from .words import (
    audit_words,
    commit_words,
    cost_words,
    decision_words,
    ladder_words,
    parameter_words,
)

TEMPLATES = Path(__file__).parent / "templates"


def write_page(made: list[Board], folder: Path, *, title: str) -> Path:
    """Write `leaderboard.html` into `folder` in one step and return its path."""
    return write_text(folder / "leaderboard.html", render(made, title=title, suite=folder.name))


def render(made: list[Board], *, title: str, suite: str) -> str:
    """Return the page of `made`; the same boards give the same text."""
    style, script = (
        (TEMPLATES / file).read_text(encoding="utf-8") for file in ("style.css", "script.js")
    )
    start = "document.documentElement.classList.add('js')"
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(start)} {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=text.plain(title) or "Leaderboard",
            suite=suite,
            policy=policy,
            start=Markup(start),  # noqa: S704 - our own files, hashed in the policy
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            views=[_view(board, ident, len(made)) for ident, board in _named(made)],
            origin=_origin(made),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        METRICS=text.METRICS,
        audit_words=audit_words,
        colour=colour,
        commit_words=commit_words,
        cost_words=cost_words,
        decision_words=decision_words,
        ladder_words=ladder_words,
        parameter_words=parameter_words,
        place=place,
        shape=shape,
        victim=name,
    )
    environment.filters.update(
        finite=math.isfinite,
        https=text.https,
        interval=text.interval,
        number=text.number,
        packed=packed,
        percent_of=lambda share: f"{100 * share:.2f}",
        plain=text.plain,
        radius=text.radius,
    )
    return environment


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def packed(estimates: tuple[Estimate, ...]) -> str:
    """Return estimates as the script reads them: `value,low,high;...`, empty where undefined.

    >>> packed((Estimate(value=0.5, low=0.25, high=1.0),))
    '0.5,0.25,1'
    """
    rows = ((e.value, e.low, e.high) for e in estimates)
    return ";".join(",".join(f"{v:.4g}" if math.isfinite(v) else "" for v in row) for row in rows)


def _named(made: list[Board]) -> list[tuple[str, Board]]:
    """Return each board with the anchor that deep links use; unique on the page."""
    taken: set[str] = set()
    named = []
    for board in made:
        parts = (board.dataset.name, board.norm, board.threat, board.objective)
        stem = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
        ident = next(c for c in (stem, *(f"{stem}-{i}" for i in range(2, 9999))) if c not in taken)
        taken.add(ident)
        named.append((ident, board))
    return named


def _view(board: Board, ident: str, boards: int) -> dict[str, Any]:
    rows = drawn(board)
    best = next((row for row in board.rows if row.standing == "ranked"), None)
    return {
        "board": board,
        "id": ident,
        "best": best,
        "facts": _facts(board),
        "summary": facts(board),
        "families": sorted({text.plain(row.model.family) for row in board.rows}),
        "radii": [text.radius(eps, board.norm) for eps in board.ladder],
        "unit": "/255" if board.norm == "linf" else "",
        "legend": rows,
        "curve": {row: place for place, row in enumerate(rows)},
        "unranked": any(row.standing != "ranked" for row in rows),
        "svg": Markup(curves(board, ident)) if rows else "",  # noqa: S704 - drawn by figures.py
        "pictures": gallery(board, budget=PAGE_BYTES // max(boards, 1)),
    }


def _facts(board: Board) -> list[tuple[str, str]]:
    card = board.dataset
    sizes = sorted({row.images for row in board.rows if row.images})
    splits = sorted({run.record.case.split for row in board.rows for run in row.runs.values()})
    classes = "findings" if card.task == "multi_label" else "classes"
    shape = "×".join(map(str, card.size)) + (" grey" if card.channels == 1 else " RGB")
    return [
        ("Modality", f"{text.plain(card.modality)}, {shape}"),
        (f"{len(card.classes)} {classes}", ", ".join(map(text.plain, card.classes))),
        ("Images", f"{' / '.join(map(str, sizes)) or 'none'} ({', '.join(splits)} split)"),
        ("Patients", patients(board)),
        (
            f"Radii ε, {text.NORMS.get(board.norm, board.norm)}",
            text.radii(board.ladder, board.norm),
        ),
    ]


def _origin(made: list[Board]) -> dict[str, Any]:
    rows: list[Row] = [row for board in made for row in board.rows]
    records = [run.record for row in rows for run in row.runs.values()]
    sources = [record.provenance for record in records]
    return {
        "scope": ", ".join(
            f"{count} {word}{'' if count == 1 else 's'}"
            for word, count in {
                "victim": len({(r.model.name, r.defense, r.victim_sha256) for r in rows}),
                "dataset": len({board.dataset.name for board in made}),
                "attack": len({record.case.attack for record in records}),
                "case": len(records),
            }.items()
        ),
        "date": max((p.started for p in sources), default="")[:10],
        "versions": sorted({p.version for p in sources}),
        "torch": sorted({p.torch for p in sources}),
        "commits": sorted({commit_words(p) for p in sources if p.git_commit}),
        "synthetic": any(board.dataset.synthetic for board in made),
    }
