"""Calls: what the frozen threshold still finds under the worst of all attacks, image by image.

Recalls and directed flips are of the class called; whether a detector rejects the image as well is
not counted here, as it is not in the metrics of a record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Estimate, Stored
from robustbench_med.cards import DatasetCard

from ..board import Row
from ..objective import called
from ..rank import knowing
from ..worst_case import image_table, lowest, means

Bools = NDArray[np.bool_]
Event = Callable[[NDArray[Any]], Bools]  # of predictions, one a row of the samples table


class Kept(NamedTuple):
    """A share of images at every radius, the clean one first.

    Attributes:
        name: as a criterion names it: sensitivity, recall[severe], flips_to_normal.
        title: what a table calls it.
        n: images it is a share of.
        estimates: clean, then a rung each.
        counts: images counted at each.
    """

    name: str
    title: str
    n: int
    estimates: tuple[Estimate, ...]
    counts: tuple[int, ...]


def valid_runs(row: Row) -> list[Stored]:
    """Return the runs that a worst case is taken over; none where one of all is invalid."""
    if any(run.record.status != "ok" for run in row.runs.values()):
        return []
    return list(knowing(row.runs).values())


def recalls(row: Row, card: DatasetCard) -> list[Kept]:
    """Return sensitivity and specificity, and the recall of each class or finding; of masks none.

    An image counts as found only if it is called so when clean and under every attack.
    """
    runs = valid_runs(row)
    if not runs or card.task == "segmentation":
        return []
    if card.task == "multi_label":
        return [
            _recall(runs, f"recall[{name}]", f"Recall of {called(name)}", _is(1), _is(1), j)
            for j, name in enumerate(card.classes)
        ]
    found, healthy = [], card.normal
    if healthy is not None:
        ill = "Sensitivity (disease called diseased)"
        well = "Specificity (healthy called healthy)"
        found.append(_recall(runs, "sensitivity", ill, _other(healthy), _other(healthy)))
        found.append(_recall(runs, "specificity", well, _is(healthy), _is(healthy)))
    return found + [
        _recall(runs, f"recall[{name}]", f"Recall of {called(name)}", _is(k), _is(k))
        for k, name in enumerate(card.classes)
    ]


def _is(value: int) -> Event:
    return lambda found: found == value


def _other(value: int) -> Event:
    return lambda found: (found != value) & (found >= 0)  # -1: unlabelled


def _recall(
    runs: list[Stored], name: str, title: str, among: Event, event: Event, column: int | None = None
) -> Kept:
    worst = lowest([image_table(run, event(_values(run, "prediction", column))) for run in runs])
    there = image_table(runs[0], among(_values(runs[0], "truth", column)))[0]
    return _kept(name, title, worst[there.loc[worst.index].to_numpy(dtype=bool)], runs[0])


def _values(run: Stored, field: str, column: int | None) -> NDArray[Any]:
    values = run.samples[field]
    if column is None:
        return values.to_numpy(dtype=np.int64)
    return np.array([one[column] for one in values], dtype=np.int64)


def _kept(name: str, title: str, table: pd.DataFrame, run: Stored, *, lost: bool = False) -> Kept:
    estimates = means(table, run)
    held = table.to_numpy(dtype=bool).sum(0)
    counts = len(table) - held if lost else held
    if lost:
        estimates = tuple(
            Estimate(value=1 - e.value, low=1 - e.high, high=1 - e.low) for e in estimates
        )
    return Kept(name, title, len(table), estimates, tuple(int(count) for count in counts))


def directed_flips(row: Row, card: DatasetCard) -> list[Kept]:
    """Return how many images flip from disease to healthy, and how many the other way.

    Of the images called right when clean, under any attack of the row. For findings: images in
    which a finding rightly called present is hidden, or one rightly called absent is planted. None
    for masks, and where the card names no healthy class.
    """
    runs = valid_runs(row)
    findings = card.task == "multi_label"
    if not runs or card.task == "segmentation" or (card.normal is None and not findings):
        return []
    if findings:
        sides = (
            ("flips_to_normal", "A finding hidden (present → absent)", 1),
            ("flips_to_disease", "A finding planted (absent → present)", 0),
        )
        return [_findings(runs, card, *side) for side in sides]
    healthy = card.normal or 0
    return [
        _turned(runs, "flips_to_normal", "Disease → healthy", _other(healthy), _is(healthy)),
        _turned(runs, "flips_to_disease", "Healthy → disease", _is(healthy), _other(healthy)),
    ]


def _turned(runs: list[Stored], name: str, title: str, among: Event, turned: Event) -> Kept:
    truth, clean = (_values(runs[0], field, None) for field in ("truth", "prediction"))
    eligible = image_table(runs[0], among(truth) & (clean == truth) & _attacked(runs[0]))[0]
    worst = lowest([image_table(run, ~turned(_values(run, "prediction", None))) for run in runs])
    kept = worst[eligible.loc[worst.index].to_numpy(dtype=bool)]
    return _kept(name, title, kept, runs[0], lost=True)


def _attacked(run: Stored) -> Bools:
    found: Bools = run.samples["attacked"].to_numpy(dtype=bool)
    return found


def _findings(runs: list[Stored], card: DatasetCard, name: str, title: str, there: int) -> Kept:
    """Return the flips of findings whose truth is `there`; one is enough for an image to count."""
    held, eligible = [], None
    for run in runs:
        stands, right = None, None
        for j in range(len(card.classes)):
            as_is = image_table(run, _values(run, "prediction", j) == there)
            known = image_table(run, _values(run, "truth", j) == there)
            before = known[[0]].to_numpy(dtype=bool) & as_is[[0]].to_numpy(dtype=bool)
            kept = as_is | ~before
            stands = kept if stands is None else stands & kept
            right = before if right is None else right | before
        assert stands is not None and right is not None  # noqa: S101, PT018 - a card has classes
        attacked = image_table(run, _attacked(run))[0].to_numpy(dtype=bool)
        held.append(stands)
        eligible = pd.Series(right[:, 0] & attacked, index=stands.index)
    assert eligible is not None  # noqa: S101 - there are runs
    worst = lowest(held)
    kept = worst[eligible.loc[worst.index].to_numpy(dtype=bool)]
    return _kept(name, title, kept, runs[0], lost=True)


def region_dice(row: Row, card: DatasetCard) -> list[Kept]:
    """Return the Dice of each region under the worst of all attacks, image by image."""
    runs = valid_runs(row)
    if not runs or card.task != "segmentation":
        return []
    found = []
    for j, name in enumerate(card.parts):
        tables = [
            image_table(run, np.array([s[j] for s in run.samples["scores"]], dtype=np.float64))
            for run in runs
        ]
        worst = lowest(tables)
        zero = (0,) * worst.shape[1]
        title = f"Dice of {called(name)}"
        found.append(Kept(f"dice[{name}]", title, len(worst), means(worst, runs[0]), zero))
    return found
