"""Decision: the clean accuracy by the network's own decision, beside that at the operating point.

A record is scored at the operating point: a threshold chosen on validation (Youden's index), which
may change the clean accuracy a lot. Both accuracies can be computed from a record: its samples hold
the probabilities at the operating point, and the threshold says how far they were shifted.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Stored
from robustbench_med.stats import Estimate, intervals


def argmax_score(stored: Stored) -> Estimate | None:
    """Return the clean accuracy if the likeliest class, or each finding above 0.5, is predicted.

    Behind a detector a clean image that is rejected counts as wrong, as in the record.

    Args:
        stored: a record of labels or findings.

    Returns:
        The accuracy with its 95 % interval, by patient if patients are known; None if the record
        uses this decision already, is invalid or lacks the threshold.
    """
    record = stored.record
    if record.status != "ok" or record.case.operating_point == "argmax" or not record.threshold:
        return None
    if record.dataset_card.task == "segmentation":
        return None
    clean = stored.samples[stored.samples["eps"].to_numpy(dtype=np.float64) == 0.0]
    scores = np.stack([np.asarray(row, dtype=np.float64) for row in clean["scores"]])
    above = _logit(scores) > -_logit(np.asarray(record.threshold))
    truth = np.stack([np.atleast_1d(np.asarray(row)) for row in clean["truth"]])
    if record.dataset_card.task == "single_label":
        right = (above[:, -1:].astype(int) == truth) | (truth < 0)
    else:
        right = (above.astype(int) == truth) | (truth < 0)
    correct = right.all(axis=1)
    if "rejected" in clean:
        correct &= ~clean["rejected"].to_numpy(dtype=bool)
    return intervals.cluster_mean(correct.astype(np.float64), _patients(clean, record.patients))


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        logit: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return logit


def _patients(clean: pd.DataFrame, known: int | None) -> NDArray[np.character] | None:
    if known is None:
        return None
    owners: NDArray[np.character] = clean["patient"].to_numpy(dtype=object).astype(np.str_)
    return owners
