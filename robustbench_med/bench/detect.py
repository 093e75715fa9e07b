"""Detect: how well a victim's guard tells attacked images from clean ones, from a samples table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import NDArray

from robustbench_med import stats
from robustbench_med.bench.record import Estimate
from robustbench_med.errors import DataError
from robustbench_med.metrics.detection import STUDIES, detection, split_twins


def of_guard(
    table: pd.DataFrame,
    clean: NDArray[np.float64],
    wrong: Bool[NDArray[np.bool_], " n"],
    *,
    seed: int,
) -> dict[str, Estimate]:
    """Return the metrics of a detector at one radius.

    Positives are the attacked images that are called wrong: what a detector is there to find. They
    are of one half of the patients, and the clean images they are told from of the other, so that
    no clean twin and no patient stands on both sides. False alarms are counted on all clean images.

    Args:
        table: of the radius, a row an image; see Stored.
        clean: `(n,)` suspicion of the clean images.
        wrong: `(n,)` whether each is called wrong at this radius.
        seed: of the halves and the bootstrap.
    """
    ids = table["sample"].to_numpy(dtype=np.str_)
    known = table["patient"].notna().all()
    owners = table["patient"].to_numpy(dtype=np.str_) if known else None
    alarms = stats.cluster_mean((clean > 0).astype(float), owners)
    every = {name: STUDIES * getattr(alarms, name) for name in ("value", "low", "high")}
    counted = {"false_alarms": Estimate(**every)}
    try:
        hostile, plain = split_twins(ids, owners, seed=seed)
    except DataError:  # a single patient: nothing to tell him from
        return counted
    hostile = hostile[(table["attacked"].to_numpy() & wrong)[hostile]]
    suspicion = table["suspicion"].to_numpy(dtype=float)
    sides = None if owners is None else (owners[plain], owners[hostile])
    found = detection(clean[plain], suspicion[hostile], patients=sides, seed=seed)
    return found | counted
