"""Compute the metrics of an attack and of a detector at one radius, from the samples table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import NDArray

from robustbench_med.errors import DataError
from robustbench_med.metrics.detection import STUDIES, detection, split_twins
from robustbench_med.stats import UNDEFINED, Estimate, intervals

# the metrics of a perturbation's visibility, with their bounds
VISIBILITY = {
    "ssim": (-1.0, 1.0),
    "psnr": (0.0, np.inf),
    "l2": (0.0, np.inf),
    "linf": (0.0, np.inf),
}
_ENOUGH = 50  # a detector needs so many clean images of other patients


def score_attack(
    table: pd.DataFrame,
    patients: NDArray[np.character] | None,
    weights: NDArray[np.float64],
) -> dict[str, Estimate]:
    """Return the success rate of the attack and the mean visibility of its successes.

    Args:
        table: samples table of the radius, with a row for each image; see Stored.
        patients: `(n,)` patients of the images, if they are known.
        weights: `(replicates, n)` weights from `resamples`.
    """
    attacked, success = table["attacked"].to_numpy(), table["success"].to_numpy()
    owners = None if patients is None else patients[attacked]
    metrics = {"attack_success": intervals.cluster_mean(success[attacked].astype(float), owners)}
    for name, bounds in VISIBILITY.items():
        values = np.where(success, table[name].to_numpy(dtype=float), np.nan)
        metrics[name] = _mean(values, weights, bounds)
    return metrics


def _mean(
    values: NDArray[np.float64], weights: NDArray[np.float64], bounds: tuple[float, float]
) -> Estimate:
    """Return the mean over the images where `values` is finite, with its bootstrap interval."""
    finite = np.isfinite(values)
    if not finite.any():
        return UNDEFINED
    return intervals.bootstrap(
        float(values[finite].mean()),
        lambda w: (w[:, finite] @ values[finite]) / w[:, finite].sum(1),
        weights,
        among=finite,
        bounds=bounds,
    )


class UnattackedImages(NamedTuple):
    """Clean images of the split that are not attacked: their suspicion, and their patients."""

    suspicion: NDArray[np.float64]
    patients: NDArray[np.character] | None


def score_detector(
    table: pd.DataFrame,
    clean: NDArray[np.float64],
    wrong: Bool[NDArray[np.bool_], " n"],
    *,
    unattacked: UnattackedImages | None,
    nearest: bool,
    seed: int,
) -> dict[str, Estimate]:
    """Return the metrics of a detector at one radius.

    The positives are the attacked images with a wrong prediction, which a detector should find;
    `positives` is their number. The negatives are clean images of the split that are not attacked
    and come from other patients. If there are too few of them, the positives come from one half of
    the patients and clean images from the other half. So no patient is on both sides, and no image
    together with its own clean version. False alarms are counted on all clean images.

    Args:
        table: samples table of the radius, with a row for each image; see Stored.
        clean: `(n,)` suspicion of the clean images.
        wrong: `(n,)` whether the prediction at this radius is wrong.
        unattacked: the other clean images of the split, if there are any.
        nearest: whether the attacker knew the detector and searched for the nearest image that
            passes. Such images are at the threshold, and their ranks above it have no meaning.
        seed: seed of the halves and the bootstrap.
    """
    ids = table["sample"].to_numpy(dtype=np.str_)
    known = table["patient"].notna().all()
    patients = table["patient"].to_numpy(dtype=np.str_) if known else None
    metrics = {"false_alarms": _false_alarms(clean, patients, unattacked)}
    hit = table["attacked"].to_numpy() & wrong
    negatives = _of_other_patients(patients, unattacked)
    if negatives is not None:
        suspicion, their_patients = negatives
        positives = hit.nonzero()[0]
    else:
        try:
            positives, rows = split_twins(ids, patients, seed=seed)
        except DataError:  # there is only one patient
            return metrics
        positives = positives[hit[positives]]
        suspicion = clean[rows]
        their_patients = None if patients is None else patients[rows]
    sides = None
    if patients is not None and their_patients is not None:
        sides = their_patients, patients[positives]
    attacked = table["suspicion"].to_numpy(dtype=float)[positives]
    rates = detection(suspicion, attacked, patients=sides, seed=seed)
    if nearest:
        rates = {name: estimate for name, estimate in rates.items() if name == "detected"}
    n = float(len(positives))
    return rates | metrics | {"positives": Estimate(value=n, low=n, high=n)}


def _false_alarms(
    clean: NDArray[np.float64],
    patients: NDArray[np.character] | None,
    unattacked: UnattackedImages | None,
) -> Estimate:
    """Return the number of rejected images per 1,000 clean images."""
    if unattacked is not None:
        clean = np.concatenate([clean, unattacked.suspicion])
        if patients is not None and unattacked.patients is not None:
            patients = np.concatenate([patients, unattacked.patients.astype(np.str_)])
    rate = intervals.cluster_mean((clean > 0).astype(float), patients)
    return Estimate(**{name: STUDIES * getattr(rate, name) for name in ("value", "low", "high")})


def _of_other_patients(
    patients: NDArray[np.character] | None, unattacked: UnattackedImages | None
) -> tuple[NDArray[np.float64], NDArray[np.character] | None] | None:
    """Return suspicion and patients of clean images of other patients; None if too few."""
    if unattacked is None:
        return None
    theirs = None if unattacked.patients is None else unattacked.patients.astype(np.str_)
    rows = np.ones(len(unattacked.suspicion), dtype=np.bool_)
    if patients is not None and theirs is not None:
        rows = ~np.isin(theirs, patients)
    if rows.sum() < _ENOUGH:
        return None
    return unattacked.suspicion[rows], None if theirs is None else theirs[rows]
