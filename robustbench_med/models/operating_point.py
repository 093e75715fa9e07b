"""Choose the operating point, the threshold of a deployed device, on the validation split.

It becomes an offset of the victim's logits, so that there is one decision rule: the attack ascends
the same decision from which accuracy, sensitivity and flips are counted.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.cards import DatasetCard


def youden(
    logits: Float[Tensor, "n k *s"], y: Int[Tensor, "n *k"], card: DatasetCard
) -> Float[Tensor, " k"] | None:
    """Return the offset `(k,)` at which sensitivity + specificity is largest.

    Args:
        logits: logits of the validation images; for masks at every pixel.
        y: class ids or findings of these images.
        card: describes the data. Two classes and findings have a threshold; more classes and masks
            have none, and the result is None.

    Source: Youden, Cancer 1950. The threshold lies half-way between the two neighbouring scores, in
        logits.
    """
    if card.task == "multi_label":
        columns = [_threshold(logits[:, j], y[:, j]) for j in range(logits.shape[1])]
        return -torch.tensor(columns, dtype=logits.dtype)
    if not card.binary:
        return None
    if logits.shape[1] == 1:
        return -torch.tensor([_threshold(logits[:, 0], y)], dtype=logits.dtype)
    return torch.tensor([0.0, -_threshold(logits[:, 1] - logits[:, 0], y)], dtype=logits.dtype)


def undecided(y: Int[Tensor, "n *k"], card: DatasetCard) -> tuple[str, ...]:
    """Return the class or findings whose labels have a single value, and thus no threshold."""
    if not card.binary and card.task != "multi_label":
        return ()
    names = card.classes if card.task == "multi_label" else card.classes[1:]
    columns = y.reshape(len(y), -1).T
    return tuple(
        name
        for name, column in zip(names, columns, strict=True)
        if len(column[column >= 0].unique()) < 2
    )


def _threshold(scores: Float[Tensor, " n"], y: Int[Tensor, " n"]) -> float:
    """Return the score above which class 1 is predicted; 0 if validation has only one class."""
    from sklearn.metrics import roc_curve

    known = y >= 0
    truth, values = y[known].numpy(), scores[known].double().numpy()
    if not 0 < truth.sum() < len(truth):
        return 0.0
    false_alarms, hits, thresholds = roc_curve(truth, values, drop_intermediate=False)
    best = int(np.argmax(hits - false_alarms))
    below = values[values < thresholds[best]]
    if best == 0 or len(below) == 0:  # no threshold separates the classes: the model's own is used
        return 0.0
    return float((thresholds[best] + below.max()) / 2)


def probability(offset: Float[Tensor, " k"] | None, card: DatasetCard) -> tuple[float, ...]:
    """Return the offset as a probability of class 1 or of each finding; () without an offset."""
    if offset is None:
        return ()
    values: list[float] = torch.sigmoid(-offset.double()).tolist()
    return tuple(values if card.task == "multi_label" else values[-1:])
