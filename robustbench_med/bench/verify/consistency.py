"""Check that a record is consistent with its own samples.

A record may come from anybody. Who edits its metrics, intervals or flags must edit its samples too,
and a rerun is compared with the samples. `table_errors` is cheap and runs whenever a record is
read; `score_errors` runs before a page is made; `layout_errors` and `contradictions` run in
`verify`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import infer_dtype

from robustbench_med.bench.record import SUBGROUP, Record, Stored
from robustbench_med.bench.verify.diff import line, plain, same, shown, written
from robustbench_med.cards import SEVERITY
from robustbench_med.errors import ResultsError

# the columns of every samples table, see `Stored`
COLUMNS = (
    "sample",
    "patient",
    "truth",
    "prediction",
    "eps",
    "scores",
    "correct",
    "attacked",
    "success",
)
_MEASURED = ("l2", "linf", "distance", "ssim", "psnr")  # only `verify` needs these columns
_OUTCOMES = ("attacked", "success")
_OF_IMAGES = ("sample", "patient", "truth", "attacked", "distance")  # the same at every radius
_CERTIFIED = "certified_dice"
_ROUNDING = 1e-6  # rounding error of a mean
_TIE = 1e-3  # a smaller difference of probabilities may be rounding


def table_errors(record: Record, samples: pd.DataFrame) -> list[str]:
    """Return why the samples are not a full table of a record's images and radii; else empty.

    If a table lacked images, its scores would cover only the others and nobody would notice. A
    record of an invalid case has no samples.
    """
    if record.status != "ok":
        return []
    masks = record.dataset_card.task == "segmentation"
    targeted = masks and record.case.objective.startswith("targeted")
    columns = (*COLUMNS, *(["target_dice"] if targeted else []))
    if missing := [name for name in columns if name not in samples]:
        return [f"no column {', '.join(missing)} in the samples"]
    kinds = {name: dtype.kind for name, dtype in samples.dtypes.items()}
    numbers = ("eps", "correct", *(name for name in _MEASURED if name in kinds))
    wrong = [name for name in numbers if kinds[name] not in "biuf"]
    wrong += [name for name in _OUTCOMES if kinds[name] != "b"]
    wrong += [] if infer_dtype(samples["sample"]) in ("string", "empty") else ["sample"]
    if wrong:
        return [f"samples with a column of another kind than its name says: {wrong[0]}"]
    levels = (0.0, *record.case.ladder)
    if [rung.eps for rung in record.rungs] != list(levels):
        radii = ", ".join(written(rung.eps) for rung in record.rungs)
        return [f"scores at eps {radii or 'none'}, not at those of its case"]
    order = _by_radius(samples)
    eps = samples["eps"].to_numpy(float)[order]
    ids = samples["sample"].to_numpy()[order]
    whole = record.n > 0 and np.array_equal(eps, np.repeat(sorted(levels), record.n))
    images = [set(row) for row in ids.reshape(len(levels), -1)] if whole else []
    if not whole or any(len(row) != record.n or row != images[0] for row in images):
        return [f"{len(samples)} rows of samples for {record.n} images at {len(levels)} radii"]
    return []


def score_errors(stored: Stored) -> list[str]:
    """Return where scores of a record are not the means of its samples, the first at each radius.

    Args:
        stored: a record without `table_errors`.
    """
    if stored.record.status != "ok":
        return []
    rungs, order = stored.record.rungs, _by_radius(stored.samples)
    columns = (
        stored.samples[name].to_numpy(float)[order].reshape(len(rungs), -1)
        for name in ("correct", "success", "attacked")
    )
    errors = []
    for rung, correct, broken, attacked in zip(rungs, *columns, strict=True):
        score = _mean(correct)
        means = {"accuracy": score, "dice": score, "attack_success": _mean(broken[attacked > 0])}
        for name, mean in means.items():
            claimed = rung.metrics.get(name)
            if claimed is not None and not same(claimed.value, mean, atol=_ROUNDING, rtol=0.0):
                errors.append(
                    f"{name} {claimed.value:.3f} at eps {rung.eps:g}, of samples that say "
                    f"{mean:.3f}"
                )
                break
    return [*errors, *_proof_errors(stored)]


def _proof_errors(stored: Stored) -> list[str]:
    """Return where a certificate of masks is not that of the samples, or an attack contradicts it.

    A record whose attack went below its certificate must have the flag that says so.
    """
    record, samples = stored.record, stored.samples
    proved = record.mask_certificate
    if proved is None:
        return []
    if _CERTIFIED not in samples:
        return [f"a certificate of masks, and no column {_CERTIFIED} in the samples"]
    lowest = samples[_CERTIFIED].to_numpy(float)
    mean = _mean(lowest[samples["eps"].to_numpy(float) == 0])
    if not same(proved.dice.value, mean, atol=_ROUNDING, rtol=0.0):
        return [f"certified Dice {proved.dice.value:.3f}, of samples that say {mean:.3f}"]
    if record.case.norm == SEVERITY or "l2" not in samples:
        return []
    l2 = np.nan_to_num(samples["l2"].to_numpy(float))  # NaN where an image was not attacked
    below = (l2 <= proved.radius) & (samples["correct"].to_numpy(float) < lowest - _ROUNDING)
    flagged = any(flag.name == "certificate_above_attack" for flag in record.flags)
    if below.any() and not flagged:
        images = samples.loc[below, "sample"].nunique()
        return [f"a Dice below the certified one on {images} images within its radius, and no flag"]
    return []


def layout_errors(stored: Stored) -> list[str]:
    """Return where the rows of the samples are not in the order in which the bench writes them.

    Args:
        stored: a record without `table_errors`.
    """
    record, table = stored.record, stored.samples
    if missing := [name for name in _MEASURED if name not in table]:
        return [f"no column {', '.join(missing)} in the samples"]
    ladder, lines = (0.0, *record.case.ladder), []
    if record.audit is None or record.cost is None:
        lines.append("expected an audit and a cost in a scored record, got none")
    if not np.array_equal(table["eps"].to_numpy(float), np.repeat(ladder, record.n)):
        lines.append("eps of the samples is not 0 and the ladder of the case, rung by rung")
    first = table.iloc[: record.n]
    # masks move along with the anatomy that a shift moves
    moves = record.case.norm == SEVERITY and record.dataset_card.task == "segmentation"
    names = [name for name in _OF_IMAGES if not moves or name != "truth"]
    names += [name for name in map(str, table) if name.startswith(SUBGROUP)]
    for i in range(1, len(ladder)):
        rows = table.iloc[i * record.n : (i + 1) * record.n]
        for name in names:
            if not all(map(same, first[name], rows[name])):
                lines.append(
                    f"{name} of the samples at eps {written(ladder[i])} is not that at eps 0"
                )
    return lines


def contradictions(stored: Stored) -> list[str]:
    """Return where a scored record contradicts its own samples and checks, one line each.

    Args:
        stored: a record without `table_errors` and `layout_errors`.

    Raises:
        ResultsError: a column has values of the wrong type.
    """
    try:
        return [
            *_metric_errors(stored),
            *_outcome_errors(stored),
            *_entry_errors(stored),
            *_severity_errors(stored),
        ]
    except (TypeError, ValueError, IndexError) as error:
        first = str(error).splitlines()[0]
        raise ResultsError(
            f"expected a samples table that can be scored in {stored.folder}, got: {first}"
        ) from None


def _metric_errors(stored: Stored) -> Iterator[str]:
    # imported in the function because it needs torch, which is not needed to read records
    from robustbench_med.bench.verify.recompute import recompute_metrics

    for rung, metrics in zip(stored.record.rungs, recompute_metrics(stored), strict=True):
        for name, estimate in metrics.items():
            claimed = rung.metrics.get(name)
            if claimed is not None and not same(tuple(claimed), tuple(estimate)):
                yield (
                    f"{plain(name)} at eps {written(rung.eps)}: the record says {shown(claimed)}, "
                    f"its own samples {shown(estimate)}"
                )


def _outcome_errors(stored: Stored) -> Iterator[str]:
    """Yield a line where outcomes contradict the other columns."""
    table = stored.samples
    if stored.record.dataset_card.task == "segmentation":
        dice = [float(np.mean(scores)) for scores in table["scores"]]
        if not all(map(same, dice, table["correct"])):
            yield "correct of the samples is not the mean of scores"
        return
    truth, prediction = (np.array(list(table[name])) for name in ("truth", "prediction"))
    scores = np.stack([np.asarray(row, dtype=np.float64) for row in table["scores"]])
    if not _follows(prediction, scores):
        yield "prediction of the samples is not what their scores say"
    # behind a detector an attacked image that is rejected counts as correct
    if "suspicion" in table.columns:
        return
    right = (prediction == truth) | (truth < 0)
    right = right.all(1) if right.ndim == 2 else right
    if not all(map(same, list(right), table["correct"])):
        yield "correct of the samples is not whether prediction is truth"
    attacked = (table["attacked"] & (table["eps"] > 0)).to_numpy(bool)
    broken = table["success"].to_numpy(bool)
    if stored.record.case.objective == "untargeted" and (broken == right)[attacked].any():
        yield "success of the samples is not whether prediction is wrong"


def _follows(prediction: NDArray[np.int64], scores: NDArray[np.float64]) -> bool:
    """Whether every predicted class or finding follows from the scores, except for ties."""
    if prediction.ndim == 2:
        over, under = scores > 0.5 + _TIE, scores < 0.5 - _TIE
        return not bool(((prediction == 0) & over | (prediction == 1) & under).any())
    best = scores[np.arange(len(prediction)), prediction.clip(0)] >= scores.max(1) - _TIE
    return bool((best | (prediction < 0)).all())


def _entry_errors(stored: Stored) -> Iterator[str]:
    from robustbench_med.bench.verify.recompute import recompute_distance

    record = stored.record
    names = patients_of_rows(stored.samples.iloc[: record.n])
    patients = None if names is None else len(set(names.tolist()))
    if record.patients != patients:
        yield line("patients", record.patients, patients, "its own samples")
    if record.distance is not None:
        distance = recompute_distance(stored)
        if not same(tuple(record.distance), tuple(distance)):
            yield (
                f"distance: the record says {shown(record.distance)}, its own samples "
                f"{shown(distance)}"
            )
    raised = {c.name: (c.value, c.threshold) for c in record.checks if c.value > c.threshold}
    flagged = {flag.name: (flag.value, flag.threshold) for flag in record.flags}
    if raised != flagged:
        yield line("flags", sorted(flagged), sorted(raised), "its own checks raise")


def _severity_errors(stored: Stored) -> Iterator[str]:
    """Yield a line where the parameters of a shift lie outside of their severity."""
    audit, table = stored.record.audit, stored.samples
    if stored.record.case.norm != SEVERITY or audit is None or audit.over_budget:
        return
    if "theta" not in table:
        yield "no column theta in the samples of a shift"
        return
    largest = np.array([max(map(abs, theta), default=0.0) for theta in table["theta"]])
    if (largest > table["eps"].to_numpy(float) * (1 + 1e-5) + audit.tolerance).any():
        yield "theta of the samples is larger than the severity"


def patients_of_rows(rows: pd.DataFrame) -> NDArray[np.character] | None:
    """Return the patient of each row; None if images are treated as independent."""
    return None if rows["patient"].isna().any() else rows["patient"].to_numpy(dtype=str)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def _by_radius(samples: pd.DataFrame) -> NDArray[np.intp]:
    """Return the order of rows by radius; sorting by pandas would take ten times as long."""
    return np.argsort(samples["eps"].to_numpy(float), kind="stable")
