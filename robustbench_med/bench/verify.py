"""Verify: recompute what a record claims, and say whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from robustbench_med.bench import saved, score
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.record import Audit, Record, Rung, Stored
from robustbench_med.bench.rerun import changed, replan, run_again
from robustbench_med.bench.runner import device_of, prepared
from robustbench_med.bench.walk import walk
from robustbench_med.errors import ChecksumError, InvalidOutputError

# what a record claims; how visible a perturbation is, and regions one by one, are details of it
HEADLINE = (
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "auc",
    "attack_success",
    "dice",
)
_SHOWN = ("attack_success", "dice")  # what saved images show whatever the objective
_DECIDED = (*_SHOWN, "accuracy", "balanced_accuracy", "sensitivity", "specificity")
_GREY = 16  # radii up to so many grey levels are written in them
_EXACT = 1e-6  # of a metric that is a function of outcomes
_SCORED = 0.01  # of the AUC, which ranks float32 scores: other machines round them otherwise


class Finding(NamedTuple):
    """What recomputing a record found.

    Attributes:
        word: match (every outcome is the record's), within interval (outcomes differ, and every
            headline metric lies in the record's 95 % interval) or mismatch.
        differing: samples whose outcome is another at any radius.
        samples: how many there are.
        lines: why, a reason each.
    """

    word: Literal["match", "within interval", "mismatch"]
    differing: int = 0
    samples: int = 0
    lines: tuple[str, ...] = ()


class _Claim(NamedTuple):
    """Outcomes and the metrics made of them."""

    samples: pd.DataFrame
    rungs: tuple[Rung, ...]
    audit: Audit | None


def verify(
    stored: Stored, *, data: Path | None = None, images: bool = False, device: str = "cpu"
) -> Finding:
    """Recompute a record by running its case again, or from the images saved beside it.

    Weights, data and versions are compared first: where they are others, nothing is run.

    Args:
        stored: the record.
        data: folder with the files of real datasets.
        images: judge the saved images and attack nothing. That checks every image said to be
            broken, its ball, and the counts; not that the others stand.
        device: as `run`.

    Raises:
        BenchError: the case cannot be run here, or there are no such images.
    """
    record = stored.record
    try:
        planned = replan(record.case, data=data)
    except ChecksumError as error:
        return Finding("mismatch", lines=(str(error),))
    if lines := changed(record.case, planned.case):
        return Finding("mismatch", lines=tuple(lines))
    if record.status == "invalid":
        return _invalid(record, planned, device)
    if not images:
        again = run_again(planned, device=device)
        if again.record.status == "invalid":
            return Finding("mismatch", lines=(f"the case is invalid now: {again.record.reason}",))
        claim = _Claim(again.samples, again.record.rungs, again.record.audit)
        return compare(stored, claim)
    kept = saved.read(Path(stored.folder), record.images)
    ready = prepared(planned, device_of(device))
    found = score.score(record.case, ready, walk(planned, ready, saved=kept))
    whole = record.case.objective == "untargeted"
    return compare(
        stored,
        _Claim(found.samples, found.rungs, found.audit),
        metrics=_DECIDED if whole else _SHOWN,
        outcomes=("broken", "correct") if whole else ("broken",),
    )


def compare(
    stored: Stored,
    claim: _Claim,
    *,
    metrics: tuple[str, ...] = HEADLINE,
    outcomes: tuple[str, ...] = ("broken", "correct", "prediction"),
) -> Finding:
    """Return whether recomputed outcomes and metrics are those of a record."""
    record = stored.record
    lines = _contradictions(stored)
    if list(stored.samples["sample"]) != list(claim.samples["sample"]):
        return Finding("mismatch", lines=(*lines, "the samples are not those of the record"))
    differing = _differing(stored.samples, claim.samples, outcomes)
    n = stored.samples["sample"].nunique()
    if claim.audit is not None and claim.audit.over_budget:
        lines.append(f"{claim.audit.over_budget} images lie outside their ball")
    for recorded, again in zip(record.rungs, claim.rungs, strict=True):
        for name in metrics:
            if name not in recorded.metrics:
                continue
            want, got = recorded.metrics[name], again.metrics[name].value
            slack = _SCORED if name == "auc" else _EXACT
            low, high = want.low - slack, want.high + slack
            if not differing:  # then the metric is the same, or it was not made of these outcomes
                low, high = want.value - slack, want.value + slack
            if not (low <= got <= high or np.isnan(want.value) and np.isnan(got)):
                lines.append(
                    f"{name} at eps {written(recorded.eps)}: recorded {want.value:.3f} "
                    f"[{want.low:.3f}, {want.high:.3f}], recomputed {got:.3f}"
                )
    word: Literal["match", "within interval"] = "within interval" if differing else "match"
    return Finding("mismatch" if lines else word, differing, n, tuple(lines))


def _invalid(record: Record, planned: Planned, device: str) -> Finding:
    try:
        again = run_again(planned, device=device).record
    except InvalidOutputError as error:  # where it is not caught: while drawing pictures
        return Finding("match", lines=(str(error),))
    if again.status == "invalid":
        return Finding("match", lines=(again.reason,))
    return Finding("mismatch", lines=(f"recorded as invalid ({record.reason}), and it ran",))


def _differing(before: pd.DataFrame, after: pd.DataFrame, outcomes: tuple[str, ...]) -> int:
    """Return how many samples have another outcome at any radius."""
    other = np.zeros(len(before), dtype=bool)
    for name in outcomes:
        pairs = zip(before[name], after[name], strict=True)
        other |= np.array([not np.allclose(a, b, atol=_EXACT, equal_nan=True) for a, b in pairs])
    return int(before.loc[other, "sample"].nunique())


def _contradictions(stored: Stored) -> list[str]:
    """Return where the metrics of a record are not the means of its own samples table."""
    lines = []
    table = stored.samples
    for i, rung in enumerate(stored.record.rungs):
        rows = table.iloc[i * stored.record.n : (i + 1) * stored.record.n]
        means = {
            "accuracy": rows["correct"].mean(),
            "dice": rows["correct"].mean(),
            "attack_success": rows.loc[rows["attacked"], "broken"].mean(),
        }
        for name, mean in means.items():
            want = rung.metrics.get(name)
            if want is not None and not np.isclose(want.value, mean, atol=_EXACT, equal_nan=True):
                lines.append(
                    f"{name} at eps {written(rung.eps)}: the record says {want.value:.3f}, its own "
                    f"samples {mean:.3f}"
                )
    return lines


def written(eps: float) -> str:
    """Return a radius as a person writes it.

    >>> written(2 / 255), written(0.3)
    ('2/255', '0.3')
    """
    levels = round(eps * 255 * 2) / 2
    grey = 0 < levels <= _GREY and abs(eps * 255 - levels) < _EXACT
    return f"{levels:g}/255" if grey else f"{eps:g}"
