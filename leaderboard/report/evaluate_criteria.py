"""Judge: acceptance criteria held against the evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import DatasetCard

from ..wording.text import NORMS, THREATS, plain, radii, radius
from ..wording.threat_model import metric_unit, objective_words
from .criteria import METRICS, Criterion, Given
from .criterion_value import judged_end, measured, of_records, over_goals
from .document import Criteria, Judged, Outcome, Verdict
from .goals import goal_of
from .model_boards import Chosen
from .pooled_runs import Pool, alike, pools, rung_of
from .suggestions import unknown_names, unknown_part

ROUNDING = 1e-9  # a share equal to its limit meets it, whatever the last bit says
_GRAVEST: tuple[Verdict, ...] = ("not met", "not tested", "met")
_FINE = ("ranked", "control")


class _Group(NamedTuple):
    """Boards of a model that a criterion fits and whose images may be held together."""

    boards: list[Chosen]
    runs: list[Stored]


def judge(given: Given, chosen: list[Chosen], doubts: tuple[str, ...] = ()) -> Criteria:
    """Return the criteria of a model with their verdicts, and whether the file is older than it.

    A criterion keeps the number of its place in the file; those of other models are counted.

    Args:
        given: the file.
        chosen: all boards of the model.
        doubts: on whatever is judged: records that could not be read.
    """
    started = [run.record.provenance.started for one in chosen for run in one.runs.values()]
    first, victim = min(started), chosen[0].row.key.victim
    own = [one for one in enumerate(given.criteria, 1) if one[1].victim in ("", victim)]
    return Criteria(
        file=plain(given.file),
        sha256=given.sha256,
        modified=given.modified,
        first_record=first,
        written_after=_time(given.modified) > _time(first),
        judged=tuple(_judged(f"C{place}", one, chosen, doubts) for place, one in own),
        others=len(given.criteria) - len(own),
    )


def _time(stamp: str) -> str:
    """Return a time of UTC that sorts: records write +00:00 or Z."""
    return stamp.replace("Z", "+00:00")


def _judged(
    number: str, criterion: Criterion, chosen: list[Chosen], doubts: tuple[str, ...]
) -> Judged:
    groups = _groups(criterion, chosen)
    outcomes = [outcome for group in groups for outcome in _outcomes(criterion, group)]
    outcomes += _untested(criterion, chosen, groups)
    outcomes = [one.model_copy(update={"doubts": (*doubts, *one.doubts)}) for one in outcomes]
    verdicts = [outcome.verdict for outcome in outcomes]
    stated = criterion.model_dump(exclude_unset=True)
    return Judged(
        number=number,
        words=words(criterion, chosen, single=any(outcome.single for outcome in outcomes)),
        stated={key: value for key, value in stated.items() if value is not None},
        basis=criterion.judged_on,
        kind=METRICS[criterion.base][1],
        verdict=next(verdict for verdict in _GRAVEST if verdict in verdicts),
        doubted=any(outcome.doubts for outcome in outcomes),
        outcomes=tuple(outcomes),
    )


def words(criterion: Criterion, chosen: Sequence[Chosen] = (), *, single: bool = False) -> str:
    """Return a criterion in words.

    Args:
        criterion: as read.
        chosen: boards of the model: their data say what an objective is called.
        single: whether a worst case is that of the worst single attack, not of each image.
    """
    alone = single or of_records(criterion)
    worst = "the worst single attack" if alone else "the worst case of all attacks"
    against = {"clean": "on clean images", "worst_case": f"under {worst}"}.get(
        criterion.attack, f"under {criterion.attack}"
    )
    if criterion.attack != "clean":
        against += f" at ε = {radius(criterion.radius, criterion.norm)}"
        aim = _aim(criterion, chosen)
        against += f" ({THREATS[criterion.threat]}, {NORMS[criterion.norm]}, {aim})"
    way = "at least" if criterion.higher else "at most"
    behind = "" if criterion.defense == "none" else f", behind {criterion.defense}"
    where = f", {criterion.dataset}" if criterion.dataset else ", every dataset"
    head = f"{criterion.name}: " if criterion.name else ""
    percent = METRICS[criterion.base][1] == "percent"
    limit = f"{criterion.limit:g}" + (f" ({100 * criterion.limit:g} %)" if percent else "")
    limit += _limit_unit(criterion, chosen)
    return plain(f"{head}{criterion.metric} {way} {limit} {against}{where}{behind}")


def _cards(criterion: Criterion, chosen: Iterable[Chosen]) -> list[DatasetCard]:
    """Return the cards of the data that a criterion is about."""
    cards = {one.board.dataset.name: one.board.dataset for one in chosen}
    return [card for name, card in cards.items() if criterion.dataset in ("", name)]


def _aim(criterion: Criterion, chosen: Iterable[Chosen]) -> str:
    """Return what the attackers want in words."""
    cards = _cards(criterion, chosen)
    if any(over_goals(criterion, card) for card in cards):
        return "every objective"
    names = {objective_words(criterion.objective, card) for card in cards}
    return names.pop() if len(names) == 1 else criterion.objective


def _limit_unit(criterion: Criterion, chosen: Iterable[Chosen]) -> str:
    """Return what a limit is counted in, with a space before it; empty of shares and scores.

    A length is in mm where the size of a pixel is known and in pixels where not, so that one limit
    may mean two things: then both are named.
    """
    found = dict.fromkeys(_unit(criterion, card) for card in _cards(criterion, chosen))
    named = [unit for unit in found if unit]
    if len(named) > 1:
        return f" (in the unit of each dataset: {', '.join(named)})"
    return f" {named[0]}" if named else ""


def _unit(criterion: Criterion, card: DatasetCard) -> str:
    alarms = criterion.base == "false_alarms"
    return "per 1,000" if alarms else metric_unit(criterion.metric, card)


def _groups(criterion: Criterion, chosen: list[Chosen]) -> list[_Group]:
    """Return the boards a criterion fits, together where their images may be held together."""
    found: dict[tuple[object, ...], _Group] = {}
    for one in chosen:
        if not _fits(criterion, one):
            continue
        case = next(iter(one.runs.values())).record.case
        group = found.setdefault(_key(criterion, case), _Group([], []))
        group.boards.append(one)
        group.runs.extend(_under(criterion, one))
    wanted = goal_of(criterion.objective)
    return [
        group
        for group in found.values()
        if criterion.objective == "untargeted"
        or criterion.attack == "clean"
        or any(goal_of(one.board.objective) == wanted for one in group.boards)
    ]


def _key(criterion: Criterion, case: Case) -> tuple[object, ...]:
    if criterion.attack != "clean":
        return alike(case)
    same = {"threat": "white_box", "norm": "linf", "budget": "absolute", "channels": {}}
    return alike(case.model_copy(update=same))


def _fits(criterion: Criterion, one: Chosen) -> bool:
    board = one.board
    if criterion.dataset and board.dataset.name != criterion.dataset:
        return False
    if one.row.key.defense != criterion.defense:
        return False
    if criterion.attack == "clean":
        return True
    if board.channels or (board.threat, board.norm) != (criterion.threat, criterion.norm):
        return False
    same = goal_of(board.objective) == goal_of(criterion.objective)
    goal = same or over_goals(criterion, board.dataset)
    named = criterion.attack == "worst_case" or bool(_under(criterion, one))
    there = rung_of(criterion.radius, board.ladder) is not None
    return goal and board.budget == "absolute" and there and named


def _under(criterion: Criterion, one: Chosen) -> list[Stored]:
    """Return the runs of a board that a criterion is about, valid or not.

    The attacker knows the defense; clean images are the same to each of them.
    """
    return [
        run
        for column, run in one.runs.items()
        if criterion.attack == "clean"
        or (
            column not in one.row.oblivious
            and criterion.attack in ("worst_case", run.record.case.attack)
        )
    ]


def _untested(criterion: Criterion, chosen: list[Chosen], groups: list[_Group]) -> list[Outcome]:
    """Return an outcome for each data and weights of the model that no board fits."""
    fitting = {_state(one) for group in groups for one in group.boards}
    mine = [one for one in chosen if criterion.dataset in ("", one.board.dataset.name)]
    states: dict[tuple[str, str], list[Chosen]] = {}
    for one in mine:
        states.setdefault(_state(one), []).append(one)
    names = unknown_names(criterion, chosen)
    found = [
        _not_run(
            plain(boards[0].board.dataset.heading),
            boards,
            names or unknown_part(criterion.metric, boards[0].board.dataset),
        )
        for state, boards in states.items()
        if state not in fitting
    ]
    return found if mine else [_not_run(plain(criterion.dataset), chosen, names)]


def _state(one: Chosen) -> tuple[str, str]:
    return one.board.dataset.name, one.row.key.weights


def _not_run(heading: str, chosen: list[Chosen], names: str) -> Outcome:
    there = dict.fromkeys(
        f"{one.board.dataset.name}, {one.board.setting}, behind {one.row.key.defense}, "
        f"ε {radii(one.board.ladder, one.board.norm, one.board.budget)}: "
        f"{', '.join(_attacks(one))}"
        for one in chosen
    )
    why = names or (
        "no record of this dataset, attack, radius, threat model, norm, objective and defense"
    )
    first = next(iter(there))
    more = f" and {len(there) - 1} more" if len(there) > 1 else ""
    why = plain(f"{why}; there is {first}{more}")
    return Outcome(heading=heading, verdict="not tested", why=why)


def _attacks(one: Chosen) -> list[str]:
    return list(dict.fromkeys(run.record.case.attack for run in one.runs.values()))


def _outcomes(criterion: Criterion, group: _Group) -> list[Outcome]:
    """Return an outcome for each set of images of a group."""
    valid = [run for run in group.runs if run.record.status == "ok"]
    clean = criterion.attack == "clean"
    if not valid or (len(valid) < len(group.runs) and not clean):
        first = group.boards[0]
        return [
            Outcome(
                heading=plain(first.board.dataset.heading),
                anchor=first.anchor,
                verdict="not tested",
                why="a record of it is invalid, or its attacker was oblivious",
                doubts=_doubts(group.boards),
                records=tuple(i for one in group.boards for i in one.ids),
            )
        ]
    levels = (0.0,) if clean else (0.0, criterion.radius)
    return [_outcome(criterion, group, pool) for pool in pools(valid, levels, largest=clean)]


def _outcome(criterion: Criterion, group: _Group, pool: Pool) -> Outcome:
    found = measured(criterion, pool)
    home = [one for one in group.boards if pool.home.record.case_id in one.ids]
    rest = [one for one in group.boards if one not in home]
    if criterion.attack == "clean":  # flags of attacks are none of the clean images
        rest = [one for one in rest if one.row.standing == "invalid"]
    else:
        rest = [one for one in rest if set(one.ids) & set(pool.ids)]
    boards = home + rest
    outcome = Outcome(
        heading=plain(pool.card.heading),
        anchor=boards[0].anchor,
        verdict="not tested",
        images=len(pool.images),
        single=found.single,
        unit=_unit(criterion, pool.card),
        doubts=(*_doubts(boards), *map(plain, found.doubts)),
        records=found.records or pool.ids,
    )
    estimate = found.estimate
    if estimate is None or math.isnan(judged := judged_end(criterion, estimate)):
        why = plain(found.why or f"{criterion.metric} is undefined here")
        return outcome.model_copy(update={"why": why})
    held = judged - criterion.limit if criterion.higher else criterion.limit - judged
    verdict: Verdict = "met" if held >= -ROUNDING else "not met"
    return outcome.model_copy(update={"verdict": verdict, "judged": judged, "estimate": estimate})


def _doubts(boards: list[Chosen]) -> tuple[str, ...]:
    reasons = [r for one in boards if one.row.standing not in _FINE for r in one.row.reasons]
    return tuple(dict.fromkeys(reasons))
