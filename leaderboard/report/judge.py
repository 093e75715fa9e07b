"""Judge: acceptance criteria held against the evidence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from robustbench_med.bench.record import Estimate

from ..text import NORMS, THREATS, plain, radius
from .calls import directed_flips, recalls, region_dice, valid_runs
from .chosen import Chosen
from .criteria import METRICS, Criterion, Given
from .document import Criteria, Judged, Outcome, Verdict
from .evidence import hardest

ROUNDING = 1e-9  # a share equal to its limit meets it, whatever the last bit says
_GRAVEST: tuple[Verdict, ...] = ("not met", "not tested", "met")


class Found(NamedTuple):
    """What a criterion is judged on; `why` says why there is nothing."""

    estimate: Estimate | None
    records: tuple[str, ...] = ()
    why: str = ""


def judge(given: Given, chosen: list[Chosen]) -> Criteria:
    """Return every criterion with its verdict, and whether the file is older than the records."""
    started = [run.record.provenance.started for one in chosen for run in one.runs.values()]
    first = min(started)
    return Criteria(
        file=plain(given.file),
        sha256=given.sha256,
        modified=given.modified,
        first_record=first,
        written_after=_time(given.modified) > _time(first),
        judged=tuple(
            _judged(f"C{place}", criterion, chosen)
            for place, criterion in enumerate(given.criteria, 1)
        ),
    )


def _time(stamp: str) -> str:
    """Return a time of UTC that sorts: records write +00:00 or Z."""
    return stamp.replace("Z", "+00:00")


def _judged(number: str, criterion: Criterion, chosen: list[Chosen]) -> Judged:
    fits = [one for one in chosen if _fits(criterion, one)]
    if criterion.attack == "clean":
        fits = _largest(fits)
    outcomes = [_outcome(criterion, one) for one in fits] or [_untested(criterion, chosen)]
    verdicts = [outcome.verdict for outcome in outcomes]
    stated = criterion.model_dump(exclude_unset=True)
    return Judged(
        number=number,
        words=words(criterion),
        stated={key: value for key, value in stated.items() if value is not None},
        basis=criterion.judged_on,
        kind=METRICS[criterion.base][1],
        verdict=next(verdict for verdict in _GRAVEST if verdict in verdicts),
        doubted=any(outcome.doubts for outcome in outcomes),
        outcomes=tuple(outcomes),
    )


def _largest(fits: list[Chosen]) -> list[Chosen]:
    """Return of boards with the same clean images, or some of them, the one with the most."""
    kept: dict[tuple[object, ...], Chosen] = {}
    for one in fits:
        key = (one.board.dataset.name, *one.row.key._replace(n=None))
        if key not in kept or one.row.images > kept[key].row.images:
            kept[key] = one
    return list(kept.values())


def words(criterion: Criterion) -> str:
    """Return a criterion in words."""
    against = {
        "clean": "on clean images",
        "worst_case": "under the worst case of all attacks",
    }.get(criterion.attack, f"under {criterion.attack}")
    if criterion.attack != "clean":
        against += f" at ε = {radius(criterion.radius, criterion.norm)}"
        against += f" ({THREATS[criterion.threat]}, {NORMS[criterion.norm]})"
    way = "at least" if criterion.higher else "at most"
    behind = "" if criterion.defense == "none" else f", behind {criterion.defense}"
    where = f", {criterion.dataset}" if criterion.dataset else ", every dataset"
    head = f"{criterion.name}: " if criterion.name else ""
    percent = METRICS[criterion.base][1] == "percent"
    limit = f"{criterion.limit:g}" + (f" ({100 * criterion.limit:g} %)" if percent else "")
    return plain(f"{head}{criterion.metric} {way} {limit} {against}{where}{behind}")


def _fits(criterion: Criterion, one: Chosen) -> bool:
    board = one.board
    if criterion.dataset and board.dataset.name != criterion.dataset:
        return False
    if one.row.key.defense != criterion.defense or board.channels:
        return False
    if criterion.attack == "clean":
        return board.objective == criterion.objective
    setting = (board.objective, board.threat, board.norm)
    same = setting == (criterion.objective, criterion.threat, criterion.norm)
    named = criterion.attack == "worst_case" or bool(_under(criterion, one).runs)
    return same and board.budget == "absolute" and _rung(criterion, one) is not None and named


def _rung(criterion: Criterion, one: Chosen) -> int | None:
    """Return the rung of the criterion's radius, 0 = clean; None where it is not on the ladder."""
    levels = (0.0, *one.board.ladder)
    same = (i for i, e in enumerate(levels) if math.isclose(e, criterion.radius, rel_tol=1e-6))
    return next(same, None)


def _untested(criterion: Criterion, chosen: list[Chosen]) -> Outcome:
    there = dict.fromkeys(
        f"{one.board.dataset.name}, {one.board.setting}, behind {one.row.key.defense}, "
        f"ε {radius(one.board.ladder[0], one.board.norm)} to "
        f"{radius(one.board.ladder[-1], one.board.norm)}: {', '.join(_attacks(one))}"
        for one in chosen
    )
    why = "no record of this dataset, attack, radius, threat model, norm, objective and defense"
    first = next(iter(there))
    more = f" and {len(there) - 1} more" if len(there) > 1 else ""
    return Outcome(
        heading=plain(criterion.dataset) or "every dataset",
        verdict="not tested",
        why=plain(f"{why}; there is {first}{more}"),
    )


def _attacks(one: Chosen) -> list[str]:
    return list(dict.fromkeys(run.record.case.attack for run in one.runs.values()))


def _under(criterion: Criterion, one: Chosen) -> Chosen:
    """Return the board with only the runs of the attack named; its attacker knows the defense."""
    if criterion.attack in ("worst_case", "clean"):
        return one
    runs = {
        column: run
        for column, run in one.runs.items()
        if run.record.case.attack == criterion.attack and column not in one.row.oblivious
    }
    return one._replace(row=replace(one.row, runs=runs))


def _outcome(criterion: Criterion, one: Chosen) -> Outcome:
    found = _measured(criterion, one, _rung(criterion, one) or 0)
    doubts = () if one.row.standing in ("ranked", "control") else one.row.reasons
    estimate = found.estimate
    if estimate is None or math.isnan(judged := _end(criterion, estimate)):
        why = found.why or f"{criterion.metric} is undefined here"
        return Outcome(
            heading=plain(one.board.dataset.heading),
            anchor=one.anchor,
            verdict="not tested",
            why=why,
            doubts=doubts,
            records=found.records or one.ids,
        )
    held = judged - criterion.limit if criterion.higher else criterion.limit - judged
    return Outcome(
        heading=plain(one.board.dataset.heading),
        anchor=one.anchor,
        verdict="met" if held >= -ROUNDING else "not met",
        judged=judged,
        estimate=estimate,
        doubts=doubts,
        records=found.records,
    )


def _end(criterion: Criterion, estimate: Estimate) -> float:
    """Return the number of an estimate that a criterion judges."""
    return {"low": estimate.low, "value": estimate.value, "high": estimate.high}[
        criterion.judged_on
    ]


def _measured(criterion: Criterion, one: Chosen, rung: int) -> Found:
    """Return the estimate of a criterion's metric on a board, image by image where that is kept."""
    narrowed = _under(criterion, one)
    runs = valid_runs(narrowed.row)
    ids = tuple(run.record.case_id for run in runs)
    if not runs:
        return Found(None, one.ids, "a record of it is invalid, or its attacker was oblivious")
    card, metric = one.board.dataset, criterion.metric
    if metric == one.board.score.metric:
        every = (one.row.clean, *one.row.worst)
        if narrowed is one:
            return Found(every[rung], ids)
        columns = [one.row.scores[column][rung - 1] for column in narrowed.runs]
        return Found(min(columns, key=lambda estimate: _end(criterion, estimate)), ids)
    kept = {
        found.name: found
        for made in (recalls, directed_flips, region_dice)
        for found in made(narrowed.row, card)
    }
    if metric in kept and not (rung == 0 and metric.startswith("flips")):
        return Found(kept[metric].estimates[rung], ids)
    worst = hardest(runs, metric, rung, higher=criterion.higher, end=criterion.judged_on)
    if worst is None:
        return Found(None, ids, f"the records hold no {metric} of {plain(card.title)}")
    return Found(worst[0], (worst[1].record.case_id,))
