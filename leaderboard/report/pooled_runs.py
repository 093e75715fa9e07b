"""Pool the runs of one model on the same images over boards, ladders and objectives. Pure.

A worst case over all attacks must not depend on how the runs are split over boards: two attacks
with different goals, or on two ladders with a common radius, act on the same images. Each image
counts with the worst result of all runs that attacked it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import DatasetCard
from robustbench_med.stats import Estimate
from robustbench_med.worst_case import image_table, lowest, means, owners_of

from ..boards.board import Row
from ..boards.standing import informed_runs
from .model_boards import ModelBoard

Bools = NDArray[np.bool_]
Reader = Callable[[Stored], NDArray[Any]]  # run -> one value for each row of its samples table


class Pool(NamedTuple):
    """Runs of one model on the same images.

    Attributes:
        runs: valid runs of attackers who know the defense; the first has all the images.
        images: the images of the worst case; a run without an image does not change its result.
        levels: radii, 0 (the clean image) first; a run counts at the radii of its ladder.
    """

    runs: tuple[Stored, ...]
    images: pd.Index[Any]
    levels: tuple[float, ...]

    @property
    def home(self) -> Stored:
        """A run with all the images."""
        return self.runs[0]

    @property
    def card(self) -> DatasetCard:
        """The card of the dataset."""
        return self.home.record.dataset_card

    @property
    def ids(self) -> tuple[str, ...]:
        """The case ids of the runs."""
        return tuple(run.record.case_id for run in self.runs)

    @property
    def owners(self) -> NDArray[np.character] | None:
        """The patient of each image; None if patients are not known."""
        return owners_of(pd.DataFrame(index=self.images), self.home)

    def fit(self, run: Stored, table: pd.DataFrame) -> pd.DataFrame:
        """Align a run's table with the pool's images and radii; 1, the best, if not attacked."""
        levels = (0.0, *run.record.case.ladder)
        aligned = np.ones((len(self.images), len(self.levels)), dtype=table.to_numpy().dtype)
        at = self.images.get_indexer(table.index)
        values = table.to_numpy()
        for column, level in enumerate(self.levels):
            if (rung := rung_of(level, levels)) is not None:
                aligned[at[at >= 0], column] = values[at >= 0, rung]
        return pd.DataFrame(aligned, index=self.images)

    def worst(self, values: Reader) -> pd.DataFrame:
        """Return the lowest value over the runs: a row for each image, a column for each level."""
        tables = [self.fit(run, image_table(run, values(run))) for run in self.runs]
        return lowest(tables)

    def clean(self, values: Reader) -> NDArray[Any]:
        """Return the value of each clean image, `(images,)`."""
        table = image_table(self.home, values(self.home))
        first: NDArray[Any] = table[0].loc[self.images].to_numpy()
        return first

    @property
    def attacked(self) -> Bools:
        """Whether any run attacked each image, `(images,)`."""
        every = [self.fit(run, ~image_table(run, _attacked(run)))[0] for run in self.runs]
        attacked: Bools = ~np.logical_and.reduce(
            [untouched.to_numpy(dtype=bool) for untouched in every]
        )
        return attacked

    def means(self, table: pd.DataFrame) -> tuple[Estimate, ...]:
        """Return the mean of each column with its interval."""
        return means(table, self.home)

    def covering(self) -> list[Stored]:
        """Return the runs that attacked every image at every level."""
        return [
            run
            for run in self.runs
            if self.images.isin(image_ids(run)).all()
            and all(rung_of(e, (0.0, *run.record.case.ladder)) is not None for e in self.levels)
        ]


def _attacked(run: Stored) -> Bools:
    attacked: Bools = run.samples["attacked"].to_numpy(dtype=bool)
    return attacked


def rung_of(eps: float, levels: Iterable[float]) -> int | None:
    """Return the index of a radius in the levels; None if it is not one of them.

    >>> rung_of(2 / 255, (0.0, 1 / 255, 2 / 255)), rung_of(0.5, (0.0,))
    (2, None)
    """
    same = (i for i, e in enumerate(levels) if math.isclose(e, eps, rel_tol=1e-6))
    return next(same, None)


def image_ids(run: Stored) -> pd.Index[Any]:
    """Return the images of a run, sorted."""
    ids: pd.Index[Any] = pd.Index(pd.factorize(run.samples["sample"], sort=True)[1])
    return ids


def valid_runs(row: Row) -> list[Stored]:
    """Return the runs that the worst case covers; an empty list if any run is invalid."""
    if any(run.record.status != "ok" for run in row.runs.values()):
        return []
    return list(informed_runs(row.runs).values())


def alike(case: Case) -> tuple[object, ...]:
    """Return a key that is equal for runs that can be pooled: all but attack, goal and ladder."""
    judged = (case.victim_sha256, case.operating_point, case.draws)
    bare = case.defense == "none"  # then only an attack or a budget uses training images
    shield = (case.defense, case.defense_version, "" if bare else case.train_sha256)
    touched = tuple(sorted(case.channels.items()))
    change = (case.threat, case.norm, case.budget, touched)
    return (case.dataset, case.data_sha256, case.split, *judged, *shield, *change)


def pools(runs: list[Stored], levels: tuple[float, ...], *, largest: bool = False) -> list[Pool]:
    """Return a pool for each set of images among runs that are `alike`.

    Args:
        runs: valid runs.
        levels: radii, 0 first.
        largest: leave out sets that are a part of another one.
    """
    sets: dict[tuple[str, ...], list[Stored]] = {}
    for run in runs:
        sets.setdefault(tuple(map(str, image_ids(run))), []).append(run)
    pooled = []
    for images, same_images in sets.items():
        if largest and any(set(images) < set(larger) for larger in sets):
            continue
        index = image_ids(same_images[0])
        overlapping = [r for r in runs if r not in same_images and index.isin(image_ids(r)).any()]
        pooled.append(Pool((*same_images, *overlapping), index, levels))
    return pooled


def board_pool(model_board: ModelBoard, model_boards: Iterable[ModelBoard]) -> Pool | None:
    """Return the runs of a board and those with other goals on its images; None if it has none.

    Args:
        model_board: the board.
        model_boards: all boards of the model.
    """
    own_runs = valid_runs(model_board.row)
    if not own_runs:
        return None
    images = image_ids(own_runs[0])
    for run in own_runs[1:]:
        images = images[images.isin(image_ids(run))]
    key = alike(own_runs[0].record.case)
    others = [
        run
        for other_board in model_boards
        if other_board.anchor != model_board.anchor
        for run in valid_runs(other_board.row)
        if alike(run.record.case) == key and images.isin(image_ids(run)).any()
    ]
    return Pool((*own_runs, *others), images, (0.0, *model_board.board.ladder))
