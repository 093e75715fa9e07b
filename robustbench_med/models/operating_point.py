"""The operating point: the threshold of a deployed device, frozen on validation.

It is folded into the victim as an offset of its logits. So there is one decision rule: what the
device calls is what the attack climbs, and what accuracy, sensitivity and the flips are counted on.
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
    """Return the offset `(k,)` that puts the decision where sensitivity + specificity is largest.

    Args:
        logits: of the validation images; of masks at every pixel.
        y: their class ids or findings.
        card: two classes and findings have a threshold; three and more classes and masks do not
            (None).

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
    """Return the class or the findings that labels hold one value of: no threshold parts them."""
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
    """Return the score above which class 1 is called; 0 where validation has only one class."""
    from sklearn.metrics import roc_curve

    known = y >= 0
    truth, values = y[known].numpy(), scores[known].double().numpy()
    if not 0 < truth.sum() < len(truth):
        return 0.0
    false_alarms, hits, thresholds = roc_curve(truth, values, drop_intermediate=False)
    best = int(np.argmax(hits - false_alarms))
    below = values[values < thresholds[best]]
    if best == 0 or len(below) == 0:  # no threshold tells the classes apart: keep the model's own
        return 0.0
    return float((thresholds[best] + below.max()) / 2)


def probability(offset: Float[Tensor, " k"] | None, card: DatasetCard) -> tuple[float, ...]:
    """Return the offset as probabilities: of class 1, or of each finding. () without one."""
    if offset is None:
        return ()
    values: list[float] = torch.sigmoid(-offset.double()).tolist()
    return tuple(values if card.task == "multi_label" else values[-1:])
