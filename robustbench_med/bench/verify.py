"""Verify: recompute what a record claims, and say whether it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.claim import CARDS, FOUND, Claim, entries, of_images, of_rerun
from robustbench_med.bench.differ import EXACT, differences, line, plain, same, written
from robustbench_med.bench.plan import Planned
from robustbench_med.bench.record import Estimate, Record, Stored
from robustbench_med.bench.rerun import changed, replan, run_again
from robustbench_med.bench.restated import contradictions, misshapen, shown
from robustbench_med.errors import ChecksumError, InvalidOutputError
from robustbench_med.metrics.detection import STUDIES

_MOST = 12  # lines that say what differs
_OUTCOMES = ("broken", "correct", "prediction", "rejected")
_FIXED = ("truth", "patient", "attacked")  # of an image, whatever the outcome
_MEASURED = ("scores", "suspicion", "target_dice", "l2", "linf", "distance", "ssim", "psnr")
# of every image: what an attack arrives at, where float32 sums are rounded otherwise
_NEAR = {"rtol": 0.02, "atol": 1e-6}
_EFFORT = 0.25  # how much more or fewer passes a few other outcomes may take
_SCORED = {"rtol": 0.0, "atol": 0.01}  # of what is made of scores, or of ranks among them
_SCORES = ("scores", "suspicion", "auc", "auroc", "tpr_at_1", "tpr_at_5", "caught")


class Finding(NamedTuple):
    """What recomputing a record found.

    Attributes:
        word: match (all is as recorded), within interval (outcomes differ, and every metric lies in
            the 95 % interval recomputed, as what is recomputed does in the record's) or mismatch.
        differing: samples whose outcome is another at any radius.
        samples: how many there are.
        lines: why, a reason each, a dozen at most.
    """

    word: Literal["match", "within interval", "mismatch"]
    differing: int = 0
    samples: int = 0
    lines: tuple[str, ...] = ()


def verify(
    stored: Stored,
    *,
    data: Path | None = None,
    images: bool = False,
    device: str = "cpu",
    code: bool = False,
) -> Finding:
    """Recompute a record by running its case again, or from the images saved beside it.

    Weights, data and versions are compared first: where they are others, nothing is run.

    Args:
        stored: the record.
        data: folder with the files of real datasets.
        images: judge the saved images and attack nothing. That checks every image said to be
            broken, its ball, and the counts; not that the others stand.
        device: as `run`.
        code: execute the Python file that the case names, if it names one.

    Raises:
        BenchError: the case cannot be run here, or there are no such images.
    """
    record = stored.record
    try:
        planned = replan(record.case, data=data, code=code)
    except ChecksumError as error:
        return Finding("mismatch", lines=(str(error),))
    if lines := changed(record.case, planned.case):
        return Finding("mismatch", lines=_few(lines))
    if record.status == "invalid":
        return _invalid(record, planned, device)
    if lines := misshapen(stored):
        return Finding("mismatch", lines=_few(lines))
    own = contradictions(stored)
    if images:
        return compare(stored, of_images(stored, planned, device), own)
    again = run_again(planned, device=device)
    if again.record.status == "invalid":
        return Finding("mismatch", lines=(f"the case is invalid now: {again.record.reason}",))
    return compare(stored, of_rerun(again), own)


def compare(stored: Stored, claim: Claim, own: list[str]) -> Finding:
    """Return whether what was recomputed is what a record says; `own` are its contradictions."""
    record, n = stored.record, stored.record.n
    if list(stored.samples["sample"]) != list(claim.samples["sample"]):
        return Finding("mismatch", lines=_few([*own, "the samples are not those of the record"]))
    other = _other(stored.samples, claim)
    differing = int(stored.samples.loc[other, "sample"].nunique())
    lines = [*own, *_fixed(record, claim), *_metrics(stored, claim, outcomes=differing)]
    lines += _columns(stored, claim, other)
    kept = entries(record, claim.loose)
    if differing:
        lines += _whatever(record, kept, claim.loose)
    else:
        lines += differences(kept, claim.loose, rtol=_NEAR["rtol"])
    word: Literal["match", "within interval"] = "within interval" if differing else "match"
    return Finding("mismatch" if lines else word, differing, n, _few(lines))


def _whatever(record: Record, kept: dict[str, Any], again: dict[str, Any]) -> Iterator[str]:
    """Yield what differs though it does not hang on a few outcomes: proofs, flags, effort."""
    if "certificate" in again:  # of the clean images
        near = 1 / record.n + EXACT
        was, now = ({"certificate": one["certificate"]} for one in (kept, again))
        yield from differences(was, now, rtol=0.0, atol=near)
    raised = {flag["name"] for flag in kept.get("flags", ())}
    for check in again.get("checks", ()):
        one_image = 1.0 if check["threshold"] >= 1 else 1 / (check["checked"] or record.n)
        surely = check["measured"] > check["threshold"] + one_image
        if surely and check["name"] not in raised:
            yield line(f"flag {check['name']}", None, check["measured"])
    for name, spent in again.get("cost", {}).items():
        if not same(kept["cost"][name], spent, rtol=_EFFORT):
            yield line(f"cost.{name}", kept["cost"][name], spent)


def _fixed(record: Record, claim: Claim) -> Iterator[str]:
    """Yield where entries differ that no machine changes."""
    kept = entries(record, claim.fixed)
    if "checks" in kept:
        kept["checks"] = [(one["name"], one["threshold"]) for one in kept["checks"]]
    for name, value in claim.fixed.items():
        if name == "checks":
            was, now = ([one for one, _ in part] for part in (kept[name], value))
            if kept[name] != value:
                yield line("checks", was, now)
        elif name == "threshold":  # chosen among scores
            yield from differences({name: kept[name]}, {name: value}, atol=1e-3)
        else:
            near = 1e-4 if name == "radii" else 0.0
            yield from differences({name: kept[name]}, {name: value}, rtol=near, atol=0.0)
    if claim.fixed["audit"]["over_budget"]:
        yield f"{claim.fixed['audit']['over_budget']} images lie outside their ball"


def _other(before: pd.DataFrame, claim: Claim) -> NDArray[np.bool_]:
    """Return which rows have another outcome."""
    names: tuple[str, ...] = _OUTCOMES
    if claim.saved:
        names = ("broken", "correct") if claim.decided else ("broken",)
    other = np.zeros(len(before), dtype=np.bool_)
    for name in names:
        if name in before and name in claim.samples:
            pairs = zip(before[name], claim.samples[name], strict=True)
            other |= np.array([not same(*pair) for pair in pairs], dtype=np.bool_)
    return other


def _columns(stored: Stored, claim: Claim, other: NDArray[np.bool_]) -> Iterator[str]:
    """Yield a line for every column whose values are not those recomputed, where they are known."""
    before, after = stored.samples, claim.samples
    if set(before.columns) != set(after.columns):
        yield line("columns of the samples", sorted(before.columns), sorted(after.columns))
    clean = (before["eps"] == 0).to_numpy()
    lost, found = before["broken"].to_numpy(bool), after["broken"].to_numpy(bool)
    if claim.saved and (surplus := before.loc[found & ~lost, "sample"].nunique()):
        yield f"the saved images break {surplus} samples said to stand"
    strays = before["sample"].isin(before.loc[other, "sample"]).to_numpy()
    everywhere = np.ones(len(before), dtype=np.bool_)
    if claim.saved and not claim.masks:  # of an image that stands nothing was saved
        known = clean | (lost & found)
    else:
        known = everywhere if claim.saved or not other.any() else clean & ~strays
    for name in (*_FIXED, *_MEASURED, *_OUTCOMES):
        if name not in before or name not in after or (name in _OUTCOMES and not claim.saved):
            continue
        rows = known & ~other if name in _OUTCOMES else known
        if name in _FIXED:
            rows = everywhere if name != "attacked" else ~strays
        elif name == "distance" and claim.saved:  # of what broke within the ladder
            rows = lost & found
        yield from _column(name, before[rows], after[rows])


def _column(name: str, before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    near = {} if name in (*_FIXED, *_OUTCOMES) else _SCORED if name in _SCORES else _NEAR
    pairs = zip(before[name], after[name], strict=True)
    differ = np.array([not same(*pair, **near) for pair in pairs], dtype=np.bool_)
    if differ.any():
        first, again = before[differ].iloc[0], after[differ].iloc[0]
        where = f"{name} of {before.loc[differ, 'sample'].nunique()} samples, such as "
        where += f"{plain(str(first['sample']))} at eps {written(float(first['eps']))}"
        yield line(where, _value(first[name]), _value(again[name]))


def _value(value: Any) -> object:  # noqa: ANN401 - of any column
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _metrics(stored: Stored, claim: Claim, *, outcomes: int) -> Iterator[str]:
    """Yield the metrics that are not as recorded: beyond chance, where outcomes differ."""
    record, step = stored.record, 1 / _fewest(stored)
    for recorded, again in zip(record.rungs, claim.rungs, strict=True):
        where = f"at eps {written(recorded.eps)}"
        if recorded.metrics.keys() != again.metrics.keys():
            yield line(f"metrics {where}", sorted(recorded.metrics), sorted(again.metrics))
        for name, want in recorded.metrics.items():
            got = again.metrics.get(name)
            if got is None or not claim.shows(name, recorded.eps):
                continue
            near = _SCORED if name in _SCORES else _NEAR if name in FOUND else {}
            if not same(tuple(want), tuple(got), **near) and not (
                outcomes and _alike(name, want, got, step, outcomes)
            ):
                yield (f"{plain(name)} {where}: recorded {shown(want)}, recomputed {shown(got)}")


def _fewest(stored: Stored) -> int:
    """Return how many images the metric over the fewest is of: those attacked of one class."""
    record = stored.record
    first = stored.samples.iloc[: record.n]
    if record.dataset_card.task == "segmentation":
        return record.n
    truth = np.array(list(first["truth"])).reshape(record.n, -1)
    attacked = first["attacked"].to_numpy(bool)
    sizes = [
        int((column[rows] == value).sum())
        for column in truth.T
        for rows in (slice(None), attacked)
        for value in np.unique(column[column >= 0])
    ]
    return min((one for one in sizes if one), default=1)


def _alike(name: str, want: Estimate, got: Estimate, step: float, outcomes: int) -> bool:
    """Whether each of two estimates lies in the interval of the other, or one image parts them.

    The recorded interval alone would be the word of who wrote it.

    Args:
        name: of the metric.
        want: what is recorded.
        got: what was recomputed.
        step: what one image is worth, at most: the interval of 1 of n leaves out 0.
        outcomes: samples whose outcome differs.
    """
    if np.isnan(want.value) or np.isnan(got.value):  # of no image in one, and of some in the other
        both = bool(np.isnan(want.value) and np.isnan(got.value))
        return both or name in FOUND or name.startswith("flips")
    apart = abs(want.value - got.value)
    if name == "positives":  # a count
        return apart <= outcomes
    if apart <= step * (STUDIES if name == "false_alarms" else 1) + EXACT:
        return True
    pairs = ((want, got), (got, want))
    return all(b.low - EXACT <= a.value <= b.high + EXACT for a, b in pairs)


def _invalid(record: Record, planned: Planned, device: str) -> Finding:
    try:
        again = run_again(planned, device=device).record
    except InvalidOutputError as error:  # where it is not caught: while drawing pictures
        return Finding("match", lines=(str(error),))
    if again.status == "invalid":
        other = (name for name in CARDS if getattr(record, name) != getattr(again, name))
        lines = [f"{name} is not that of the case" for name in other]
        return Finding("mismatch" if lines else "match", lines=(*lines, again.reason))
    return Finding("mismatch", lines=(f"recorded as invalid ({record.reason}), and it ran",))


def _few(lines: list[str]) -> tuple[str, ...]:
    rest = len(lines) - _MOST
    return tuple(lines if rest <= 0 else [*lines[: _MOST - 1], f"and {rest + 1} more"])
