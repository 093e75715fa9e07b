"""Restated: what the samples table of a record says by itself, beside what the record says of it.

A record is foreign: whoever edits its metrics, intervals or flags must edit its samples too, and
those are what a rerun is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype

from robustbench_med.bench import store
from robustbench_med.bench.record import Record, Stored
from robustbench_med.bench.scoring import score_attack
from robustbench_med.bench.verify.diff import line, plain, same, written
from robustbench_med.errors import ResultsError
from robustbench_med.metrics.classification import Predictions, flips, score
from robustbench_med.metrics.segmentation import score_masks
from robustbench_med.stats import Estimate, intervals
from robustbench_med.stats.patients import resamples

_COLUMNS = (*store.COLUMNS, "l2", "linf", "distance", "ssim", "psnr")
_NUMBERS = ("eps", "correct", "l2", "linf", "distance", "ssim", "psnr")
_TIE = 1e-3  # between probabilities: less may be rounding
_OF_IMAGES = ("sample", "patient", "truth", "attacked", "distance")  # the same at every radius


def misshapen(stored: Stored) -> list[str]:
    """Return why the samples of a scored record are no table of its images and radii, if so."""
    record, table = stored.record, stored.samples
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        return [f"the samples have no column {', '.join(missing)}"]
    wrong = [name for name in _NUMBERS if not is_numeric_dtype(table[name])]
    wrong += [name for name in ("attacked", "broken") if table[name].dtype != np.bool_]
    wrong += [] if all(isinstance(one, str) for one in table["sample"]) else ["sample"]
    if wrong:
        return [f"the samples have a column of another kind than its name says: {wrong[0]}"]
    ladder = (0.0, *record.case.ladder)
    lines = []
    if [rung.eps for rung in record.rungs] != list(ladder):
        said = ", ".join(written(rung.eps) for rung in record.rungs)
        lines.append(f"eps: recorded {said or 'none'}, expected 0 and the ladder of the case")
    if record.audit is None or record.cost is None:
        lines.append("a scored record has an audit and a cost, this one has not")
    if len(table) != record.n * len(ladder) or record.n < 1:
        return [
            *lines,
            f"the samples have {len(table)} rows, expected {record.n} x {len(ladder)} radii",
        ]
    if not np.array_equal(table["eps"].to_numpy(float), np.repeat(ladder, record.n)):
        lines.append("eps of the samples is not 0 and the ladder of the case, rung by rung")
    first = table.iloc[: record.n]
    for i in range(1, len(ladder)):
        rows = table.iloc[i * record.n : (i + 1) * record.n]
        for name in _OF_IMAGES:
            if not all(map(same, first[name], rows[name])):
                lines.append(
                    f"{name} of the samples at eps {written(ladder[i])} is not that at eps 0"
                )
    return lines


def contradictions(stored: Stored) -> list[str]:
    """Return where a scored record contradicts its own samples and checks, a line each.

    Args:
        stored: of which `misshapen` says nothing.

    Raises:
        ResultsError: a column of another kind than its name says.
    """
    try:
        return [*_metrics(stored), *_right(stored), *_rest(stored)]
    except (TypeError, ValueError, IndexError) as error:
        first = str(error).splitlines()[0]
        raise ResultsError(
            f"expected a samples table that can be scored in {stored.folder}, got: {first}"
        ) from None


def _metrics(stored: Stored) -> Iterator[str]:
    for rung, own in zip(stored.record.rungs, restated(stored), strict=True):
        for name, found in own.items():
            claimed = rung.metrics.get(name)
            if claimed is not None and not same(tuple(claimed), tuple(found)):
                yield (
                    f"{plain(name)} at eps {written(rung.eps)}: the record says {shown(claimed)}, "
                    f"its own samples {shown(found)}"
                )


def _right(stored: Stored) -> Iterator[str]:
    """Yield a line where outcomes are not what the other columns say."""
    table = stored.samples
    if stored.record.dataset_card.task == "segmentation":
        said, of = [float(np.mean(one)) for one in table["scores"]], "the mean of scores"
        if not all(map(same, said, table["correct"])):
            yield f"correct of the samples is not {of}"
        return
    truth, called = (np.array(list(table[name])) for name in ("truth", "prediction"))
    scores = np.stack([np.asarray(one, dtype=np.float64) for one in table["scores"]])
    if not _called_by(scores, called):
        yield "prediction of the samples is not what their scores say"
    if "suspicion" in table.columns:  # who is rejected counts otherwise
        return
    right = (called == truth) | (truth < 0)
    right = right.all(1) if right.ndim == 2 else right
    if not all(map(same, list(right), table["correct"])):
        yield "correct of the samples is not whether prediction is truth"
    attacked = (table["attacked"] & (table["eps"] > 0)).to_numpy(bool)
    broken = table["broken"].to_numpy(bool)
    if stored.record.case.objective == "untargeted" and (broken == right)[attacked].any():
        yield "broken of the samples is not whether prediction is wrong"


def _called_by(scores: NDArray[np.float64], called: NDArray[np.int64]) -> bool:
    """Whether every class or finding called is what the scores call, but for ties."""
    if called.ndim == 2:
        over, under = scores > 0.5 + _TIE, scores < 0.5 - _TIE
        return not bool(((called == 0) & over | (called == 1) & under).any())
    best = scores[np.arange(len(called)), called.clip(0)] >= scores.max(1) - _TIE
    return bool((best | (called < 0)).all())


def _rest(stored: Stored) -> Iterator[str]:
    record = stored.record
    owners = _patients(stored.samples.iloc[: record.n])
    patients = None if owners is None else len(set(owners.tolist()))
    if record.patients != patients:
        yield line("patients", record.patients, patients, "its own samples")
    if record.distance is not None:
        found = _distance(stored)
        if not same(tuple(record.distance), tuple(found)):
            yield (
                f"distance: the record says {shown(record.distance)}, its own samples "
                f"{shown(found)}"
            )
    raised = {c.name: (c.measured, c.threshold) for c in record.checks if c.measured > c.threshold}
    flagged = {flag.name: (flag.measured, flag.threshold) for flag in record.flags}
    if raised != flagged:
        yield line("flags", sorted(flagged), sorted(raised), "its own checks raise")


def restated(stored: Stored) -> list[dict[str, Estimate]]:
    """Return the metrics of each rung that a samples table alone gives, clean first.

    Of labels and findings all but those of a detector; of masks the Dice. They are computed as the
    bench does, so that a record says them to the digit.
    """
    record, table = stored.record, stored.samples
    first = table.iloc[: record.n]
    clusters = _patients(first)
    weights = resamples(record.n, clusters, seed=record.case.seed)
    found = []
    for i in range(len(record.rungs)):
        rows = table.iloc[i * record.n : (i + 1) * record.n].reset_index(drop=True)
        if record.dataset_card.task == "segmentation":
            metrics = _of_masks(record, rows, weights)
        elif "suspicion" in table.columns:
            right = rows["correct"].to_numpy(dtype=float)
            metrics = {"accuracy": intervals.cluster_mean(right, clusters)}
        else:
            metrics = _of_labels(record, first, rows, clusters, weights)
        found.append(metrics | score_attack(rows, clusters, weights))
    return found


def _of_masks(
    record: Record, rows: pd.DataFrame, weights: NDArray[np.float64]
) -> dict[str, Estimate]:
    dice = np.stack([np.asarray(one, dtype=np.float64) for one in rows["scores"]])
    parts = record.dataset_card.parts
    found = score_masks({"dice": dice}, parts=parts, weights=weights)
    if "target_dice" in rows:
        drawn = rows["target_dice"].to_numpy(dtype=np.float64)
        found["target_dice"] = intervals.bootstrap(
            float(drawn.mean()), lambda w: (w @ drawn) / w.sum(1), weights
        )
    return found


def _of_labels(
    record: Record,
    clean: pd.DataFrame,
    rows: pd.DataFrame,
    clusters: NDArray[np.character] | None,
    weights: NDArray[np.float64],
) -> dict[str, Estimate]:
    card = record.dataset_card
    truth, before, predicted = (
        np.array([np.asarray(one) for one in column]).astype(np.int64)
        for column in (rows["truth"], clean["prediction"], rows["prediction"])
    )
    scores = np.stack([np.asarray(one, dtype=np.float64) for one in rows["scores"]])
    attacked = rows["attacked"].to_numpy(dtype=bool)
    turned = flips(truth, before, predicted, card, attacked=attacked, clusters=clusters)
    found = Predictions.of(truth, predicted, scores, card)
    return score(found, card, clusters=clusters, weights=weights) | turned


def _distance(stored: Stored) -> Estimate:
    record = stored.record
    first = stored.samples.iloc[: record.n]
    weights = resamples(record.n, _patients(first), seed=record.case.seed)
    rows = first["attacked"].to_numpy(dtype=bool)
    return intervals.median(first["distance"].to_numpy(dtype=np.float64)[rows], weights[:, rows])


def _patients(rows: pd.DataFrame) -> NDArray[np.character] | None:
    """Return whose the images are; None where they are treated as independent."""
    return None if rows["patient"].isna().any() else rows["patient"].to_numpy(dtype=str)


def shown(estimate: Estimate) -> str:
    """Return an estimate as a person reads it.

    >>> shown(Estimate(value=0.5, low=0.25, high=0.75))
    '0.500 [0.250, 0.750]'
    """
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
