"""Noise: the difference between two reruns of one case that differ only by rounding.

The figures behind the constants are in docs/statistics.md: torch 2.13 and 2.14 agreed to the last
digit on one processor; AVX-512 and SSE did not. Between those no clean score moved by more than
1e-6, while adversarial images took other paths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.verify.expected import Recomputed

OUTCOMES = ("success", "correct", "prediction", "rejected")
ABSOLUTE = ("scores", "suspicion", "target_dice", "ssim")  # columns measured in units of their own
RELATIVE = ("l2", "linf", "distance", "psnr")
MEASURED = (*ABSOLUTE, *RELATIVE)
CLEAN = 1e-3  # clean scores may differ by this much on any machine
_TIGHT = 1e-4  # values count as equal up to this difference
_FLOOR = 0.05  # rounding may change values by this much even if a single rerun does not show it
_FLIPPED = 0.25  # the same for a sample with another outcome, whose attack stopped elsewhere
_FACTOR = 3  # values may differ so many times as much as in two reruns, a sample of two roundings
_FLIPS = 5  # the same for a sample with another outcome
_TIMES = 2  # so many times as many samples as in two reruns may have another outcome
_SAMPLES = 2  # so many samples may have another outcome even if no rerun shows one

Floats = NDArray[np.float64]


class Noise(NamedTuple):
    """The differences that rounding explains.

    Attributes:
        samples: number of samples that may have another outcome.
        values: for each column, the largest difference of its values.
        flipped: the same for rows with another outcome; columns that are not listed may have any
            value there.
    """

    samples: int
    values: dict[str, float]
    flipped: dict[str, float]


STRICT = Noise(0, dict.fromkeys(MEASURED, _TIGHT), {})
# the differences allowed if saved images are judged
JUDGED = Noise(_SAMPLES, dict.fromkeys(MEASURED, CLEAN), {"scores": CLEAN})


def noise_of(claim: Recomputed, second: Recomputed) -> Noise:
    """Return the differences that rounding explains, estimated from two reruns."""
    flipped = other_outcome(claim.samples, second.samples)
    samples = int(claim.samples.loc[flipped, "sample"].nunique())
    values, at_flips = {}, {}
    for name in MEASURED:
        if name in claim.samples and name in second.samples:
            apart = distances(name, claim.samples, second.samples)
            apart = apart[np.isfinite(apart)]
            farthest = float(apart.max(initial=0.0))
            unit = _unit(name, claim.samples)
            values[name] = max(_FLOOR * unit, _FACTOR * farthest)
            if name == "scores":
                at_flips[name] = max(_FLIPPED * unit, _FLIPS * farthest)
    return Noise(_SAMPLES + _TIMES * samples, values, at_flips)


def other_outcome(
    before: pd.DataFrame, after: pd.DataFrame, names: tuple[str, ...] = OUTCOMES
) -> NDArray[np.bool_]:
    """Return which rows have another outcome; a change of Dice alone does not count."""
    differs = np.zeros(len(before), dtype=np.bool_)
    for name in names:
        if name in before and name in after and _is_discrete(before[name]):
            pairs = zip(before[name], after[name], strict=True)
            differs |= np.array([not np.array_equal(*pair) for pair in pairs], dtype=np.bool_)
    return differs


def _is_discrete(column: pd.Series[Any]) -> bool:
    """Whether values are outcomes; Dice and the pixels of a mask have degrees and are not."""
    if column.dtype.kind == "f":
        return bool(column.isin([0.0, 1.0]).all())
    first = column.iloc[0] if len(column) else 0
    return np.ndim(first) == 0 or bool(
        np.isin(np.concatenate(list(map(np.ravel, column))), (0, 1)).all()
    )


def distances(name: str, before: pd.DataFrame, after: pd.DataFrame) -> Floats:
    """Return the distance of the values of a column; inf where only one of the two is a number."""
    first, second = (_numbers(table[name]) for table in (before, after))
    if first.shape != second.shape:
        return np.full(len(before), np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(first - second)
        if name in RELATIVE:
            apart = apart / np.maximum(np.maximum(np.abs(first), np.abs(second)), 1e-3)
    apart[(first == second) | (np.isnan(first) & np.isnan(second))] = 0
    apart[np.isnan(apart)] = np.inf
    farthest: Floats = apart.reshape(len(before), -1).max(1)
    return farthest


def _numbers(column: pd.Series[Any]) -> Floats:
    try:
        return np.array([np.asarray(value, dtype=np.float64) for value in column], dtype=np.float64)
    except ValueError:  # the rows have different lengths
        return np.zeros(0)


def _unit(name: str, table: pd.DataFrame) -> float:
    """Return the unit of a column: 1, or the spread over the table for an unbounded suspicion."""
    if name != "suspicion":
        return 1.0
    spread = float(np.nanstd(_numbers(table[name])))
    return spread if np.isfinite(spread) and spread > 0 else 1.0
