"""The decision of a victim: the classes it predicts, and their probabilities."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from robustbench_med.cards import Task
from robustbench_med.datasets.codes import MAX_IDS
from robustbench_med.errors import VictimError
from robustbench_med.objective import Objective
from robustbench_med.objectives.classification import two_sided
from robustbench_med.types import Logits, Output, PerSample, Truth, Verdict, images_at_once


def class_masks(logits: Logits) -> UInt8[Tensor, "b *s"]:
    """Return masks of class ids `(b, *s)`: argmax, the first on a tie.

    Raises:
        VictimError: there are more classes than a byte can hold beside 255 for ignored pixels.
    """
    if logits.shape[1] > MAX_IDS:
        raise VictimError(f"expected at most {MAX_IDS} classes of masks, got {logits.shape[1]}")
    return two_sided(logits).argmax(1).to(torch.uint8)


def answer_of(logits: Logits) -> Float[Tensor, "b k"] | UInt8[Tensor, "b *s"]:
    """Return the part of an output that is stored: the logits, or the class of each pixel."""
    return logits if logits.ndim == 2 else class_masks(logits)


def verdict_on(
    objective: Objective, answer: Tensor, y: Truth, k: int, suspicion: PerSample | None = None
) -> Verdict:
    """Return the verdict on stored answers, without a pass through the victim.

    Args:
        objective: the attacker's goal. For masks, the loss of the verdict has no meaning.
        answer: `(n, k)` logits or `(n, *s)` masks of class ids.
        y: the truth.
        k: number of classes.
        suspicion: the suspicion of each image, where a detector guards the victim.
    """
    if answer.dtype != torch.uint8:
        return objective(Output(answer, suspicion), y)
    at_once = images_at_once(tuple(answer.shape[1:]))
    verdicts = []
    for rows in torch.arange(len(answer), device=answer.device).split(at_once):
        one_hot = functional.one_hot(answer[rows].long(), k).movedim(-1, 1).float()
        verdicts.append(objective.select(rows)(Output(one_hot), y[rows].long()))
    return Verdict(*map(torch.cat, zip(*verdicts, strict=True)))


def decide(logits: Tensor, task: Task) -> NDArray[np.int64]:
    """Return class ids `(b,)` (argmax; the first on a tie) or findings `(b, k)` (logit above 0).

    For masks, the stored answer is the decision: class ids `(b, *s)`.
    """
    if task == "segmentation":
        return np.asarray(logits.long().cpu().numpy())
    if task == "multi_label":
        return np.asarray((logits > 0).long().cpu().numpy())
    return np.asarray(two_sided(logits).argmax(1).cpu().numpy())


def probabilities(logits: Logits, task: Task) -> NDArray[np.float64]:
    """Return probabilities `(b, k)`, in double precision so that saturated scores keep a rank."""
    values = logits.double()
    probability = values.sigmoid() if task == "multi_label" else two_sided(values).softmax(1)
    return np.asarray(probability.cpu().numpy())
