"""The worst case of each image over attacks, and its mean over images with the interval.

This module defines which number of a samples table is the score of an image. Boards, the report
and `evaluate` all use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Stored
from robustbench_med.cards import DatasetCard
from robustbench_med.errors import ResultsError, SpecError
from robustbench_med.spec import Spec, parse
from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.stats.intervals import cluster_mean, interval
from robustbench_med.stats.patients import rarer_patients, resampled_patients, resamples

Reader = Callable[[pd.DataFrame], NDArray[Any]]


class ImageScore(NamedTuple):
    """The score of an image: 1 is best, 0 is worst.

    Attributes:
        metric: name of the score, as in the CSV.
        values: returns the score of each row of a samples table; booleans are right or wrong.
        robust: returns for each row of a samples table whether the attacker misses the goal.
        attacked: whether only attacked images count.
    """

    metric: str
    values: Reader
    robust: Reader
    attacked: bool = False


def image_score(card: DatasetCard, objective: str) -> ImageScore:
    """Return the score of an image for a dataset and an objective."""
    if card.task != "segmentation":
        return ACCURACY if objective == "untargeted" else GOAL_NOT_REACHED
    goal = parse_objective(objective)
    if goal.name == "targeted":
        return TARGET_NOT_DRAWN
    if goal.name == "region" and goal.parameters.get("name") in card.parts:
        return _region_score(card, str(goal.parameters["name"]))
    return DICE


def parse_objective(objective: str) -> Spec:
    """Return an objective as name and parameters; one that cannot be parsed has the empty name."""
    try:
        return parse(objective)
    except SpecError:
        return Spec("", {})


def _correct(samples: pd.DataFrame) -> NDArray[Any]:
    return samples["correct"].to_numpy(dtype=bool)


def _goal_not_reached(samples: pd.DataFrame) -> NDArray[Any]:
    return ~samples["success"].to_numpy(dtype=bool)


def _attacked_and_robust(samples: pd.DataFrame) -> NDArray[Any]:
    robust: NDArray[Any] = samples["attacked"].to_numpy(dtype=bool) & _goal_not_reached(samples)
    return robust


def _dice(samples: pd.DataFrame) -> NDArray[Any]:
    return samples["correct"].to_numpy(dtype=np.float64)


def _target_not_drawn(samples: pd.DataFrame) -> NDArray[Any]:
    target_dice: NDArray[Any] = samples["target_dice"].to_numpy(dtype=np.float64)
    return 1 - target_dice


def _region_score(card: DatasetCard, name: str) -> ImageScore:
    region = list(card.parts).index(name)

    def values(samples: pd.DataFrame) -> NDArray[Any]:
        return np.array([scores[region] for scores in samples["scores"]], dtype=np.float64)

    return ImageScore(f"dice[{name}]", values, _attacked_and_robust)


ACCURACY = ImageScore("accuracy", _correct, _correct)
# any other objective on labels: the attacked images on which the goal is not reached; images on
# which the clean image reaches it are not attacked
GOAL_NOT_REACHED = ImageScore(
    "1-attack_success", _goal_not_reached, _goal_not_reached, attacked=True
)
DICE = ImageScore("dice", _dice, _attacked_and_robust)
TARGET_NOT_DRAWN = ImageScore(
    "1-target_dice", _target_not_drawn, _attacked_and_robust, attacked=True
)


def score_table(stored: Stored, ladder: Sequence[float] | None = None) -> pd.DataFrame:
    """Return the score of each image: one row per image, one column per rung (0 = clean).

    Scores are booleans where an image is right or wrong, and numbers where it has a Dice. For
    objectives other than untargeted, only the attacked images have a row.

    Args:
        stored: the record.
        ladder: the radii that the columns are numbered by, 1 = the first. The table has a column
            for each radius of the record. By default the record's own ladder.

    Raises:
        ResultsError: the samples table lacks an (image, rung) pair or has one twice.
    """
    score = _score(stored)
    table = image_table(stored, score.values(stored.samples), attacked=score.attacked)
    return on_ladder(table, stored, ladder)


def standing_table(stored: Stored, ladder: Sequence[float] | None = None) -> pd.DataFrame:
    """Return whether each image is robust: one row per image, one column per rung (0 = clean).

    Args:
        stored: the record.
        ladder: as `score_table`.

    Raises:
        ResultsError: as `score_table`.
    """
    score = _score(stored)
    table = image_table(stored, score.robust(stored.samples), attacked=score.attacked)
    return on_ladder(table, stored, ladder)


def on_ladder(table: pd.DataFrame, stored: Stored, ladder: Sequence[float] | None) -> pd.DataFrame:
    """Return a table of a record with its columns numbered by another ladder with its radii."""
    record_ladder = stored.record.case.ladder
    if ladder is None or tuple(ladder) == record_ladder:
        return table
    return table.set_axis([0, *(rung_of(eps, ladder) + 1 for eps in record_ladder)], axis=1)


def rung_of(eps: float, ladder: Sequence[float]) -> int:
    """Return the index of a radius on a ladder, from 0; -1 if the ladder does not have it.

    >>> rung_of(2 / 255, (1 / 255, 2 / 255)), rung_of(0.5, (0.1,))
    (1, -1)
    """
    same = (i for i, radius in enumerate(ladder) if math.isclose(radius, eps, rel_tol=1e-6))
    return next(same, -1)


def rung_within(stored: Stored, eps: float) -> int:
    """Return the column of the largest radius of a record up to `eps`; 0 is clean."""
    return sum(radius <= eps * (1 + 1e-6) for radius in stored.record.case.ladder)


def worst_at(records: Sequence[Stored], eps: float) -> pd.DataFrame:
    """Return the score of each clean image (column 0) and the lowest one up to a radius (1)."""
    tables = [score_table(stored)[[0, rung_within(stored, eps)]] for stored in records]
    return lowest([table.set_axis([0, 1], axis=1) for table in tables])


def success_at(stored: Stored, eps: float) -> pd.Series[bool]:
    """Return on which of the attacked images the attack succeeds at a radius, by their ids."""
    rung = (0.0, *stored.record.case.ladder)[rung_within(stored, eps)]
    rows = stored.samples[(stored.samples["eps"] == rung) & stored.samples["attacked"]]
    return rows.set_index("sample")["success"]


def score_table_stands(stored: Stored) -> bool:
    """Whether the score table equals the standing table: an image is right or wrong."""
    score = _score(stored)
    return score.values is score.robust


def _score(stored: Stored) -> ImageScore:
    return image_score(stored.record.dataset_card, stored.record.case.objective)


def image_table(stored: Stored, values: NDArray[Any], *, attacked: bool = False) -> pd.DataFrame:
    """Return values of the rows of a samples table with one row per image and one column per rung.

    Args:
        stored: the record of the samples.
        values: `(rows,)` in the order of the samples table.
        attacked: whether only images that are attacked at every rung have a row.

    Raises:
        ResultsError: as `score_table`.
    """
    levels = np.array((0.0, *stored.record.case.ladder))
    samples = stored.samples
    eps = samples["eps"].to_numpy(dtype=np.float64)
    rung = np.abs(eps[:, None] - levels).argmin(axis=1)
    owner, ids = pd.factorize(samples["sample"], sort=True)
    table = np.zeros((len(ids), len(levels)), dtype=values.dtype)
    table[owner, rung] = values
    filled = np.zeros(table.shape, dtype=bool)
    filled[owner, rung] = True
    if len(eps) != table.size or not filled.all():
        raise ResultsError(
            f"expected one row per (sample, rung) in samples of record {stored.record.case_id}, "
            f"got {len(eps)} rows for {table.size} pairs: run that case again with --force"
        )
    frame = pd.DataFrame(table, index=ids)
    if not attacked:
        return frame
    always_attacked = samples.groupby("sample")["attacked"].all()
    return frame[always_attacked.loc[ids].to_numpy(dtype=bool)]


def lowest(
    tables: list[pd.DataFrame], rungs: Sequence[int] | None = None, *, clean: bool = True
) -> pd.DataFrame:
    """Return the worst score of each image over tables: one row per image, one column per rung.

    The result has the images that all tables have. A score is the lowest at that rung under any
    attack with that rung, and never above the score of the clean image. For booleans this is
    whether the image is right when clean and under every attack.

    Args:
        tables: one table per attack.
        rungs: columns of the result, 0 first; by default those that all tables have.
        clean: whether the score of the clean image is an upper bound.
    """
    if not tables:
        return pd.DataFrame(dtype=bool)
    if rungs is None:
        rungs = [rung for rung in rungs_of(tables[0]) if all(rung in t.columns for t in tables)]
    first = tables[0].index
    # the fast path: attacks nearly always share one image index
    if all(table.index.equals(first) for table in tables):
        common, aligned = first, tables
    else:
        common = pd.Index(sorted(set.intersection(*(set(table.index) for table in tables))))
        aligned = [table.loc[common] for table in tables]
    minima = [
        np.minimum.reduce([table[rung].to_numpy() for table in aligned if rung in table.columns])
        for rung in rungs
    ]
    worst = np.stack(minima, axis=1) if minima else np.zeros((len(common), 0), dtype=bool)
    bounded = np.minimum(worst, worst[:, :1]) if clean and minima else worst
    return pd.DataFrame(bounded, index=common, columns=pd.Index(rungs))


def rungs_of(table: pd.DataFrame) -> list[int]:
    """Return the rungs of a table's columns; 0 is the clean image."""
    return [int(rung) for rung in table.columns]


def on_rungs(table: pd.DataFrame, estimates: Sequence[Estimate], rungs: int) -> list[Estimate]:
    """Return the `means` of a table for the clean image and each of `rungs` radii.

    They are undefined where the table has no such column.
    """
    known = dict(zip(rungs_of(table), estimates, strict=True))
    return [known.get(rung, UNDEFINED) for rung in range(rungs + 1)]


def means(table: pd.DataFrame, run: Stored, *, few: bool = False) -> tuple[Estimate, ...]:
    """Return the mean of each column with its interval, by patient if `run` states patients.

    Means of booleans have a Wilson interval; means of numbers have a bootstrap interval, with the
    same resamples at every rung.

    Args:
        table: a row for each image, a column for each rung.
        run: a record with these images.
        few: whether the interval of numbers allows for rare failures that few patients may not
            hold, see `rarer` of `stats.intervals.interval`; subgroups are so few.
    """
    values = table.to_numpy()
    rungs = range(values.shape[1])
    clusters = owners_of(table, run)
    if values.dtype == np.bool_:
        return tuple(cluster_mean(values[:, r].astype(np.float64), clusters) for r in rungs)
    if not len(values):
        return tuple(UNDEFINED for _ in rungs)
    weights = resamples(len(values), clusters)
    repeats = (weights @ values) / weights.sum(axis=1, keepdims=True)
    n_patients = resampled_patients(weights)
    return tuple(
        interval(
            float(values[:, r].mean()),
            repeats[:, r],
            n_patients=n_patients,
            rarer=rarer_patients(values[:, r], clusters) if few else None,
        )
        for r in rungs
    )


def owners_of(table: pd.DataFrame, run: Stored) -> NDArray[np.character] | None:
    """Return the patient of each image of `table`; None if `run` does not state them."""
    if run.record.patients is None:
        return None
    clean = run.samples["eps"].to_numpy(dtype=np.float64) == 0.0  # one row per image
    ids, owner = run.samples["sample"][clean], run.samples["patient"][clean].to_numpy(dtype=object)
    patients: NDArray[np.character] = owner[pd.Index(ids).get_indexer(table.index)].astype(np.str_)
    return patients


def region_table(stored: Stored, region: int, ladder: Sequence[float]) -> pd.DataFrame:
    """Return the Dice of a region: one row per image, one column per rung.

    Args:
        stored: the record.
        region: index of the region in the card.
        ladder: as `score_table`.
    """
    values = np.array([scores[region] for scores in stored.samples["scores"]], dtype=np.float64)
    return on_ladder(image_table(stored, values, attacked=False), stored, ladder)
