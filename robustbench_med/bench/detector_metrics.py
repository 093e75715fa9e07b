"""Detect: how well a victim's guard tells attacked images from clean ones, from a samples table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import NDArray

from robustbench_med.errors import DataError
from robustbench_med.metrics.detection import STUDIES, detection, split_twins
from robustbench_med.stats import Estimate, intervals

_ENOUGH = 50  # clean images of other patients: fewer than half of a usual case's


class Rest(NamedTuple):
    """Clean images of the split that are not attacked: their suspicion, and whose they are."""

    suspicion: NDArray[np.float64]
    patients: NDArray[np.character] | None


def score_detector(
    table: pd.DataFrame,
    clean: NDArray[np.float64],
    wrong: Bool[NDArray[np.bool_], " n"],
    *,
    rest: Rest | None,
    nearest: bool,
    seed: int,
) -> dict[str, Estimate]:
    """Return the metrics of a detector at one radius.

    Positives are the attacked images that are called wrong: what a detector is there to find; their
    number is `positives`. The clean images they are told from are those of the split that nobody
    attacked, of other patients; where those are too few, positives are of one half of the patients
    and clean images of the other. So no clean twin and no patient stands on both sides. False
    alarms are counted on all clean images.

    Args:
        table: of the radius, a row an image; see Stored.
        clean: `(n,)` suspicion of the clean images.
        wrong: `(n,)` whether each is called wrong at this radius.
        rest: the clean images of the split that are not among them, where there are any.
        nearest: whether the attacker knew the detector and sought the nearest image it lets pass:
            such images lie at the threshold, and how they rank above it says nothing.
        seed: of the halves and the bootstrap.
    """
    ids = table["sample"].to_numpy(dtype=np.str_)
    known = table["patient"].notna().all()
    owners = table["patient"].to_numpy(dtype=np.str_) if known else None
    everyone, of_everyone = clean, owners
    if rest is not None:
        everyone = np.concatenate([clean, rest.suspicion])
        if owners is not None and rest.patients is not None:
            of_everyone = np.concatenate([owners, rest.patients.astype(np.str_)])
    alarms = intervals.cluster_mean((everyone > 0).astype(float), of_everyone)
    every = {name: STUDIES * getattr(alarms, name) for name in ("value", "low", "high")}
    counted = {"false_alarms": Estimate(**every)}
    hit = table["attacked"].to_numpy() & wrong
    suspicion = table["suspicion"].to_numpy(dtype=float)
    sides = _apart(owners, rest)
    if sides is not None:
        plain, of_plain = sides
        hostile = hit.nonzero()[0]
    else:
        try:
            hostile, rows = split_twins(ids, owners, seed=seed)
        except DataError:  # a single patient: nothing to tell him from
            return counted
        hostile = hostile[hit[hostile]]
        plain, of_plain = clean[rows], None if owners is None else owners[rows]
    patients = None
    if owners is not None and of_plain is not None:
        patients = of_plain, owners[hostile]
    found = detection(plain, suspicion[hostile], patients=patients, seed=seed)
    if nearest:
        found = {name: e for name, e in found.items() if name == "caught"}
    n = float(len(hostile))
    return found | counted | {"positives": Estimate(value=n, low=n, high=n)}


def _apart(
    owners: NDArray[np.character] | None, rest: Rest | None
) -> tuple[NDArray[np.float64], NDArray[np.character] | None] | None:
    """Return the suspicion of clean images of other patients, and whose; None where too few."""
    if rest is None:
        return None
    of_rest = None if rest.patients is None else rest.patients.astype(np.str_)
    kept = np.ones(len(rest.suspicion), dtype=np.bool_)
    if owners is not None and of_rest is not None:
        kept = ~np.isin(of_rest, owners)
    if kept.sum() < _ENOUGH:
        return None
    return rest.suspicion[kept], None if of_rest is None else of_rest[kept]
