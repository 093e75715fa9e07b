"""Lost: cases that a page should have and has not: they failed, or their record cannot be read.

An attack that is not counted leaves a model looking stronger than it is, so a page names what it
lacks, and the row that lacks it is not ranked.
"""

from __future__ import annotations

from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.cards import AttackCard, DefenseCard

MEANS = (
    "The worst case of a model is taken over the attacks that were scored: where one is missing, "
    "it may be too high."
)


class Lost(NamedTuple):
    """A case without a usable record.

    Attributes:
        label: its name, or the folder of its record.
        reason: why it has none.
        case: where known, with its `attack`: its row is incomplete.
        attack, defense: cards.
    """

    label: str
    reason: str
    case: Case | None = None
    attack: AttackCard | None = None
    defense: DefenseCard | None = None
