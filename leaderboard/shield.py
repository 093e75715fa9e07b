"""Shield: the defense of a row in words."""

from __future__ import annotations

from robustbench_med import spec
from robustbench_med.bench.record import Record

from .text import plain


def shield_words(record: Record) -> str:
    """Return the title of a record's defense, with the parameters that are not its defaults."""
    card = record.defense_card
    if card is None:
        return "" if record.case.defense == "none" else plain(record.case.defense)
    given = spec.parse(record.case.defense).parameters
    told = [f"{key}={value!r}" for key, value in given.items() if value != card.parameters.get(key)]
    return plain(f"{card.title} ({', '.join(told)})" if told else card.title)
