"""Verify: recompute the results of a record, and report whether they match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustbench_med.bench.record import SUBGROUP, Record, Stored
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.setup import SetupCache
from robustbench_med.bench.verify.consistency import contradictions, layout_errors, table_errors
from robustbench_med.bench.verify.diff import EXACT, differences, line, plain, same, shown, written
from robustbench_med.bench.verify.expected import (
    CARDS,
    FOUND,
    Recomputed,
    entries,
    from_images,
    from_rerun,
)
from robustbench_med.bench.verify.noise import (
    CLEAN,
    JUDGED,
    OUTCOMES,
    STRICT,
    Noise,
    distances,
    noise_of,
    other_outcome,
)
from robustbench_med.bench.verify.replay import Places, called_as, changed, replan, run_again
from robustbench_med.bench.verify.rounding import (
    machines,
    rounded_otherwise,
    same_machine,
    threads_of,
)
from robustbench_med.devices import device_of
from robustbench_med.errors import ChecksumError, InvalidOutputError
from robustbench_med.metrics.detection import STUDIES
from robustbench_med.models.load import load_victim
from robustbench_med.stats import Estimate

_MOST = 12  # at most so many lines describe the differences
_FIXED = ("truth", "patient", "attacked")  # columns that do not depend on the outcome
_EFFORT = 0.25  # the number of passes may differ by this share if outcomes differ
_PROOF = 0.01  # tolerance of a certified Dice, as a test of a pixel may tip either way
_ENTRIES = 1e-3  # tolerance of the numbers other than metrics
_SCORED = {"rtol": 0.0, "atol": 1e-3}  # tolerance of values computed from scores or their ranks
_NEAR = {"rtol": 1e-3, "atol": 1e-6}
_SCORES = ("auc", "auroc", "tpr_at_1", "tpr_at_5", "detected")


class Finding(NamedTuple):
    """The result of recomputing a record.

    Attributes:
        word: match (everything is as recorded), within rounding (the machine is another, and the
            differences are no larger than its arithmetic explains for this case) or mismatch.
        differing: number of samples with another outcome at any radius.
        samples: number of samples.
        lines: the reasons, one a line, a dozen at most.
        machines: the machine of the record and that of the rerun; empty if nothing was run.
    """

    word: Literal["match", "within rounding", "mismatch"]
    differing: int = 0
    samples: int = 0
    lines: tuple[str, ...] = ()
    machines: str = ""


def verify(
    stored: Stored,
    *,
    data: Path | None = None,
    images: bool = False,
    device: str = "cpu",
    code: bool = False,
    places: Places | None = None,
    setups: SetupCache | None = None,
) -> Finding:
    """Recompute a record by running its case again, or from the images saved beside it.

    Weights, data and versions are compared first; if they differ, nothing is run. If a rerun on
    another machine differs, the case is run once more with other rounding, to measure how much
    rounding changes it.

    Args:
        stored: the record.
        data: folder with the files of real datasets.
        images: judge the saved images and run no attack. That checks every recorded success, its
            perturbation size, and the counts; it does not check that the other images are robust.
        device: as `run`.
        code: execute the Python file that the case names, if it names one.
        places: the present paths of your own files that the record names.
        setups: prepared victims, shared with other records.

    Raises:
        BenchError: the case cannot be run here, or the record has no saved images.
    """
    record = stored.record
    try:
        planned = replan(record.case, data=data, code=code, places=places)
    except ChecksumError as error:
        return Finding("mismatch", lines=(str(error),))
    if lines := changed(record.case, called_as(record.case, planned.case)):
        return Finding("mismatch", lines=_few(lines))
    planned = _named_as(record, _titled_as(record, planned))
    with threads_of(record.provenance):
        line = machines(record.provenance, str(device_of(device)))
        finding = _recomputed(stored, planned, images, device, setups)
    return finding._replace(machines=line)


def _titled_as(record: Record, planned: ResolvedCase) -> ResolvedCase:
    """Return a case whose model has the title that a person chose for it in the record."""
    recorded = record.model_card
    chosen = {"title": recorded.title, "named": True} if recorded.named else {}
    return planned._replace(model=planned.model.model_copy(update=chosen))


def _named_as(record: Record, planned: ResolvedCase) -> ResolvedCase:
    """Return a case whose model has the spec of the record, since a moved file changes it."""
    if planned.case.victim == record.case.victim:
        return planned
    card = planned.model.model_copy(
        update={"name": record.model_card.name, "title": record.model_card.title}
    )
    loaded = load_victim(
        planned.victim,
        planned.data.card,
        images=partial(planned.data.few_images, planned.case.split),
    )
    renamed = loaded._replace(card=card)
    case = planned.case.model_copy(update={"victim": record.case.victim})
    return planned._replace(case=case, model=card, loaded=renamed)


def _recomputed(
    stored: Stored, planned: ResolvedCase, images: bool, device: str, setups: SetupCache | None
) -> Finding:
    record = stored.record
    if record.status == "invalid":
        return _invalid(record, planned, device)
    lines = table_errors(record, stored.samples) or layout_errors(stored)
    if lines:
        return Finding("mismatch", lines=_few(lines))
    contradicted = contradictions(stored)
    same = same_machine(record.provenance, str(device_of(device)))
    if images:
        judged = from_images(stored, planned, device)
        return compare(stored, judged, contradicted, lambda: None if same else JUDGED)
    again = run_again(planned, device=device, setups=setups)
    if again.record.status == "invalid":
        return Finding("mismatch", lines=(f"the rerun is invalid: {again.record.reason}",))
    claim = from_rerun(again)

    def noise() -> Noise | None:
        if same:
            return None
        with rounded_otherwise():  # prepare the victim anew, so that clean scores change too
            other = run_again(planned, device=device)
        return None if other.record.status == "invalid" else noise_of(claim, from_rerun(other))

    return compare(stored, claim, contradicted, noise)


def compare(
    stored: Stored,
    claim: Recomputed,
    contradicted: list[str],
    noise: Callable[[], Noise | None] | None = None,
) -> Finding:
    """Compare the recomputed entries with those of a record.

    Args:
        stored: the record.
        claim: the recomputed entries.
        contradicted: the contradictions of the record.
        noise: measures how much rounding changes the case; called only if something differs that
            rounding can change. It returns None on the machine of the record itself.
    """
    record, n = stored.record, stored.record.n
    if list(stored.samples["sample"]) != list(claim.samples["sample"]):
        return Finding(
            "mismatch", lines=_few([*contradicted, "the samples are not those of the record"])
        )
    differs = _other_rows(stored.samples, claim)
    differing = int(stored.samples.loc[differs, "sample"].nunique())
    hard = [*contradicted, *_fixed(record, claim), *_unmoved(stored, claim)]
    recorded = entries(record, claim.loose)
    soft = [*_flips(stored, claim, differs, STRICT)]
    soft += _main_first(_metrics(stored, claim, outcomes=0))
    soft += [*_columns(stored, claim, STRICT), *differences(recorded, claim.loose, rtol=_ENTRIES)]
    if not hard and not soft:
        return Finding("match", 0, n)
    if hard:
        return Finding("mismatch", differing, n, _few([*hard, *soft]))
    measured = noise() if noise is not None else None
    if measured is None:
        if noise is not None:
            soft.append(
                "the record was made with the same torch, processor and threads: rounding does not "
                "explain this"
            )
        return Finding("mismatch", differing, n, _few(soft))
    lines = [*_flips(stored, claim, differs, measured), *_columns(stored, claim, measured)]
    lines += _main_first(_metrics(stored, claim, outcomes=differing or n))
    lines += _whatever(record, recorded, claim.loose)
    word: Literal["within rounding", "mismatch"] = "mismatch" if lines else "within rounding"
    return Finding(word, differing, n, _few(lines))


def _whatever(record: Record, recorded: dict[str, Any], again: dict[str, Any]) -> Iterator[str]:
    """Yield differences that a few other outcomes do not explain: proofs, flags, effort."""
    if "certificate" in again:  # it depends only on the clean images
        near = 1 / record.n + EXACT
        was, now = ({"certificate": part["certificate"]} for part in (recorded, again))
        yield from differences(was, now, rtol=0.0, atol=near)
    if "mask_certificate" in again:  # a vote near the test's limit may tip, of few pixels
        was, now = ({"mask_certificate": part["mask_certificate"]} for part in (recorded, again))
        yield from differences(was, now, rtol=0.0, atol=_PROOF)
    raised = {flag["name"] for flag in recorded.get("flags", ())}
    for check in again.get("checks", ()):
        one_image = 1.0 if check["threshold"] >= 1 else 1 / (check["n_images"] or record.n)
        surely = check["value"] > check["threshold"] + one_image
        if surely and check["name"] not in raised:
            yield line(f"flag {check['name']}", None, check["value"])
    was, now = (part.get("audit", {}).get("max_size", ()) for part in (recorded, again))
    yield from differences({"audit.max_size": was}, {"audit.max_size": now}, rtol=_EFFORT)
    for name, spent in again.get("cost", {}).items():
        if not same(recorded["cost"][name], spent, rtol=_EFFORT):
            yield line(f"cost.{name}", recorded["cost"][name], spent)


def _fixed(record: Record, claim: Recomputed) -> Iterator[str]:
    """Yield differences of entries that are the same on every machine."""
    recorded = entries(record, claim.fixed)
    if "checks" in recorded:
        recorded["checks"] = [(check["name"], check["threshold"]) for check in recorded["checks"]]
    for name, value in claim.fixed.items():
        if name == "checks":
            was, now = ([check for check, _ in part] for part in (recorded[name], value))
            if recorded[name] != value:
                yield line("checks", was, now)
        elif name == "threshold":  # it is one of the scores
            yield from differences({name: recorded[name]}, {name: value}, atol=1e-3)
        else:
            near = 1e-4 if name == "radii" else 0.0
            yield from differences({name: recorded[name]}, {name: value}, rtol=near, atol=0.0)
    if claim.fixed["audit"]["over_budget"]:
        yield f"{claim.fixed['audit']['over_budget']} images are outside their ball"


def _other_rows(before: pd.DataFrame, claim: Recomputed) -> NDArray[np.bool_]:
    """Return which rows have another outcome."""
    names: tuple[str, ...] = OUTCOMES
    if claim.saved:
        names = ("success", "correct") if claim.decided else ("success",)
    return other_outcome(before, claim.samples, names)


def _unmoved(stored: Stored, claim: Recomputed) -> Iterator[str]:
    """Yield differences that rounding cannot cause: in names, truth and the clean images."""
    before, after = stored.samples, claim.samples
    if set(before.columns) != set(after.columns):
        yield line("columns of the samples", sorted(before.columns), sorted(after.columns))
    clean = (before["eps"] == 0).to_numpy()
    claimed, shown_success = before["success"].to_numpy(bool), after["success"].to_numpy(bool)
    if claim.saved and (surplus := before.loc[shown_success & ~claimed, "sample"].nunique()):
        yield f"the saved images succeed on {surplus} samples recorded as robust"
    for name in (*_FIXED, *(n for n in map(str, before) if n.startswith(SUBGROUP))):
        if name in before and name in after:
            rows = clean & np.array(
                [not same(*pair) for pair in zip(before[name], after[name], strict=True)]
            )
            yield from _differing(name, before, after, rows)
    if "scores" in before and "scores" in after:
        yield from _differing(
            "scores", before, after, clean & (distances("scores", before, after) > CLEAN)
        )


def _flips(
    stored: Stored, claim: Recomputed, differs: NDArray[np.bool_], noise: Noise
) -> Iterator[str]:
    """Yield a line if more outcomes differ than rounding explains, or by more than it explains."""
    before, after = stored.samples, claim.samples
    differing = before.loc[differs, "sample"].nunique()
    if differing > noise.samples:
        allowed = f", rounding explains {noise.samples}" if noise.samples else ""
        rows = before[differs].iloc[0]
        yield (
            f"{differing} samples have another outcome{allowed}, such as "
            f"{plain(str(rows['sample']))} at eps {written(float(rows['eps']))}"
        )
    for name, near in noise.flipped.items():
        if name in before and name in after:
            far = differs & (distances(name, before, after) > near)
            yield from _differing(name, before, after, far)


def _columns(stored: Stored, claim: Recomputed, noise: Noise) -> Iterator[str]:
    """Yield a line for every column whose values differ by more than `noise` allows."""
    before, after = stored.samples, claim.samples
    differs = _other_rows(before, claim)
    claimed, shown_success = before["success"].to_numpy(bool), after["success"].to_numpy(bool)
    strays = before["sample"].isin(before.loc[differs, "sample"]).to_numpy()
    known = np.ones(len(before), dtype=np.bool_) if noise.samples == 0 else ~strays
    if claim.saved and not claim.masks:  # no robust images were saved
        known = (before["eps"] == 0).to_numpy() | (claimed & shown_success)
    for name, near in noise.values.items():
        if name not in before or name not in after:
            continue
        rows = known
        if name == "distance" and claim.saved:  # only of successes within the ladder
            rows = claimed & shown_success
        yield from _differing(name, before, after, rows & (distances(name, before, after) > near))
    if claim.saved:
        for name in OUTCOMES:
            if name in before and name in after:
                pairs = zip(before[name], after[name], strict=True)
                differ = np.array([not same(*pair) for pair in pairs], dtype=np.bool_)
                yield from _differing(name, before, after, differ & known & ~differs)


def _differing(
    name: str, before: pd.DataFrame, after: pd.DataFrame, rows: NDArray[np.bool_]
) -> Iterator[str]:
    """Yield a line with the name of a column and a row in which it differs, if any does."""
    if rows.any():
        first, again = before[rows].iloc[0], after[rows].iloc[0]
        where = f"{name} of {before.loc[rows, 'sample'].nunique()} samples, such as "
        where += f"{plain(str(first['sample']))} at eps {written(float(first['eps']))}"
        yield line(where, _value(first[name]), _value(again[name]))


def _value(value: Any) -> object:  # noqa: ANN401 - of any column
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _metrics(stored: Stored, claim: Recomputed, *, outcomes: int) -> Iterator[str]:
    """Yield the metrics that are not as recorded; if outcomes differ, only beyond chance."""
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


def _main_first(lines: Iterator[str]) -> list[str]:
    """Return lines on metrics, those on a board's ranking metric first."""
    return sorted(lines, key=lambda text: not text.startswith(("accuracy at", "dice at")))


def _fewest(stored: Stored) -> int:
    """Return the smallest number of images behind a metric: of one class, or of those attacked."""
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
    return min((size for size in sizes if size), default=1)


def _alike(name: str, want: Estimate, got: Estimate, step: float, outcomes: int) -> bool:
    """Whether each of two estimates is in the interval of the other, or one image explains both.

    The recorded interval alone does not suffice, since the author of the record could widen it.

    Args:
        name: name of the metric.
        want: the recorded estimate.
        got: the recomputed estimate.
        step: largest change by one image, since the interval of 1 of n excludes 0.
        outcomes: number of samples whose outcome differs.
    """
    # NaN: one of the two covers no image
    if np.isnan(want.value) or np.isnan(got.value):
        both = bool(np.isnan(want.value) and np.isnan(got.value))
        return both or name in FOUND or name.startswith("flips")
    apart = abs(want.value - got.value)
    if name == "positives":  # a count
        return apart <= outcomes
    if apart <= step * (STUDIES if name == "false_alarms" else 1) + EXACT:
        return True
    pairs = ((want, got), (got, want))
    return all(b.low - EXACT <= a.value <= b.high + EXACT for a, b in pairs)


def _invalid(record: Record, planned: ResolvedCase, device: str) -> Finding:
    try:
        again = run_again(planned, device=device).record
    except InvalidOutputError as error:  # raised while pictures are drawn, outside the run
        return Finding("match", lines=(str(error),))
    if again.status == "invalid":
        before, after = (version.model_dump(include=set(CARDS)) for version in (record, again))
        changed_cards = (name for name in CARDS if before[name] != after[name])
        lines = [f"{name} is not that of the case" for name in changed_cards]
        return Finding("mismatch" if lines else "match", lines=(*lines, again.reason))
    return Finding(
        "mismatch", lines=(f"recorded as invalid ({record.reason}), but the rerun is valid",)
    )


def _few(lines: list[str]) -> tuple[str, ...]:
    surplus = len(lines) - _MOST
    return tuple(lines if surplus <= 0 else [*lines[: _MOST - 1], f"and {surplus + 1} more"])
