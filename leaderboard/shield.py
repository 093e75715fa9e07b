"""Shield: the defense of a row in words."""

from __future__ import annotations

from typing import Any

from robustbench_med import spec
from robustbench_med.bench.record import Record
from robustbench_med.errors import SpecError

from .board import Row
from .columns import knowledge_words
from .price import retrained, trained_with, training_words
from .text import plain, radius

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


def shield_words(record: Record) -> str:
    """Return the title of a record's defense, with the parameters that are not its defaults."""
    card = record.defense_card
    if card is None:
        return "" if record.case.defense == "none" else plain(record.case.defense)
    given = spec.parse(record.case.defense).parameters
    told = [f"{key}={value!r}" for key, value in given.items() if value != card.parameters.get(key)]
    return plain(f"{card.title} ({', '.join(told)})" if told else card.title)


def defense_words(row: Row) -> list[tuple[str, str]]:
    """Return what defends a row, as (heading, sentence) pairs; "none" of a bare victim."""
    lines = []
    if retrained(row):
        name, given = trained_with(row)
        told = [f"{name or 'retrained'} (training: {_KINDS['training']})", _listed(given)]
        told += [training_words(row), f"undefended: {row.model.undefended}"]
        lines.append(("Trained with", plain("; ".join(filter(None, told)))))
    if row.key.defense == "none":
        return lines or [("Defense", "none")]
    record = next(iter(row.runs.values())).record
    card = record.defense_card
    if card is None:
        lines.append(("Defense", plain(row.key.defense)))
    else:
        told = [f"{card.title} ({card.kind}: {_KINDS[card.kind]})", _listed(_given(row))]
        told += [f"source: {card.source}" if card.source else ""]
        lines.append(("Defense", plain("; ".join(filter(None, told)))))
    return [*lines, ("Knowledge", _knowledge(row))]


def _given(row: Row) -> dict[str, Any]:
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
    """Return which attackers know of the defense."""
    known: dict[str, list[str]] = {}
    for column, run in row.runs.items():
        knowledge = run.record.case.knowledge
        attack = column.replace(f", {knowledge_words(knowledge)}", "")
        known.setdefault(_KNOWN.get(knowledge, _INSTEAD), []).append(attack)
    order = sorted(known, key=[*_KNOWN.values(), _INSTEAD].index)
    return "; ".join(f"{words}: {', '.join(known[words])}" for words in order)
