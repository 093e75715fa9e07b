"""The worst case of each image over attacks, and its mean over images with the interval.

The one place that knows which number of a samples table is the score of an image: boards, the
report and `evaluate` all count by it.
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
from robustbench_med.stats.patients import resampled_patients, resamples

Reader = Callable[[pd.DataFrame], NDArray[Any]]


class ImageScore(NamedTuple):
    """What is counted of each image: 1 is best, 0 worst.

    Attributes:
        metric: its name, as the CSV states it.
        values: reads it off a samples table, one a row; the mean of truth values is a share.
        robust: reads off a samples table whether the attacker has not reached the goal.
        attacked: whether only images attacked count.
    """

    metric: str
    values: Reader
    robust: Reader
    attacked: bool = False


def image_score(card: DatasetCard, objective: str) -> ImageScore:
    """Return what is counted of each image of a dataset under an objective."""
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
    place = list(card.parts).index(name)

    def values(samples: pd.DataFrame) -> NDArray[Any]:
        return np.array([scores[place] for scores in samples["scores"]], dtype=np.float64)

    return ImageScore(f"dice[{name}]", values, _attacked_and_robust)


ACCURACY = ImageScore("accuracy", _correct, _correct)
# any other objective on labels: of the images attacked, those on which the goal is not reached;
# only images on which it is not reached when clean are attacked
GOAL_NOT_REACHED = ImageScore(
    "1-attack_success", _goal_not_reached, _goal_not_reached, attacked=True
)
DICE = ImageScore("dice", _dice, _attacked_and_robust)
TARGET_NOT_DRAWN = ImageScore(
    "1-target_dice", _target_not_drawn, _attacked_and_robust, attacked=True
)


def score_table(stored: Stored, ladder: Sequence[float] | None = None) -> pd.DataFrame:
    """Return the score of each image: a row an image, a column a rung (0 = clean).

    Truth values where an image is right or wrong, numbers where it has a Dice; of the images
    attacked alone where the objective has an aim of its own.

    Args:
        stored: the record.
        ladder: radii the columns are counted on, 1 the first; a record has a column for each of
            its own radii. By default its own ladder.

    Raises:
        ResultsError: the samples table lacks an (image, rung) pair or has one twice.
    """
    score = _score(stored)
    table = image_table(stored, score.values(stored.samples), attacked=score.attacked)
    return on_ladder(table, stored, ladder)


def standing_table(stored: Stored, ladder: Sequence[float] | None = None) -> pd.DataFrame:
    """Return who stands, right and not broken: a row an image, a column a rung (0 = clean).

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
    """Return a table of a record with its columns counted on another ladder that has its radii."""
    own = stored.record.case.ladder
    if ladder is None or tuple(ladder) == own:
        return table
    return table.set_axis([0, *(rung_of(eps, ladder) + 1 for eps in own)], axis=1)


def rung_of(eps: float, ladder: Sequence[float]) -> int:
    """Return the place of a radius on a ladder that has it, from 0; -1 where it has not.

    >>> rung_of(2 / 255, (1 / 255, 2 / 255)), rung_of(0.5, (0.1,))
    (1, -1)
    """
    same = (i for i, one in enumerate(ladder) if math.isclose(one, eps, rel_tol=1e-6))
    return next(same, -1)


def score_table_stands(stored: Stored) -> bool:
    """Whether the score table is the standing table: an image is right or wrong."""
    score = _score(stored)
    return score.values is score.robust


def _score(stored: Stored) -> ImageScore:
    return image_score(stored.record.dataset_card, stored.record.case.objective)


def image_table(stored: Stored, values: NDArray[Any], *, attacked: bool = False) -> pd.DataFrame:
    """Return `values`, one a row of the samples table, as a row an image and a column a rung.

    Args:
        stored: the record the samples are of.
        values: `(rows,)` in the order of the samples table.
        attacked: whether only images attacked at every rung are kept.

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
            f"expected one row a (sample, rung) in samples of record {stored.record.case_id}, got "
            f"{len(eps)} rows for {table.size} pairs: run that case again with --force"
        )
    found = pd.DataFrame(table, index=ids)
    if not attacked:
        return found
    kept = samples.groupby("sample")["attacked"].all()
    return found[kept.loc[ids].to_numpy(dtype=bool)]


def lowest(
    tables: list[pd.DataFrame], rungs: Sequence[int] | None = None, *, clean: bool = True
) -> pd.DataFrame:
    """Return the worst of each image over all `tables`: a row an image, a column a rung.

    Of the images common to all: the lowest value at that rung under every attack that has it, never
    above that of the clean image. Of truth values: whether it stands against all and was right when
    clean.

    Args:
        tables: one table an attack.
        rungs: columns of the result, 0 first; by default those that all tables have.
        clean: whether the clean image bounds it.
    """
    if not tables:
        return pd.DataFrame(dtype=bool)
    if rungs is None:
        rungs = [rung for rung in rungs_of(tables[0]) if all(rung in t.columns for t in tables)]
    first = tables[0].index
    # the fast path: attacks nearly always share one image index
    if all(table.index.equals(first) for table in tables):
        common, kept = first, tables
    else:
        common = pd.Index(sorted(set.intersection(*(set(table.index) for table in tables))))
        kept = [table.loc[common] for table in tables]
    each = [
        np.minimum.reduce([table[rung].to_numpy() for table in kept if rung in table.columns])
        for rung in rungs
    ]
    worst = np.stack(each, axis=1) if each else np.zeros((len(common), 0), dtype=bool)
    bounded = np.minimum(worst, worst[:, :1]) if clean and each else worst
    return pd.DataFrame(bounded, index=common, columns=pd.Index(rungs))


def rungs_of(table: pd.DataFrame) -> list[int]:
    """Return the rungs that a table has a column of, 0 the clean image."""
    return [int(rung) for rung in table.columns]


def on_rungs(table: pd.DataFrame, estimates: Sequence[Estimate], rungs: int) -> list[Estimate]:
    """Return what `means` says of a table for the clean image and each of `rungs` radii.

    Undefined where the table has no such column.
    """
    known = dict(zip(rungs_of(table), estimates, strict=True))
    return [known.get(rung, UNDEFINED) for rung in range(rungs + 1)]


def means(table: pd.DataFrame, run: Stored) -> tuple[Estimate, ...]:
    """Return the mean of each column with its interval, by patient where `run` knows patients.

    Shares have a Wilson interval, means of numbers that of their bootstrap, with the same resamples
    at every rung.
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
        interval(float(values[:, r].mean()), repeats[:, r], n_patients=n_patients) for r in rungs
    )


def owners_of(table: pd.DataFrame, run: Stored) -> NDArray[np.character] | None:
    """Return the patient of each image of `table`; None where `run` does not know them."""
    if run.record.patients is None:
        return None
    clean = run.samples["eps"].to_numpy(dtype=np.float64) == 0.0  # a row an image
    ids, owner = run.samples["sample"][clean], run.samples["patient"][clean].to_numpy(dtype=object)
    found: NDArray[np.character] = owner[pd.Index(ids).get_indexer(table.index)].astype(np.str_)
    return found


def region_table(stored: Stored, place: int, ladder: Sequence[float]) -> pd.DataFrame:
    """Return the Dice of the region at `place` of the card: a row an image, a column a rung.

    Args:
        stored: the record.
        place: of the region.
        ladder: as `score_table`.
    """
    values = np.array([scores[place] for scores in stored.samples["scores"]], dtype=np.float64)
    return on_ladder(image_table(stored, values, attacked=False), stored, ladder)
