"""The decision of a victim: what it calls, and with which probability."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.cards import Task
from robustbench_med.objectives.classification import two_sided
from robustbench_med.types import Logits


def called(logits: Logits) -> UInt8[Tensor, "b *s"]:
    """Return masks of class ids `(b, *s)`: argmax, the first on a tie."""
    return two_sided(logits).argmax(1).to(torch.uint8)


def decide(logits: Logits, task: Task) -> NDArray[np.int64]:
    """Return class ids `(b,)` (argmax; the first on a tie) or findings `(b, k)` (logit above 0)."""
    if task == "multi_label":
        return np.asarray((logits > 0).long().cpu().numpy())
    return np.asarray(two_sided(logits).argmax(1).cpu().numpy())


def probabilities(logits: Logits, task: Task) -> NDArray[np.float64]:
    """Return probabilities `(b, k)`, in double precision: a saturated score keeps its rank."""
    values = logits.double()
    found = values.sigmoid() if task == "multi_label" else two_sided(values).softmax(1)
    return np.asarray(found.cpu().numpy())
