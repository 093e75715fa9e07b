"""Score: from what was measured of each sample to the table, the metrics and the audit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med import stats
from robustbench_med.bench.case import Case
from robustbench_med.bench.ladder import Columns
from robustbench_med.bench.prepare import Prepared
from robustbench_med.bench.record import Audit, Estimate, Rung
from robustbench_med.bench.walk import Run
from robustbench_med.metrics.classification import Predictions, flips
from robustbench_med.metrics.classification import score as score_predictions
from robustbench_med.models.operating_point import probability
from robustbench_med.objectives.decide import decide, probabilities

TOLERANCE = 1e-6  # of a radius in [0,1] units: float32 rounding of x + delta near 1 is 6e-8
_VISIBLE = ("ssim", "psnr", "l2", "linf")


class Scores(NamedTuple):
    """Everything derived from the outputs of a case."""

    samples: pd.DataFrame
    rungs: tuple[Rung, ...]
    audit: Audit
    threshold: tuple[float, ...]
    distance: Estimate


def score(case: Case, ready: Prepared, run: Run) -> Scores:
    """Return the samples table, a Rung for clean and each radius, the audit, the threshold.

    Images that were not attacked keep their clean output at every rung.

    Args:
        case: says norm and ladder.
        ready: clean logits and truth of all `n` images.
        run: what was measured of those attacked.
    """
    attacked = run.attacked
    tables = [_table(ready, attacked, None, 0.0)]
    for i, eps in enumerate(case.ladder):
        columns = {name: value[i] for name, value in run.rungs.items()}
        tables.append(_table(ready, attacked, columns, eps))
    clusters = ready.batch.patients
    weights = stats.resamples(len(ready.batch), clusters, seed=case.seed)
    scored = tuple(_rung(table, tables[0], ready, clusters, weights) for table in tables)
    samples = pd.concat(tables, ignore_index=True)
    distance = _spread({"distance": run.distance}, "distance", attacked, np.nan)
    samples["distance"] = np.tile(distance, len(tables))
    return Scores(
        samples,
        scored,
        _audit(case, ready, run),
        probability(ready.victim.offset, ready.data.card),
        stats.median(distance[attacked.cpu().numpy()], weights[:, attacked.cpu().numpy()]),
    )


def _table(
    ready: Prepared, attacked: Bool[Tensor, " n"], columns: Columns | None, eps: float
) -> pd.DataFrame:
    """Return one row an image at one radius; the columns are documented at Stored."""
    task, batch = ready.data.card.task, ready.batch
    logits = ready.clean.clone()
    if columns is not None:
        logits[attacked] = columns["logits"]
    predicted, truth = decide(logits, task), batch.y.cpu().numpy()
    right = (predicted == truth) | (truth < 0)
    right = right.all(1) if right.ndim == 2 else right
    return pd.DataFrame(
        {
            "sample": batch.ids,
            "patient": batch.patients if batch.patients is not None else [None] * len(batch),
            "truth": list(truth),
            "eps": eps,
            "prediction": list(predicted),
            "scores": list(probabilities(logits, task)),
            "correct": right,
            "attacked": attacked.cpu().numpy(),
            "broken": _spread(columns, "broken", attacked, False),
            **{name: _spread(columns, name, attacked, np.nan) for name in _VISIBLE},
        }
    )


def _spread(
    columns: Columns | None, name: str, attacked: Bool[Tensor, " n"], missing: float | bool
) -> NDArray[np.generic]:
    """Return a measured column for all images, `missing` where an image was not attacked."""
    rows = attacked.cpu().numpy()
    spread = np.full(len(rows), missing)
    if columns is not None:
        spread[rows] = columns[name].cpu().numpy()
    return spread


def _rung(
    table: pd.DataFrame,
    clean: pd.DataFrame,
    ready: Prepared,
    clusters: NDArray[np.character] | None,
    weights: NDArray[np.float64],
) -> Rung:
    card = ready.data.card
    y, before, after, scores = (
        np.stack(column.to_list())
        for column in (table["truth"], clean["prediction"], table["prediction"], table["scores"])
    )
    metrics = score_predictions(
        Predictions.of(y, after, scores, card), card, clusters=clusters, weights=weights
    )
    attacked = table["attacked"].to_numpy()
    owners = None if clusters is None else clusters[attacked]
    metrics["attack_success"] = stats.cluster_mean(
        table["broken"].to_numpy()[attacked].astype(float), owners
    )
    metrics |= flips(y, before, after, card, attacked=attacked, clusters=clusters)
    broken = table["broken"].to_numpy()
    for name in _VISIBLE:  # of the images that broke: what a person would have had to notice
        values = np.where(broken, table[name].to_numpy(dtype=float), np.nan)
        metrics[name] = _mean(values, weights)
    return Rung(eps=float(table["eps"].iloc[0]), metrics=metrics)


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Estimate:
    """Return the mean over the images where `values` is finite, with its bootstrap interval."""
    kept = np.isfinite(values)
    if not kept.any():
        return stats.UNDEFINED
    return stats.bootstrap(
        float(values[kept].mean()),
        lambda w: (w[:, kept] @ values[kept]) / w[:, kept].sum(1),
        weights,
    )


def _audit(case: Case, ready: Prepared, run: Run) -> Audit:
    """Return what the attack really used, and whether its images survive rounding."""
    rungs, attacked = run.rungs, run.attacked
    fell = rungs["broken"].any(0)
    lowest_rung = (
        rungs["broken"].float().argmax(0)
    )  # argmax gives the first: each image counts once
    survived = rungs["rounded"].gather(0, lowest_rung[None])[0][fell]
    owners = ready.batch.patients
    if owners is not None:
        owners = owners[attacked.cpu().numpy()][fell.cpu().numpy()]
    eps = rungs["size"].new_tensor(run.radii)[:, None]
    lowest, highest = rungs["lowest"], rungs["highest"]
    outside = (lowest < -TOLERANCE) | (highest > 1 + TOLERANCE)
    over = (rungs["size"] > eps * (1 + 1e-5) + TOLERANCE) | outside
    some = rungs["size"].shape[1] > 0
    undefined = float("nan")
    return Audit(
        norm=case.norm,
        largest=tuple(rungs["size"].amax(1).tolist() if some else [undefined] * len(eps)),
        lowest_pixel=float(lowest.min()) if some else undefined,
        highest_pixel=float(highest.max()) if some else undefined,
        over_budget=int(over.any(0).sum()),
        tolerance=TOLERANCE,
        bit_depth=ready.data.card.bit_depth,
        survives_rounding=stats.cluster_mean(survived.cpu().numpy().astype(float), owners),
    )
