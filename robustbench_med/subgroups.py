"""The scores of subgroups, such as each sex, age band, scanner or site, and how far they differ.

The score of an image is that of its board (`worst_case`). Each subgroup has the mean over its own
images with an interval by patient, and its difference from all other images whose subgroup is
known. The interval of a difference is combined from the intervals of the two means. Its p value is
that of `stats.label_permutation`, Holm-corrected at each radius over all subgroups of all columns.

Source: Zou and Donner, Statistics in Medicine 27, 2008 (interval of a difference from those of two
means, which for shares is Newcombe, Statistics in Medicine 17, 1998, method 10).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import SUBGROUP, Stored
from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.stats.label_permutation import two_sided_p
from robustbench_med.stats.paired_tests import holm
from robustbench_med.stats.patients import patient_numbers
from robustbench_med.worst_case import means, owners_of

FEWEST = 5  # patients; a smaller subgroup is not compared
RAREST = (
    5.0  # patients' worth of the rarer outcome; with fewer, an interval of Dice may be too narrow
)
WIDEST = 0.2  # half the width of an interval; a wider one says next to nothing

_TAIL = 0.025  # of each side of an interval


class Subgroup(NamedTuple):
    """One subgroup. Of scores and differences the first is that of clean images.

    Attributes:
        name: the name in the data.
        images: number of images.
        patients: number of patients; of images where patients are not known.
        scores: the mean score of its images at each rung.
        difference: this mean minus that of the other images whose subgroup is known; undefined if
            there is none or if either side has fewer than `FEWEST` patients.
        p: p value of no difference, Holm-corrected over all subgroups of a row; NaN where it is
            undefined.
        graded: whether its images have a Dice, and are not just right or wrong.
    """

    name: str
    images: int
    patients: int
    scores: tuple[Estimate, ...]
    difference: tuple[Estimate, ...]
    p: tuple[float, ...]
    graded: bool = False

    @property
    def small(self) -> bool:
        """Whether it has too few patients to be compared."""
        return self.patients < FEWEST

    def vague(self, rung: int) -> bool:
        """Whether the interval at a rung is too wide to say anything."""
        e = self.scores[rung]
        return bool(e.high - e.low > 2 * WIDEST)

    def rare(self, rung: int) -> bool:
        """Whether rare failures may be missing among its patients, so that its interval is narrow.

        The variance of a Dice near 1 lies in few failures. If hardly any is drawn, neither the
        spread nor the interval knows of them: tests/simulation_subgroups.py. Where images are right
        or wrong, the number of images bounds the interval.
        """
        value = self.scores[rung].value
        return self.graded and self.patients * min(value, 1 - value) < RAREST


class Grouping(NamedTuple):
    """The subgroups of one column.

    Attributes:
        column: the name of the column.
        subgroups: in the order of their names, see `group_order`.
        unknown: number of images whose subgroup is not known.
    """

    column: str
    subgroups: tuple[Subgroup, ...]
    unknown: int

    def worst(self, rung: int) -> Subgroup | None:
        """Return the subgroup with the lowest score, of those that have enough patients."""
        return min(self._known(rung), key=lambda group: group.scores[rung].value, default=None)

    def lowest(self, rung: int) -> Estimate:
        """Return the lowest true score of the subgroups, with an interval corrected for selection.

        The lowest mean of several is too low by chance, and its own interval is not one of the
        lowest true score. The lower end is the lowest of all lower ends, which needs no correction:
        it fails only if the interval of the truly lowest subgroup does. The upper end is the lowest
        of all upper ends, each moved outwards by Bonferroni's correction. Subgroups that are too
        small do not count; it is undefined without any.

        Source: Berger, Technometrics 24, 1982 (intersection-union, for the lower end).
        """
        scores = [group.scores[rung] for group in self._known(rung)]
        if not scores:
            return UNDEFINED
        quantile = NormalDist().inv_cdf
        wider = quantile(1 - _TAIL / len(scores)) / quantile(1 - _TAIL)
        value = min(score.value for score in scores)
        high = min(min(1.0, e.value + wider * (e.high - e.value)) for e in scores)
        return Estimate(value=value, low=min(e.low for e in scores), high=max(high, value))

    def _known(self, rung: int) -> list[Subgroup]:
        return [
            group
            for group in self.subgroups
            if not group.small and math.isfinite(group.scores[rung].value)
        ]


def columns_of(stored: Stored) -> list[str]:
    """Return the names of the columns of subgroups of a record."""
    return [
        str(name).removeprefix(SUBGROUP)
        for name in stored.samples.columns
        if str(name).startswith(SUBGROUP)
    ]


def membership(stored: Stored, column: str, images: pd.Index[str]) -> NDArray[np.character]:
    """Return the subgroup of images in a column of a record; "" if it is not known."""
    clean = stored.samples["eps"].to_numpy(dtype=np.float64) == 0.0  # one row per image
    ids, groups = stored.samples["sample"][clean], stored.samples[f"{SUBGROUP}{column}"][clean]
    # an image that is not in the record has no subgroup
    named = pd.Series(groups.to_numpy(dtype=object), index=ids.to_numpy()).reindex(images)
    return np.array([name if isinstance(name, str) else "" for name in named], dtype=np.str_)


def group_order(names: list[str]) -> list[str]:
    """Return names of subgroups in order: bands and numbers by value, others by letters.

    >>> group_order(["65 and over", "under 40", "40 to under 65"])
    ['under 40', '40 to under 65', '65 and over']
    """

    def key(name: str) -> tuple[float, str]:
        words = name.split()
        if words[:1] == ["under"]:
            return (-math.inf, name)
        try:
            return (float(words[0]), name)
        except (ValueError, IndexError):
            return (math.inf, name)

    return sorted(names, key=key)


def groupings(table: pd.DataFrame, stored: Stored) -> list[Grouping]:
    """Return the scores of all subgroups on a table of image scores.

    Args:
        table: a row for each image, a column for each rung, see `worst_case.score_table`.
        stored: a record with these images.
    """
    owners = owners_of(table, stored)
    number = patient_numbers(len(table), owners)
    made = []
    for column in columns_of(stored) if len(table) else []:
        groups = membership(stored, column, table.index)
        known = groups != ""
        names = group_order(sorted(set(groups[known].tolist())))
        subgroups = tuple(
            _subgroup(name, table[known], groups[known] == name, number[known], stored)
            for name in names
        )
        made.append(Grouping(column, subgroups, int((~known).sum())))
    return _corrected(made)


def _subgroup(
    name: str,
    table: pd.DataFrame,
    member: NDArray[np.bool_],
    number: NDArray[np.intp],
    stored: Stored,
) -> Subgroup:
    inside, outside = table[member], table[~member]
    scores, others = means(inside, stored, few=True), means(outside, stored, few=True)
    patients, rest = len(np.unique(number[member])), len(np.unique(number[~member]))
    rungs, graded = table.shape[1], bool((table.dtypes != np.bool_).any())
    if min(patients, rest) < FEWEST:
        nothing, undefined = (math.nan,) * rungs, (UNDEFINED,) * rungs
        return Subgroup(name, len(inside), patients, scores, undefined, nothing, graded)
    p_values = two_sided_p(
        table.to_numpy(dtype=np.float64), member, np.unique(number, return_inverse=True)[1]
    )
    differences = tuple(difference(*pair) for pair in zip(scores, others, strict=True))
    p = tuple(p_values.tolist())
    return Subgroup(name, len(inside), patients, scores, differences, p, graded)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Return the difference of two means with its interval, from the intervals of the means.

    The means are taken as independent. Where a patient has images in both, they are not, and the
    interval is then too wide.

    >>> difference(Estimate(value=0.5, low=0.4, high=0.6), Estimate(value=0.5, low=0.4, high=0.6))
    Estimate(value=0.0, low=-0.14142135623730948, high=0.14142135623730948)
    """
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value=value, low=value - below, high=value + above)


def _corrected(made: list[Grouping]) -> list[Grouping]:
    """Return groupings with p values corrected over all of them, at each rung.

    Two subgroups that make up a column are one comparison.
    """
    tested = [
        (place, index)
        for place, grouping in enumerate(made)
        for index, group in enumerate(grouping.subgroups)
        if not math.isnan(group.p[0]) and not (len(grouping.subgroups) == 2 and index == 1)
    ]
    if not tested:
        return made
    raw = np.array([made[place].subgroups[index].p for place, index in tested])
    corrected = dict(zip(tested, holm(raw.T).T.tolist(), strict=True))
    result = []
    for place, grouping in enumerate(made):
        pair = len(grouping.subgroups) == 2
        subgroups = tuple(
            group._replace(p=tuple(corrected[at]))
            if (at := (place, 0 if pair else index)) in corrected
            else group
            for index, group in enumerate(grouping.subgroups)
        )
        result.append(grouping._replace(subgroups=subgroups))
    return result
