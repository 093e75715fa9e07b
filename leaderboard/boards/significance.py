"""Significance: test which rows of a board differ on their images, and which share a place.

Every pair of ranked rows is tested at every radius on the images of both. If an image is right or
wrong and every patient has one image, the test is McNemar's exact test. If patients have several
images, and for Dice, it is the paired bootstrap by patient, as the wild cluster bootstrap with
signs: under the null the sign of each patient's summed difference is drawn anew. The percentile
bootstrap would split ties too often at the 10 to 50 patients of a board
(tests/leaderboard/test_significance.py measures both). With one image for each patient and 0/1
scores the signs give McNemar's test. P values are Holm-corrected over all pairs of the board at
that radius.

Two neighbouring groups of rows have different places only if every row of the upper group is
significantly better than every row of the lower one. So two rows that do not differ significantly
always share a place, and a split is never weaker than its weakest pair.

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
# at least so many draws for each pair, since the first step of Holm needs p <= 0.05 / pairs
_RESOLUTION = 100


class ImageScores(NamedTuple):
    """The worst-case scores of a row, image by image.

    Attributes:
        table: a row for each image, a column for each rung; booleans, or numbers such as a Dice.
        patients: patient of each image, in the order of `table`; None if not known.
    """

    table: pd.DataFrame
    patients: NDArray[np.character] | None


class Pairs(NamedTuple):
    """The comparison of all pairs of rows of a board, at every rung.

    Attributes:
        gain: `(rungs, k, k)`; score of the first row minus that of the second, mean over common
            images; NaN where they are not compared.
        p: `(rungs, k, k)`; two-sided p value, Holm-corrected over the pairs of the rung; 1 on the
            diagonal and for pairs without a common image.
    """

    gain: NDArray[np.float64]
    p: NDArray[np.float64]

    @property
    def beats(self) -> NDArray[np.bool_]:
        """Whether the first row of a pair is significantly better."""
        better: NDArray[np.bool_] = (self.p <= ALPHA) & (self.gain > 0)
        return better


def pairs(rows: Sequence[ImageScores], rungs: int | None = None) -> Pairs:
    """Compare all pairs of `rows` at every rung; the module's docstring describes the tests.

    Args:
        rows: the scores of each row, with a column for each rung.
        rungs: number of columns to compare; by default as many as the first row has. If one of two
            rows lacks a column, they are not compared there: gain NaN, p 1.
    """
    k = len(rows)
    if rungs is None:
        rungs = rows[0].table.shape[1] if rows else 0
    gain, p = np.full((rungs, k, k), np.nan), np.full((rungs, k, k), np.nan)
    couples = list(combinations(range(k), 2))
    alike: dict[object, list[tuple[int, int, list[int], NDArray[np.float64]]]] = {}
    owners: dict[object, NDArray[np.intp] | None] = {}
    for i, j in couples:
        known = rows[i].table.columns.intersection(rows[j].table.columns)
        shared = [rung for rung in range(rungs) if rung in known]
        difference, owner = _difference(rows[i], rows[j], shared)
        gain[shared, i, j], p[shared, i, j] = 0.0, 1.0
        if len(difference) and shared:
            gain[shared, i, j] = difference.mean(axis=0)
            key: object = len(difference) if owner is None else owner.tobytes()
            owners[key] = owner
            alike.setdefault(key, []).append((i, j, shared, difference))
    # pairs with the same patients are tested with the same signs
    for whose, members in alike.items():
        every = np.hstack([difference for *_, difference in members])
        values = two_sided_p(every, owners[whose], draws=max(DRAWS, _RESOLUTION * len(couples)))
        for i, j, shared, _ in members:
            p[shared, i, j], values = values[: len(shared)], values[len(shared) :]
    above, below = np.triu_indices(k, 1)
    for rung in range(rungs):
        tested = ~np.isnan(p[rung, above, below])  # other pairs do not count in the correction
        i, j = above[tested], below[tested]
        p[rung, i, j] = holm(p[rung, i, j])
    full = np.where(np.isnan(p), 1.0, p)
    diagonal = np.arange(k)
    gain[:, diagonal, diagonal] = 0.0
    mirrored = np.where(np.isnan(gain), -gain.transpose(0, 2, 1), gain)
    return Pairs(mirrored, np.minimum(full, full.transpose(0, 2, 1)))


def _difference(
    first: ImageScores, second: ImageScores, rungs: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
    """Return the differences on common images `(n, rungs)`, and their patients if known."""
    index = first.table.index.get_indexer(second.table.index)
    common = index[index >= 0]
    scores = first.table[rungs].to_numpy()[common]
    others = second.table[rungs].to_numpy()[index >= 0]
    difference = scores.astype(np.float64) - others.astype(np.float64)
    if first.patients is None:
        return difference, None
    owner = np.unique(first.patients[common], return_inverse=True)[1]
    return difference, owner


def places(worst: NDArray[np.float64], tested: Pairs) -> NDArray[np.intp]:
    """Return the place of each row at each rung, `(rungs, k)`: 1, 1, 3 if two share the first.

    Args:
        worst: worst-case score of each row, `(rungs, k)`, which orders the rows. A row with NaN was
            not scored there and has place 0.
        tested: the pairs of the same rows.
    """
    rungs, k = worst.shape
    placed = np.zeros((rungs, k), dtype=np.intp)
    for rung in range(rungs):
        order = np.argsort(-worst[rung], kind="stable")
        order = order[np.isfinite(worst[rung][order])]
        beats = tested.beats[rung][np.ix_(order, order)]
        first = 0
        for position in range(len(order)):
            if position and beats[:position, position:].all():
                first = position
            placed[rung, order[position]] = first + 1
    return placed
