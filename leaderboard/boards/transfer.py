"""Transfer: success of each model's adversarial images on other models, a matrix for each attack.

A row is the surrogate that an attack was crafted on, a column the victim that its images are shown
to. The diagonal is the same attack on the victim itself, from the white-box board.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from robustbench_med.bench.record import Stored
from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.worst_case import rung_of

from ..wording.text import plain
from .board import Board, Row
from .columns import AttackRequest, attack_columns

SURROGATES = ("transfer", "no_box")


class Model(NamedTuple):
    """A surrogate or a victim of a matrix."""

    key: tuple[object, ...]
    title: str
    other_data: bool = False


@dataclass(frozen=True)
class Cell:
    """Attack success on one victim at each radius of the ladder.

    Attributes:
        attacked: number of attacked images, which are right when clean.
        white_box: whether surrogate and victim are the same model.
        note: "invalid" or "flagged"; otherwise empty.
    """

    success: tuple[Estimate, ...]
    attacked: int
    white_box: bool
    note: str = ""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Attack success from every surrogate (rows) on every victim (columns).

    Attributes:
        board: the first board of the transferred records, which has their data, norm and ladder.
        attack: the name of the attack's column.
        cells: (index of surrogate, index of victim) -> cell; pairs that were not run are missing.
    """

    board: Board
    attack: str
    surrogates: tuple[Model, ...]
    victims: tuple[Model, ...]
    cells: dict[tuple[int, int], Cell]


class _Entry(NamedTuple):
    board: Board
    row: Row
    stored: Stored


def matrices(boards: list[Board]) -> list[Matrix]:
    """Return a matrix for each attack on surrogates, in the order of the boards."""
    entries = [_Entry(b, row, run) for b in boards for row in b.rows for run in row.runs.values()]
    groups: dict[tuple[object, ...], list[_Entry]] = {}
    for entry in entries:
        groups.setdefault((*entry.board.key, _setting(entry.stored)), []).append(entry)
    moved = [g for g in groups.values() if any(e.board.threat in SURROGATES for e in g)]
    moved = [[e for e in g if e.board.threat in (*SURROGATES, "white_box")] for g in moved]
    first = [next(e for e in g if e.board.threat in SURROGATES) for g in moved]
    matrices_found = [
        _matrix(entry.board, _attack(entry, first), group)
        for entry, group in zip(first, moved, strict=True)
    ]
    return sorted(matrices_found, key=lambda m: (boards.index(m.board), m.attack))


def _setting(stored: Stored) -> tuple[object, ...]:
    case = stored.record.case
    parameters = json.dumps(case.parameters, sort_keys=True)
    train = case.train_sha256 if AttackRequest.of(stored).trains else ""
    return (case.attack, case.attack_version, parameters, case.guide, case.seed, train)


def _attack(entry: _Entry, moved: list[_Entry]) -> str:
    """Return the name of the attack on its board, without the surrogate."""
    beside = [candidate for candidate in moved if candidate.board.key == entry.board.key]
    stored = []
    for source in (candidate.stored for candidate in beside):
        case = source.record.case.model_copy(update={"surrogate": None, "surrogate_sha256": ""})
        stored.append(source._replace(record=source.record.model_copy(update={"case": case})))
    return attack_columns(stored)[beside.index(entry)]


def _matrix(board: Board, attack: str, group: list[_Entry]) -> Matrix:
    moved = [entry for entry in group if entry.board.threat in SURROGATES]
    surrogates = _surrogates(moved)
    down = {model.key: pair for pair, model in enumerate(surrogates)}
    image_sets = {entry.row.key.images for entry in moved}
    itself = [
        entry
        for entry in group
        if entry.board.threat == "white_box"
        and entry.row.key.defense == "none"
        and _attacked(entry) in down
        and entry.row.key.images in image_sets
    ]
    victims = _victims([*moved, *itself], surrogates)
    across = {model.key: pair for pair, model in enumerate(victims)}
    cells: dict[tuple[int, int], Cell] = {}
    for entry in (*moved, *itself):
        pair = down[_attacked(entry)], across[entry.row.key]
        cells[pair] = _joined(cells.get(pair), _cell(entry, board.ladder))
    return Matrix(board, attack, surrogates, victims, cells)


def _attacked(entry: _Entry) -> tuple[str, str]:
    """Return the model whose gradients the attack used, and its weights."""
    case = entry.stored.record.case
    if case.surrogate is None:
        return case.victim, case.victim_sha256
    return case.surrogate, case.surrogate_sha256


def _surrogates(moved: list[_Entry]) -> tuple[Model, ...]:
    models = {}
    for entry in moved:
        key = _attacked(entry)
        other_data = entry.board.threat == "no_box"
        models[key] = Model(key, plain(key[0]), other_data)
    return _with_distinct_titles(
        sorted(models.values(), key=lambda m: (m.other_data, m.title, m.key))
    )


def _victims(entries: list[_Entry], surrogates: tuple[Model, ...]) -> tuple[Model, ...]:
    """Return the victims; those that are surrogates come first in the same order (a diagonal)."""
    names = [model.key[0] for model in surrogates]
    rows = {entry.row.key: entry.row for entry in entries}

    def order(row: Row) -> tuple[int, str, str]:
        name = row.key.victim
        return names.index(name) if name in names else len(names), row.title, repr(row.key)

    ordered = sorted(rows.values(), key=order)
    return _with_distinct_titles([Model(row.key, row.name) for row in ordered])


def _with_distinct_titles(models: Iterable[Model]) -> tuple[Model, ...]:
    models = list(models)
    common = Counter(model.title for model in models)
    return tuple(
        model._replace(title=f"{model.title} (weights {plain(str(model.key[1]))[:8]})")
        if common[model.title] > 1
        else model
        for model in models
    )


def _cell(entry: _Entry, ladder: tuple[float, ...]) -> Cell:
    white_box = entry.board.threat == "white_box"
    record, samples = entry.stored.record, entry.stored.samples
    if record.status == "invalid":
        return Cell((UNDEFINED,) * len(ladder), 0, white_box, "invalid")
    success = [UNDEFINED] * len(ladder)
    for rung in record.rungs:
        if rung.eps > 0 and (at := rung_of(rung.eps, ladder)) >= 0:
            success[at] = rung.metrics.get("attack_success", UNDEFINED)
    attacked = samples.groupby("sample")["attacked"].all()
    over = record.audit is not None and record.audit.over_budget > 0
    return Cell(
        tuple(success), int(attacked.sum()), white_box, "flagged" if record.flags or over else ""
    )


def _joined(first: Cell | None, second: Cell) -> Cell:
    """Merge the cells of two runs with other radii or seeds; the higher success counts."""
    if first is None:
        return second

    def success(e: Estimate) -> float:
        return -1.0 if math.isnan(e.value) else e.value

    pairs = zip(first.success, second.success, strict=True)
    both = tuple(max(pair, key=success) for pair in pairs)
    return Cell(
        both, max(first.attacked, second.attacked), first.white_box, first.note or second.note
    )
