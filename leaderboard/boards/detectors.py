"""Detectors: how well each separates attacked from clean images, and its false alarms."""

from __future__ import annotations

import math
from typing import NamedTuple

from robustbench_med.bench.record import Record
from robustbench_med.errors import SpecError
from robustbench_med.spec import parse
from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.worst_case import rung_of

from ..wording.text import plain
from .board import Board, Row

RULE = (
    "An image counts as right if it is called right and, when clean, not rejected; an attacked "
    "image that is rejected counts as right."
)
# metric of a rung -> heading and how it is written
COLUMNS = {
    "auroc": ("AUROC", "unit"),
    "tpr_at_1": ("TPR at 1 % FPR, %", "percent"),
    "tpr_at_5": ("TPR at 5 % FPR, %", "percent"),
    "detected": ("Detected, %", "percent"),
}


class DetectorMetric(NamedTuple):
    """A metric against an oblivious and against an adaptive attacker; None = not run."""

    label: str
    kind: str
    oblivious: Estimate | None
    adaptive: Estimate | None


class Detector(NamedTuple):
    """A row of the table of detectors.

    Attributes:
        row: the row of the board.
        attacks: the attacks that are least favourable to the detector, in words.
        found: one metric for each column of COLUMNS.
        rate: the false-positive rate at which the threshold was frozen, in words; else empty.
        alarms: number of rejected clean images in 1,000 studies.
    """

    row: Row
    attacks: str
    rate: str
    found: tuple[DetectorMetric, ...]
    alarms: Estimate

    @property
    def doubted(self) -> bool:
        """Whether the row has no rank, so that its numbers may be wrong."""
        return self.row.standing not in ("ranked", "control")


def has_detector(record: Record) -> bool:
    """Whether the victim of a record has a detector."""
    card = record.defense_card
    known = card is not None and card.kind == "detector"
    return known or any("auroc" in rung.metrics for rung in record.rungs)


def has_detectors(board: Board) -> bool:
    """Whether any row of a board has a detector."""
    return any(has_detector(run.record) for row in board.rows for run in row.runs.values())


def detectors(board: Board) -> list[Detector]:
    """Return the rows of a board with a detector, in its order, at the headline radius.

    If there are several attacks, all columns of a row show the one least favourable to the
    detector: that with the lowest AUROC, and among equal ones that which is detected less often.
    """
    rows = (_detector(row, board.ladder[board.headline]) for row in board.rows)
    return [detector for detector in rows if detector is not None]


def _detector(row: Row, eps: float) -> Detector | None:
    hardest: dict[str, tuple[str, dict[str, Estimate]]] = {}
    for column, run in row.runs.items():
        record = run.record
        rung = rung_of(eps, record.case.ladder)
        if record.status != "ok" or not has_detector(record) or rung < 0:
            continue
        metrics = record.rungs[rung + 1].metrics
        knowledge = "oblivious" if record.case.knowledge == "oblivious" else "adaptive"
        if knowledge not in hardest or _ease(metrics) < _ease(hardest[knowledge][1]):
            hardest[knowledge] = column, metrics
    if not hardest:
        return None
    blind, knowing = hardest.get("oblivious"), hardest.get("adaptive")
    metrics_shown = tuple(
        DetectorMetric(label, kind, _metric(blind, name), _metric(knowing, name))
        for name, (label, kind) in COLUMNS.items()
    )
    alarms = _metric(knowing or blind, "false_alarms")
    # the column of an oblivious attack says so; that of an adaptive one is only the attack's name
    attacks = [plain(attack[0]) for attack in (blind, knowing) if attack]
    return Detector(row, " → ".join(attacks), _rate(row), metrics_shown, alarms or UNDEFINED)


def _rate(row: Row) -> str:
    """Return the stated false-positive rate of a row's detector: "frozen at 5 % FPR"."""
    try:
        fpr = parse(row.key.defense).parameters.get("fpr")
    except SpecError:
        return ""
    return f"frozen at {100 * fpr:.3g} % FPR" if isinstance(fpr, float) else ""


def _ease(metrics: dict[str, Estimate]) -> tuple[float, float]:
    values = (metrics.get(name, UNDEFINED).value for name in ("auroc", "detected"))
    first, second = (math.inf if math.isnan(value) else value for value in values)
    return first, second


def _metric(hardest: tuple[str, dict[str, Estimate]] | None, name: str) -> Estimate | None:
    return None if hardest is None else hardest[1].get(name, UNDEFINED)
