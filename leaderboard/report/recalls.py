"""Compute recalls and directed flips at the frozen threshold under the worst of all attacks.

They depend on the called class alone. As in the metrics of a record, it does not matter whether a
detector also rejects the image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Stored
from robustbench_med.stats import Estimate
from robustbench_med.worst_case import lowest

from ..wording.threat_model import class_words
from .pooled_runs import Bools, Pool

Event = Callable[[NDArray[Any]], Bools]  # predictions or truths -> whether each counts


class PooledShare(NamedTuple):
    """A share of images when clean and at every radius.

    Attributes:
        name: its name in a criterion: sensitivity, recall[severe], flips_to_normal.
        title: its title in a table.
        n: number of images of which it is a share.
        estimates: the share when clean, then at each rung.
        counts: the number of images that count, likewise.
    """

    name: str
    title: str
    n: int
    estimates: tuple[Estimate, ...]
    counts: tuple[int, ...]


def recalls(pool: Pool) -> list[PooledShare]:
    """Return sensitivity, specificity, and the recall of each class or finding; none for masks.

    An image counts only if the call is right when clean and under every attack.
    """
    card = pool.card
    if card.task == "segmentation":
        return []
    if card.task == "multi_label":
        return [
            _recall(pool, f"recall[{name}]", f"Recall of {class_words(name)}", is_(1), is_(1), j)
            for j, name in enumerate(card.classes)
        ]
    two_sides, healthy = [], card.normal
    if healthy is not None:
        ill = "Sensitivity (disease called diseased)"
        well = "Specificity (healthy called healthy)"
        two_sides.append(_recall(pool, "sensitivity", ill, is_not(healthy), is_not(healthy)))
        two_sides.append(_recall(pool, "specificity", well, is_(healthy), is_(healthy)))
    return two_sides + [
        _recall(pool, f"recall[{name}]", f"Recall of {class_words(name)}", is_(k), is_(k))
        for k, name in enumerate(card.classes)
    ]


def is_(value: int) -> Event:
    """Return a function that tells whether each call is `value`."""
    return lambda predicted: predicted == value


def is_not(value: int) -> Event:
    """Return a function that tells whether each call differs from `value`."""
    return lambda predicted: (predicted != value) & (predicted >= 0)  # -1: unlabelled


def held_calls(
    pool: Pool, among: Event, event: Event, column: int | None = None
) -> tuple[Bools, pd.DataFrame]:
    """Return which images count, `(images,)`, and which calls hold under every attack.

    Args:
        pool: the runs.
        among: tells from the truths which images count.
        event: tells from the calls which ones hold.
        column: index of the finding; None for single labels.
    """
    worst = pool.worst(lambda run: event(values(run, "prediction", column)))
    there = pool.clean(lambda run: among(values(run, "truth", column)))
    return there.astype(bool), worst


def values(run: Stored, field: str, column: int | None) -> NDArray[Any]:
    """Return the truth or prediction in each row of a run's samples; for findings one column."""
    column_values = run.samples[field]
    if column is None:
        return column_values.to_numpy(dtype=np.int64)
    return np.array([row[column] for row in column_values], dtype=np.int64)


def _recall(
    pool: Pool, name: str, title: str, among: Event, event: Event, column: int | None = None
) -> PooledShare:
    there, worst = held_calls(pool, among, event, column)
    return pooled_share(name, title, worst[there], pool)


def pooled_share(
    name: str, title: str, table: pd.DataFrame, pool: Pool, *, as_loss: bool = False
) -> PooledShare:
    """Return the share of a table that is true at each level, or with `as_loss` false."""
    estimates = pool.means(table)
    count = table.to_numpy(dtype=bool).sum(0)
    counts = len(table) - count if as_loss else count
    if as_loss:
        estimates = tuple(map(complement, estimates))
    return PooledShare(name, title, len(table), estimates, tuple(int(count) for count in counts))


def complement(e: Estimate) -> Estimate:
    """Return 1 minus an estimate."""
    return Estimate(value=1 - e.value, low=1 - e.high, high=1 - e.low)


def directed_flips(pool: Pool) -> list[PooledShare]:
    """Return the share of images that flip from disease to healthy, and the other way.

    It is a share of the images that are called right when clean, under any attack of the pool. For
    findings, an image counts if a finding that is rightly called present is hidden, or one that is
    rightly called absent is planted. The list is empty for masks, and if the card names no healthy
    class.
    """
    card = pool.card
    findings = card.task == "multi_label"
    if card.task == "segmentation" or (card.normal is None and not findings):
        return []
    if findings:
        sides = (
            ("flips_to_normal", "A finding hidden (present → absent)", 1),
            ("flips_to_disease", "A finding planted (absent → present)", 0),
        )
        return [_findings(pool, *side) for side in sides]
    healthy = card.normal or 0
    return [
        _turned(pool, "flips_to_normal", "Disease → healthy", is_not(healthy), is_(healthy)),
        _turned(pool, "flips_to_disease", "Healthy → disease", is_(healthy), is_not(healthy)),
    ]


def _turned(pool: Pool, name: str, title: str, among: Event, turned: Event) -> PooledShare:
    truth, before = (
        pool.clean(partial(values, field=field, column=None)) for field in ("truth", "prediction")
    )
    eligible = among(truth) & (before == truth) & pool.attacked
    worst = pool.worst(lambda run: ~turned(values(run, "prediction", None)))
    return pooled_share(name, title, worst[eligible], pool, as_loss=True)


def _findings(pool: Pool, name: str, title: str, there: int) -> PooledShare:
    """Return the flips of findings whose truth is `there`; an image counts with one flip."""
    stands, right = [], np.zeros(len(pool.images), dtype=bool)
    for j in range(len(pool.card.classes)):
        truth, call = (
            pool.clean(partial(values, field=field, column=j)) for field in ("truth", "prediction")
        )
        before = (truth == there) & (call == there)
        _, worst = held_calls(pool, is_(there), is_(there), j)
        stands.append(worst | ~before[:, None])
        right |= before
    worst = lowest(stands)
    return pooled_share(name, title, worst[right & pool.attacked], pool, as_loss=True)


def region_dice(pool: Pool) -> list[PooledShare]:
    """Return the Dice of each region under the worst of all attacks, image by image."""
    if pool.card.task != "segmentation":
        return []
    pooled = []
    for j, name in enumerate(pool.card.parts):
        worst = pool.worst(partial(region, index=j))
        zero = (0,) * worst.shape[1]
        title = f"Dice of {class_words(name)}"
        pooled.append(PooledShare(f"dice[{name}]", title, len(worst), pool.means(worst), zero))
    return pooled


def region(run: Stored, index: int) -> NDArray[np.float64]:
    """Return the Dice of a region in each row of the samples."""
    return np.array([dice[index] for dice in run.samples["scores"]], dtype=np.float64)
