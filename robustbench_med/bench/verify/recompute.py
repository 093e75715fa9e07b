"""Recompute the metrics of a record from its samples table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import Record, Stored
from robustbench_med.bench.sample_metrics import score_attack
from robustbench_med.bench.verify.consistency import patients_of_rows
from robustbench_med.metrics.classification import Predictions, flips, score
from robustbench_med.metrics.segmentation import score_masks
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resamples


def recompute_metrics(stored: Stored) -> list[dict[str, Estimate]]:
    """Return the metrics of each rung that can be computed from a samples table, clean first.

    For labels and findings these are all metrics except a detector's; for masks it is the Dice. The
    bench computes them in the same way, so they equal those of the record to the last digit.
    """
    record, table = stored.record, stored.samples
    first = table.iloc[: record.n]
    patients = patients_of_rows(first)
    weights = resamples(record.n, patients, seed=record.case.seed)
    recomputed = []
    for i in range(len(record.rungs)):
        rows = table.iloc[i * record.n : (i + 1) * record.n].reset_index(drop=True)
        if record.dataset_card.task == "segmentation":
            metrics = _mask_metrics(record, rows, weights)
        elif "suspicion" in table.columns:
            right = rows["correct"].to_numpy(dtype=float)
            metrics = {"accuracy": intervals.cluster_mean(right, patients)}
        else:
            metrics = _label_metrics(record, first, rows, patients, weights)
        recomputed.append(metrics | score_attack(rows, patients, weights))
    return recomputed


def _mask_metrics(
    record: Record, rows: pd.DataFrame, weights: NDArray[np.float64]
) -> dict[str, Estimate]:
    dice = np.stack([np.asarray(row, dtype=np.float64) for row in rows["scores"]])
    regions = record.dataset_card.parts
    metrics = score_masks({"dice": dice}, regions=regions, weights=weights)
    if "target_dice" in rows:
        target_dice = rows["target_dice"].to_numpy(dtype=np.float64)
        metrics["target_dice"] = intervals.bootstrap(
            float(target_dice.mean()), lambda w: (w @ target_dice) / w.sum(1), weights
        )
    return metrics


def _label_metrics(
    record: Record,
    clean: pd.DataFrame,
    rows: pd.DataFrame,
    patients: NDArray[np.character] | None,
    weights: NDArray[np.float64],
) -> dict[str, Estimate]:
    card = record.dataset_card
    truth, before, predicted = (
        np.array([np.asarray(value) for value in column]).astype(np.int64)
        for column in (rows["truth"], clean["prediction"], rows["prediction"])
    )
    scores = np.stack([np.asarray(row, dtype=np.float64) for row in rows["scores"]])
    attacked = rows["attacked"].to_numpy(dtype=bool)
    flip_rates = flips(truth, before, predicted, card, attacked=attacked, clusters=patients)
    predictions = Predictions.of(truth, predicted, scores, card)
    return score(predictions, card, clusters=patients, weights=weights) | flip_rates


def recompute_distance(stored: Stored) -> Estimate:
    """Return the median distance of the attacked images in a samples table."""
    record = stored.record
    first = stored.samples.iloc[: record.n]
    weights = resamples(record.n, patients_of_rows(first), seed=record.case.seed)
    rows = first["attacked"].to_numpy(dtype=bool)
    return intervals.median(first["distance"].to_numpy(dtype=np.float64)[rows], weights[:, rows])
