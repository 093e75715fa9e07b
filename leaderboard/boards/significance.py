"""Ties: which rows of a board their images tell apart, and who therefore shares a place.

Every pair of ranked rows is tested at every radius on the images both saw. Where an image is right
or wrong and no patient repeats: McNemar's exact test. Where patients repeat, and of Dice: the
paired bootstrap by patient, as the wild cluster bootstrap with signs: under the null the sign of
each patient's summed difference is drawn anew. The percentile bootstrap would split ties too often
at the 10 to 50 patients a board has (tests/leaderboard/test_significance.py measures both). With
one image a patient and 0/1 scores the signs give McNemar's test. P values are Holm-corrected over
all pairs of the board at that radius.

Rows share a place unless a line can be drawn between them: every row above it does significantly
better than every row below. So a pair that is not told apart always shares a place, and a split is
never weaker than its weakest pair.

Source: McNemar, Psychometrika 12, 1947 (exact, two-sided binomial); Cameron, Gelbach, Miller,
Review of Economics and Statistics 90, 2008, section III.B (Rademacher signs, null imposed); Holm,
Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.stats.paired_tests import DRAWS, holm, two_sided_p

ALPHA = 0.05
_RESOLUTION = 100  # draws a pair, at least: the first step of Holm asks for p <= 0.05 over pairs


class Scored(NamedTuple):
    """What a row has left of its images.

    Attributes:
        left: a row an image, a column a rung; truth values, or numbers such as a Dice.
        patients: patient of each image, in the order of `left`; None where not known.
    """

    left: pd.DataFrame
    patients: NDArray[np.character] | None


class Pairs(NamedTuple):
    """Every two rows of a board compared, at every rung.

    Attributes:
        gain: `(rungs, k, k)`; how much more the first of two has left, mean over shared images;
            NaN where they are not compared.
        p: `(rungs, k, k)`; two-sided p value, Holm-corrected over the pairs of the rung; 1 on the
            diagonal and where nothing is shared.
    """

    gain: NDArray[np.float64]
    p: NDArray[np.float64]

    @property
    def beats(self) -> NDArray[np.bool_]:
        """Whether the first of two does significantly better."""
        found: NDArray[np.bool_] = (self.p <= ALPHA) & (self.gain > 0)
        return found


def pairs(rows: Sequence[Scored], rungs: int | None = None) -> Pairs:
    """Return every two of `rows` compared at every rung; see the module for the tests.

    Args:
        rows: what each has left, a column a rung.
        rungs: columns 0, 1, ... that are compared; by default as many as the first row has. Two
            rows of which one lacks a column are not compared there: gain NaN, p 1.
    """
    k = len(rows)
    if rungs is None:
        rungs = rows[0].left.shape[1] if rows else 0
    gain, p = np.full((rungs, k, k), np.nan), np.full((rungs, k, k), np.nan)
    couples = list(combinations(range(k), 2))
    alike: dict[object, list[tuple[int, int, list[int], NDArray[np.float64]]]] = {}
    owners: dict[object, NDArray[np.intp] | None] = {}
    for i, j in couples:
        own, other = rows[i].left.columns, rows[j].left.columns
        shared = [rung for rung in range(rungs) if rung in own and rung in other]
        difference, owner = _difference(rows[i], rows[j], shared)
        gain[shared, i, j], p[shared, i, j] = 0.0, 1.0
        if len(difference) and shared:
            gain[shared, i, j] = difference.mean(axis=0)
            key: object = len(difference) if owner is None else owner.tobytes()
            owners[key] = owner
            alike.setdefault(key, []).append((i, j, shared, difference))
    for whose, found in alike.items():  # those of the same patients meet the same signs
        every = np.hstack([difference for *_, difference in found])
        values = two_sided_p(every, owners[whose], draws=max(DRAWS, _RESOLUTION * len(couples)))
        for i, j, shared, _ in found:
            p[shared, i, j], values = values[: len(shared)], values[len(shared) :]
    above, below = np.triu_indices(k, 1)
    for rung in range(rungs):
        tested = ~np.isnan(p[rung, above, below])  # a pair that is not compared is corrected for
        i, j = above[tested], below[tested]  # by nobody
        p[rung, i, j] = holm(p[rung, i, j])
    full = np.where(np.isnan(p), 1.0, p)
    diagonal = np.arange(k)
    gain[:, diagonal, diagonal] = 0.0
    mirrored = np.where(np.isnan(gain), -gain.transpose(0, 2, 1), gain)
    return Pairs(mirrored, np.minimum(full, full.transpose(0, 2, 1)))


def _difference(
    one: Scored, other: Scored, rungs: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
    """Return the differences on shared images `(n, rungs)` and whose they are: None if nobody's."""
    place = one.left.index.get_indexer(other.left.index)
    kept = place[place >= 0]
    mine = one.left[rungs].to_numpy()[kept]
    yours = other.left[rungs].to_numpy()[place >= 0]
    difference = mine.astype(np.float64) - yours.astype(np.float64)
    if one.patients is None:
        return difference, None
    owner = np.unique(one.patients[kept], return_inverse=True)[1]
    return difference, owner


def places(worst: NDArray[np.float64], found: Pairs) -> NDArray[np.intp]:
    """Return the place of each row at each rung, `(rungs, k)`: 1, 1, 3 where two share the first.

    Args:
        worst: what each row has left, `(rungs, k)`; rows are ordered by it. A row with NaN was not
            scored there, and has place 0.
        found: of the same rows.
    """
    rungs, k = worst.shape
    placed = np.zeros((rungs, k), dtype=np.intp)
    for rung in range(rungs):
        order = np.argsort(-worst[rung], kind="stable")
        order = order[np.isfinite(worst[rung][order])]
        beats = found.beats[rung][np.ix_(order, order)]
        first = 0
        for position in range(len(order)):
            if position and beats[:position, position:].all():
                first = position
            placed[rung, order[position]] = first + 1
    return placed
