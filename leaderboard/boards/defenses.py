"""Defenses: the effect of each defense on its victim, its cost, and its name.

Nothing is estimated: a change is shown only if the undefended victim is on the same board, with the
same images. The change of the worst case covers the attacks that ran on both rows.
"""

from __future__ import annotations

import math
import re
from statistics import median
from typing import Any, NamedTuple

from robustbench_med import spec
from robustbench_med.bench.record import Record
from robustbench_med.errors import SpecError
from robustbench_med.spec import Spec, parse
from robustbench_med.worst_case import lowest, score_table

from ..wording.text import DASH, plain, radius
from .board import Board, Row
from .columns import knowledge_words

# defense -> passes of the loss itself, in addition to one for each crafting step: TRADES and MART
# also need the outputs for the clean images
_LOSS_PASSES = {"pgd_at": 1, "fast_at": 1, "trades": 2, "mart": 2}


class DefenseEffect(NamedTuple):
    """The effect and the cost of a defense.

    Attributes:
        against: the row of the undefended victim; None if the board has none.
        clean: change of the clean score; NaN if unknown.
        worst: change of the worst case at each radius of the ladder; NaN where unknown.
        slower: time of a pass relative to one without the defense; None if not measured.
        training: the cost of the training in words; empty if the victim was not retrained.
    """

    against: Row | None
    clean: float
    worst: tuple[float, ...]
    slower: float | None
    training: str

    @property
    def cost(self) -> str:
        """The cost in words."""
        ratio = "" if self.slower is None else f"{ratio_text(self.slower)} the time a pass"
        return ", ".join(filter(None, [ratio, self.training]))


def defense_effects(board: Board) -> dict[Row, DefenseEffect]:
    """Return the effect and cost of the defense of every wrapped or retrained row."""
    return {row: _price(row, board) for row in board.rows if is_defended(row)}


def is_defended(row: Row) -> bool:
    """Whether the victim of a row is wrapped or retrained."""
    return row.key.defense != "none" or is_retrained(row)


def is_retrained(row: Row) -> bool:
    """Whether the victim of a row was retrained with a defense."""
    return bool(row.model.undefended) and row.model.undefended != row.key.victim


def trained_with(row: Row) -> Spec:
    """Return the parsed spec of the defense that trained a victim; else one without a name."""
    recipe = row.model.recipe
    try:
        return parse(recipe.defense) if recipe and recipe.defense else Spec("", {})
    except SpecError:
        return Spec("", {})


def _price(row: Row, board: Board) -> DefenseEffect:
    base = _undefended(row, board)
    clean, worst = math.nan, (math.nan,) * len(board.ladder)
    if base is not None:
        # a board of attacked images only has no clean score to compare, since the victims have
        # different attacked images
        clean = math.nan if board.score.attacked else row.clean.value - base.clean.value
        shared = _attacks(row) & _attacks(base)
        if shared:
            pairs = zip(_worst(row, shared, board), _worst(base, shared, board), strict=True)
            worst = tuple(own - other for own, other in pairs)
    return DefenseEffect(base, clean, worst, _slower(row), training_words(row))


def _attacks(row: Row) -> set[str]:
    """Return the attacks in a row's worst case, except those that need a defense."""
    cases = {c: run.record.case for c, run in row.runs.items() if run.record.status == "ok"}
    return {row.repeats.get(c, c) for c, case in cases.items() if case.knowledge == "adaptive"}


def _worst(row: Row, columns: set[str], board: Board) -> list[float]:
    """Return the worst case of a row under some of its attacks; NaN where an attack did not run."""
    if columns == _attacks(row):
        return [e.value for e in row.worst]
    runs = [run for c, run in row.runs.items() if row.repeats.get(c, c) in columns]
    table = lowest([score_table(run, board.ladder) for run in runs if run.record.status == "ok"])
    means = table.mean().reindex(range(1, len(board.ladder) + 1))
    return [float(value) for value in means]


def _undefended(row: Row, board: Board) -> Row | None:
    """Return the row without the defense: of the original victim, or of the unwrapped one."""

    def alike(candidate: Row) -> bool:
        key = candidate.key
        same = key.images == row.key.images and key.operating_point == row.key.operating_point
        return same and key.defense == "none" and candidate is not row

    def nearest(rows: list[Row]) -> Row | None:
        return min(rows, key=lambda candidate: candidate.key.draws != row.key.draws, default=None)

    undefended = nearest(
        [r for r in board.rows if alike(r) and r.key.victim == row.model.undefended]
    )
    if undefended is None and row.key.defense != "none":
        deployed = row.key.victim, row.key.weights
        bare = [r for r in board.rows if alike(r) and (r.key.victim, r.key.weights) == deployed]
        undefended = nearest(bare)
    return undefended


def _slower(row: Row) -> float | None:
    costs = [run.record.cost for run in row.runs.values() if run.record.cost is not None]
    ratios = [
        cost.relative_forward_time for cost in costs if cost.relative_forward_time is not None
    ]
    ratios = [ratio for ratio in ratios if math.isfinite(ratio)]
    return median(ratios) if ratios else None


def training_words(row: Row) -> str:
    """Return the training cost of a victim: "24 epochs, 8 passes an image instead of 1"."""
    recipe = row.model.recipe
    if recipe is None or not is_retrained(row):
        return ""
    name, parameters = trained_with(row)
    epochs = f"trained {recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}"
    if recipe.start not in ("", row.model.undefended):
        epochs += f" after {plain(recipe.start)}"
    steps = parameters.get("steps")
    if name not in _LOSS_PASSES or not isinstance(steps, int):
        return epochs
    passes = steps + _LOSS_PASSES[name] * (2 if parameters.get("awp") else 1)
    return f"{epochs}, {passes} passes an image instead of 1"


def signed_change(value: float, kind: str) -> str:
    """Return a change with its sign: shares in percentage points, Dice with two decimals.

    >>> [signed_change(value, "percent") for value in (-0.0312, -0.0001)]
    ['−3.1', '±0.0']
    >>> signed_change(0.214, "unit")
    '+0.21'
    """
    if not math.isfinite(value):
        return DASH
    text = f"{100 * value:+.1f}" if kind == "percent" else f"{value:+.2f}"
    return f"±{text[1:]}" if not float(text) else text.replace("-", "−")


def ratio_text(ratio: float) -> str:
    """Return a ratio of times as text."""
    return f"{ratio:.1f} ×"


def change_unit(board: Board) -> str:
    """Return the unit of a change on a board."""
    return "points" if board.score.kind == "percent" else "Dice"


def defense_names(row: Row, against: Row | None) -> list[str]:
    """Return the defenses of a row as a menu lists them, without their parameters."""
    names = []
    if is_retrained(row):
        title = plain(row.model.title)
        stem = f"{plain(against.model.title)}, " if against else title
        short = title.removeprefix(stem) if title.startswith(stem) else ""
        name = trained_with(row).name
        tail = title.rpartition(", ")[2]
        if not short and name and re.sub(r"\W+", "_", tail.lower()) == name:
            short = tail  # as on boards that have the undefended victim
        names.append(short or name or "retrained")
    if row.key.defense != "none":
        card = next(iter(row.runs.values())).record.defense_card
        names.append(plain(card.title if card else row.key.defense.partition("(")[0]))
    return names


_INSTEAD = "not known, another detector evaded in its place"
_KNOWN = {
    "adaptive": "known to the attacker (adaptive)",
    "oblivious": "not known (oblivious, never ranks)",
}
_KINDS = {
    "training": "retrains the victim",
    "transform": "changes the image before the victim sees it",
    "detector": "rejects images before they are called",
    "smoothing": "averages the victim's answers under noise",
}


def defense_title_of(record: Record) -> str:
    """Return the title of a record's defense, with the parameters that are not its defaults."""
    card = record.defense_card
    if card is None:
        return "" if record.case.defense == "none" else plain(record.case.defense)
    parameters = spec.parse(record.case.defense).parameters
    words = [
        f"{key}={value!r}" for key, value in parameters.items() if value != card.parameters.get(key)
    ]
    return plain(f"{card.title} ({', '.join(words)})" if words else card.title)


def defense_words(row: Row) -> list[tuple[str, str]]:
    """Return the defenses of a row as (heading, sentence) pairs; "none" without a defense."""
    lines = []
    if is_retrained(row):
        name, parameters = trained_with(row)
        words = [f"{name or 'retrained'} (training: {_KINDS['training']})", _listed(parameters)]
        words += [training_words(row), f"undefended: {row.model.undefended}"]
        lines.append(("Trained with", plain("; ".join(filter(None, words)))))
    if row.key.defense == "none":
        return lines or [("Defense", "none")]
    record = next(iter(row.runs.values())).record
    card = record.defense_card
    if card is None:
        lines.append(("Defense", plain(row.key.defense)))
    else:
        words = [f"{card.title} ({card.kind}: {_KINDS[card.kind]})", _listed(_parameters_of(row))]
        words += [f"source: {card.source}" if card.source else ""]
        lines.append(("Defense", plain("; ".join(filter(None, words)))))
    return [*lines, ("Knowledge", _knowledge(row))]


def _parameters_of(row: Row) -> dict[str, Any]:
    try:
        return spec.parse(row.key.defense).parameters
    except SpecError:
        return {}


def _listed(parameters: dict[str, Any]) -> str:
    norm = str(parameters.get("norm", "linf"))
    return ", ".join(f"{key} = {_short(key, value, norm)}" for key, value in parameters.items())


def _short(key: str, value: object, norm: str) -> str:
    if not isinstance(value, float):
        return str(value)
    return radius(value, norm) if key == "eps" else f"{value:.4g}"


def _knowledge(row: Row) -> str:
    """Return which attackers know the defense."""
    known: dict[str, list[str]] = {}
    for column, run in row.runs.items():
        knowledge = run.record.case.knowledge
        attack = column.replace(f", {knowledge_words(knowledge)}", "")
        known.setdefault(_KNOWN.get(knowledge, _INSTEAD), []).append(attack)
    order = sorted(known, key=[*_KNOWN.values(), _INSTEAD].index)
    return "; ".join(f"{words}: {', '.join(known[words])}" for words in order)
