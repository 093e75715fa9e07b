"""Degradation of masks: the scores of ROOD-MRI, of a row on which shifts were drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .board import Board, Row

ALPHA = 2 / 3  # weight of a level relative to the one below it, the default of ROOD-MRI


class Degradation(NamedTuple):
    """The scores of one shift.

    Attributes:
        shift: the column of the board.
        overall: the weighted mean Dice over the levels, the clean images being level 0.
        degradation: the weighted mean of the Dice lost at each level; negative where it rises.
    """

    shift: str
    overall: float
    degradation: float


class Degradations(NamedTuple):
    """The scores of a row, and their means over the shifts."""

    shifts: tuple[Degradation, ...]
    overall: float
    degradation: float


def degradations(board: Board, row: Row) -> list[Degradations]:
    """Return the scores of ROOD-MRI of a row; empty where no shift of masks was drawn at random.

    Source: Boone et al., "ROOD-MRI", NeuroImage 2023, arXiv:2203.06060, and its code. A level is
    the place of a severity in the ladder, for which its authors have five of their own.
    """
    if not board.shift or board.dataset.task != "segmentation":
        return []
    shifts = []
    for column, run in row.runs.items():
        drawn = run.record.case.parameters.get("search") == "random"
        if not drawn or run.record.status != "ok" or run.record.case.objective != "untargeted":
            continue
        dice = run.samples.groupby("eps", sort=True)["correct"].mean().tolist()
        if len(dice) > 1:
            shifts.append(Degradation(row.repeats.get(column, column), *weighted(dice)))
    if not shifts:
        return []
    overall, lost = (float(np.mean(values)) for values in list(zip(*shifts, strict=True))[1:])
    return [Degradations(tuple(shifts), overall, lost)]


def weighted(dice: Sequence[float]) -> tuple[float, float]:
    """Return the weighted mean Dice and the weighted mean degradation.

    Args:
        dice: the mean Dice at each level, 0 (clean) first.

    >>> overall, degradation = weighted([0.9, 0.6, 0.3])
    >>> round(overall, 6), round(degradation, 6)
    (0.678947, 0.42)
    """
    weights = ALPHA ** np.arange(len(dice))
    values = np.asarray(dice, dtype=float)
    if not np.isfinite(values).all():
        return math.nan, math.nan
    lost = (weights[1:] * (values[0] - values[1:])).sum() / weights[1:].sum()
    return float((weights * values).sum() / weights.sum()), float(lost)
