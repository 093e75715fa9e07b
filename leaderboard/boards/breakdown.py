"""Breakdown: the worst-case score of each class or region, and of each patient."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Stored
from robustbench_med.stats import Estimate
from robustbench_med.worst_case import lowest, means, on_rungs, region_table, rungs_of

from ..wording.text import DASH, number, plain
from ..wording.threat_model import class_words
from .board import Board, Row

_HARDEST = 5  # patients that are listed one by one


class Outcome(NamedTuple):
    """A class or region: its number of images, and its score when clean and at each radius."""

    label: str
    images: int
    cells: tuple[Estimate, ...]


class Patients(NamedTuple):
    """The worst-case scores of patients.

    Attributes:
        rows: what is counted, with its text for clean images and for each radius.
        hardest: the patients whose score falls most at the headline radius, in words.
    """

    total: int
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    hardest: tuple[str, ...]


def _counted(row: Row) -> list[Stored]:
    runs = {c: run for c, run in row.runs.items() if c not in row.oblivious}
    return [run for run in runs.values() if run.record.status == "ok"]


def by_class(board: Board, row: Row) -> list[Outcome]:
    """Return the worst-case score of each class, finding or region.

    For labels this is over the images of each class; for findings over the images that have the
    finding, so an image may count in several rows. For masks it is the lowest Dice of each region
    over the attacks, image by image.
    """
    runs = _counted(row)
    if not runs or not row.images:
        return []
    if board.dataset.task == "segmentation":
        if board.score.attacked:
            return []
        return [
            _outcome(board, class_words(name), _regions(board, row, runs, index), runs[0])
            for index, name in enumerate(board.dataset.parts)
        ]
    truth = runs[0].samples.drop_duplicates("sample").set_index("sample")["truth"]
    truths = truth.loc[row.image_scores.table.index]
    outcomes = []
    for index, name in enumerate(board.dataset.classes):
        has = np.array([_has(value, index) for value in truths], dtype=bool)
        if has.any():
            outcomes.append(_outcome(board, plain(name), row.image_scores.table[has], runs[0]))
    return outcomes


def _has(truth: Any, index: int) -> bool:  # noqa: ANN401 - a class id, or a list of findings
    return bool(truth[index]) if isinstance(truth, list | np.ndarray) else int(truth) == index


def _outcome(board: Board, label: str, table: pd.DataFrame, run: Stored) -> Outcome:
    cells = on_rungs(table, means(table, run), len(board.ladder))
    return Outcome(label, len(table), tuple(cells))


def _regions(board: Board, row: Row, runs: list[Stored], index: int) -> pd.DataFrame:
    """Return the lowest Dice of a region at each rung that is scored."""
    tables = [region_table(run, index, board.ladder) for run in runs]
    return lowest(tables, rungs_of(row.image_scores.table))


def by_patient(board: Board, row: Row) -> Patients | None:
    """Return the worst-case scores of patients; None if they are unknown or add no information.

    They add none if images are right or wrong and every patient has a single image.
    """
    table, owner = row.image_scores
    counted = board.score.kind == "percent"
    if owner is None or not len(table):
        return None
    names, patient = np.unique(owner, return_inverse=True)
    if counted and len(names) == len(table):
        return None
    images = np.bincount(patient)
    sums = np.zeros((len(names), len(board.ladder) + 1))
    # a radius at which the row is not scored stays undefined
    whole_ladder = table.astype(np.float64).reindex(columns=range(sums.shape[1]))
    np.add.at(sums, patient, whole_ladder.to_numpy())
    mean = sums / images[:, None]
    rows = (
        _counts(mean, "robust" if board.score.attacked else "right") if counted else _spread(mean)
    )
    whole = [(label, cells if board.score.clean else cells[1:]) for label, cells in rows]
    return Patients(len(names), tuple(whole), _hardest(board, mean, images))


def _counts(mean: NDArray[np.float64], word: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    kinds = {
        f"every image {word}": mean == 1,
        f"some images {word}": (mean > 0) & (mean < 1),
        f"no image {word}": mean == 0,
    }
    known = [not np.isnan(column).any() for column in mean.T]
    rows = []
    for name, hit in kinds.items():
        counts = zip(hit.sum(axis=0).tolist(), known, strict=True)
        rows.append((name, tuple(str(count) if scored else DASH for count, scored in counts)))
    return tuple(rows)


def _spread(mean: NDArray[np.float64]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    levels = {"worst patient": 0.0, "median": 0.5, "best patient": 1.0}
    return tuple(
        (name, tuple(number(v, "unit") for v in np.quantile(mean, q, axis=0)))
        for name, q in levels.items()
    )


def _hardest(board: Board, mean: NDArray[np.float64], images: NDArray[np.intp]) -> tuple[str, ...]:
    kind = board.score.kind
    clean, worst = mean[:, 0], mean[:, board.headline + 1]
    order = [i for i in np.argsort(worst - clean, kind="stable")[:_HARDEST] if worst[i] < clean[i]]
    end = " %" if kind == "percent" else ""

    def before(i: int) -> str:
        return f"{number(clean[i], kind)} → " if board.score.clean else ""

    return tuple(
        f"no. {i + 1} ({images[i]} image{'' if images[i] == 1 else 's'}): "
        f"{before(i)}{number(worst[i], kind)}{end}"
        for i in order
    )
