"""BE and rBE: the scores of MedMNIST-C, of a row on which its corruptions ran."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Stored
from robustbench_med.corruption_tables import ATTACK, LEVELS, SIDE, corruption_tables

from .board import Board, Row


class CorruptionScore(NamedTuple):
    """The scores of one corruption, means over its five levels; NaN where there is none.

    Attributes:
        name: the corruption.
        error: the balanced error, 1 minus the mean recall of the classes.
        be: this error in units of that of the reference network.
        rbe: what the corruption adds to the clean error, in units of what it adds to that of the
            reference network; NaN where it adds nothing to that.
    """

    name: str
    error: float
    be: float
    rbe: float


class CorruptionScores(NamedTuple):
    """The scores of a row.

    Attributes:
        table: the data set whose levels and reference errors are used.
        clean: the balanced error without a corruption.
        scores: one a corruption, in the order of the table.
        missing: corruptions of the table that did not run.
        notes: what must be known to compare them with published ones.
    """

    table: str
    clean: float
    scores: tuple[CorruptionScore, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def be(self) -> float:
        """The mean BE of the corruptions."""
        return float(np.mean([score.be for score in self.scores]))

    @property
    def rbe(self) -> float:
        """The mean rBE of the corruptions that have one; NaN where none has."""
        values = [score.rbe for score in self.scores if not math.isnan(score.rbe)]
        return float(np.mean(values)) if values else math.nan


def corruption_scores(board: Board, row: Row) -> list[CorruptionScores]:
    """Return the scores of MedMNIST-C of a row, one entry for each table that its runs used.

    Runs count that drew once at each of the five levels.
    """
    tables: dict[str, dict[str, Stored]] = {}
    for run in row.runs.values():
        case = run.record.case
        complete = len(case.ladder) == 5 and np.allclose(case.ladder, LEVELS)
        if case.attack != ATTACK or run.record.status != "ok" or not complete:
            continue
        if case.parameters.get("search") == "random" and case.objective == "untargeted":
            name = str(case.parameters["corruption"])
            tables.setdefault(str(case.parameters["table"]), {})[name] = run
    return [_scores(board, table, runs) for table, runs in tables.items()]


def _scores(board: Board, table: str, runs: dict[str, Stored]) -> CorruptionScores:
    reference = corruption_tables()[table]
    errors = {name: _errors(run.samples) for name, run in runs.items()}
    (clean, *_), scores = next(iter(errors.values())), []
    for name, row in reference.corruptions.items():
        if name in errors:
            error = float(np.mean(errors[name][1:]))
            added = row.error - reference.clean_error
            rbe = (error - clean) / added if added > 0 else math.nan
            scores.append(CorruptionScore(name, error, error / row.error, rbe))
    missing = tuple(name for name in reference.corruptions if name not in errors)
    return CorruptionScores(table, clean, tuple(scores), missing, _notes(board, scores, missing))


def _notes(
    board: Board, scores: list[CorruptionScore], missing: tuple[str, ...]
) -> tuple[str, ...]:
    size = board.dataset.size
    notes = [
        "The reference network is the AlexNet of the authors of MedMNIST-C, on the whole test set "
        f"at {SIDE}×{SIDE}.",
        "An image that is wrong when clean counts as wrong under every corruption, as on all "
        "boards here, so these errors are those of MedMNIST-C or higher.",
    ]
    if tuple(size) != (SIDE, SIDE):
        notes.append(
            f"The images are {'×'.join(map(str, size))}: blurs have their lengths in pixels and do "
            f"more harm than at {SIDE}×{SIDE}, so BE and rBE cannot be compared with published "
            "ones."
        )
    undefined = [score.name for score in scores if math.isnan(score.rbe)]
    if undefined:
        notes.append(
            f"The reference network's error did not rise under {', '.join(undefined)}, so there is "
            "no rBE, and the mean is over the others."
        )
    if missing:
        notes.append(f"Not run: {', '.join(missing)}.")
    return tuple(notes)


def _errors(samples: pd.DataFrame) -> list[float]:
    """Return the balanced error on the clean images, and at each severity."""
    return [
        balanced_error(_stacked(rows["truth"]), _stacked(rows["prediction"]))
        for _, rows in samples.groupby("eps", sort=True)
    ]


def _stacked(values: pd.Series) -> NDArray[np.int64]:
    return np.stack([np.asarray(value, dtype=np.int64) for value in values])


def balanced_error(truth: NDArray[np.int64], prediction: NDArray[np.int64]) -> float:
    """Return 1 minus the mean recall of the classes; of findings, its mean over the findings.

    Unlabelled findings (-1) are left out; a class without an image does not count.

    Args:
        truth: `(n,)` classes, or `(n, k)` findings, 0 or 1.
        prediction: the same.

    Source: Di Salvo, Doerrich, Ledig, "MedMNIST-C", 2024, arXiv:2406.17536, balanced error.

    >>> round(balanced_error(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])), 9)
    0.166666667
    """
    if truth.ndim == 2:
        columns = zip(truth.T, prediction.T, strict=True)
        errors = [balanced_error(t[t >= 0], p[t >= 0]) for t, p in columns]
        defined = [error for error in errors if not math.isnan(error)]
        return float(np.mean(defined)) if defined else math.nan
    classes = np.unique(truth)
    if not len(classes):
        return math.nan
    return 1 - float(np.mean([(prediction[truth == c] == c).mean() for c in classes]))
