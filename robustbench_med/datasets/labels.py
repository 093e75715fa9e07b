"""Read stored labels (class ids, findings or one-hot rows), and refuse ambiguous ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_med.datasets.codes import IGNORED, UNLABELLED
from robustbench_med.errors import DataError

_EXACT = 2**53  # float64 holds every whole number up to this one
TORCH_IGNORED = -100  # torch's losses ignore this label by default


def integers(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Return bool, integer or whole float values as integers; torch's -100 becomes -1.

    Args:
        values: labels or masks of any shape.
        where: file and key, for the error message.

    Raises:
        DataError: the values are text, fractions or NaN, or do not fit into 64 bits.
    """
    kind = values.dtype.kind
    if kind in "USO":
        raise DataError(
            f"{where}: expected class ids as numbers, got text or objects ({values.dtype}); save "
            "the ids 0, 1, ... and the names as classes in info"
        )
    if kind == "f":
        if np.isnan(values).any():
            raise DataError(
                f"{where}: expected class ids, got NaN in {int(np.isnan(values).sum())} of "
                f"{values.size}; save -1 where the label is not known"
            )
        whole = np.isfinite(values) & (values == np.round(values))
        whole &= np.abs(values.astype(np.float64)) <= _EXACT
        if not whole.all():
            example = values[~whole].flat[0]
            raise DataError(
                f"{where}: expected class ids, got fractions such as {example}; soft labels and "
                "probabilities cannot be used as truth: save the class, or 0 and 1"
            )
    elif kind not in "biu" or (kind == "u" and values.size and values.max() > 2**62):
        raise DataError(
            f"{where}: expected integers or bool, got {values.dtype}; save them as int64"
        )
    ids: NDArray[np.int64] = values.astype(np.int64, copy=False)
    return _unlabelled(ids)


def small_integers(values: NDArray[Any], where: str) -> NDArray[np.integer[Any]]:
    """Return values as integers, of 16 bits if the stored type fits: masks are large.

    Raises:
        DataError: as `integers`.
    """
    if values.dtype.kind in "biu" and values.dtype.itemsize == 1 or values.dtype == np.int16:
        return _unlabelled(values.astype(np.int16, copy=False))
    return integers(values, where)


def _unlabelled(ids: NDArray[Any]) -> NDArray[Any]:
    is_ignored = ids == TORCH_IGNORED
    if not is_ignored.any():
        return ids
    ids = ids.copy()
    ids[is_ignored] = UNLABELLED
    return ids


def one_hot(values: NDArray[np.integer[Any]], axis: int) -> bool:
    """Return whether values are 0 or 1 and sum to one along an axis of at least two.

    >>> one_hot(np.array([[0, 1], [1, 0]]), 1), one_hot(np.array([[1, 1], [1, 0]]), 1)
    (True, False)
    """
    if values.shape[axis] < 2 or values.size == 0:
        return False
    return bool(values.min() >= 0 and values.max() <= 1 and (values.sum(axis) == 1).all())


def one_hot_rows(labels: NDArray[np.int64]) -> bool:
    """Return whether labels `(n, k)` are one-hot rows; rows of -1 alone have no label."""
    if labels.ndim != 2:
        return False
    known = labels[(labels != UNLABELLED).any(1)]
    return len(known) > 0 and one_hot(known, 1)


def from_one_hot(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each one-hot row; -1 for a row without a label.

    >>> from_one_hot(np.array([[0, 1], [-1, -1]])).tolist()
    [1, -1]
    """
    ids: NDArray[np.int64] = labels.argmax(1)
    ids[(labels == UNLABELLED).all(1)] = UNLABELLED
    return ids


def join_classes(
    labels: NDArray[np.integer[Any]], stored_ids: tuple[tuple[int, ...], ...], where: str
) -> NDArray[np.int64]:
    """Return the class that each stored id belongs to; -1 stays -1.

    Args:
        labels: class ids as stored.
        stored_ids: for each class, the stored ids that it joins.
        where: file or card, for the error message.

    Raises:
        DataError: a label belongs to no class, or an id to two.

    >>> join_classes(np.array([0, 2, 1, -1]), ((0,), (1, 2)), "toy").tolist()
    [0, 1, 1, -1]
    """
    listed = [stored for ids in stored_ids for stored in ids]
    if len(set(listed)) < len(listed):
        twice = next(stored for stored in listed if listed.count(stored) > 1)
        raise DataError(f"{where}: expected stored_ids each in one class, got {twice} twice")
    unknown = set(labels.ravel().tolist()) - {*listed, UNLABELLED}
    if unknown:
        raise DataError(
            f"{where}: expected labels in stored_ids {sorted(listed)} or -1, got {min(unknown)}"
        )
    joined = np.full(labels.shape, UNLABELLED, np.int64)
    for class_id, ids in enumerate(stored_ids):
        joined[np.isin(labels, ids)] = class_id
    return joined


def check_codes(labels: NDArray[np.integer[Any]], k: int, where: str, *, masks: bool) -> None:
    """Refuse labels of -1 and 1, in which a class would be read as "unlabelled".

    Args:
        labels: of one split, -1 = unlabelled.
        k: number of classes; for findings 2, because each is present or absent.
        where: file and split, for the error message.
        masks: whether they are class ids of pixels.

    Raises:
        DataError: the labels are -1 and 1 alone, and there are only two classes.
    """
    if k > 2 or labels.size == 0 or not (labels == UNLABELLED).any() or not (labels == 1).any():
        return
    if not (labels == 0).any() and bool(((labels == UNLABELLED) | (labels == 1)).all()):
        what = "masks" if masks else "labels"
        raise DataError(
            f"{where}: expected {what} of 0 and 1, got only -1 and 1: -1 means unlabelled, so a "
            "class would not be scored; save the classes as 0 and 1, or omit images without a label"
        )


def check_numbering(ids: NDArray[np.integer[Any]], where: str, *, masks: bool) -> None:
    """Refuse class ids that do not count from 0, if the classes have no names.

    Args:
        ids: the distinct class ids of all splits, without -1.
        where: the file, for the error message.
        masks: whether they are class ids of pixels.

    Raises:
        DataError: class 0 does not occur, or most ids below the largest do not.
    """
    if len(ids) == 0:
        return
    least, most, what = int(ids.min()), int(ids.max()), "masks" if masks else "labels"
    listed = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    if least > 0:
        raise DataError(
            f"{where}: expected {what} counted from 0, got {listed} without 0; subtract {least}"
            ", or name every class in info if class 0 only happens to be absent"
        )
    gaps = most + 1 - len(ids)
    if gaps > len(ids) and most >= 10:
        way = (
            "255 means ignored only in masks: save -1 for an unknown label, "
            if most == IGNORED
            else ""
        )
        raise DataError(
            f"{where}: expected {what} 0, 1, ... without large gaps, got {listed}; {way}"
            "count the classes from 0, or name every one in info"
        )
