"""Judge a model by acceptance criteria."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import DatasetCard

from ..boards.board import Board
from ..wording.text import NORMS, THREATS, plain, radii, radius, sign_of
from ..wording.threat_model import metric_unit, objective_words
from .criteria import METRICS, CriteriaFile, Criterion
from .criterion_critical import shared_levels
from .criterion_subgroups import Part, parts
from .criterion_value import judged_end, of_records, over_goals
from .document import Criteria, Judged, Outcome, Verdict
from .goals import goal_of
from .model_boards import ModelBoard
from .pooled_runs import Pool, alike, pools, rung_of
from .suggestions import unknown_names, unknown_part

ROUNDING = 1e-9  # a share that equals its limit up to rounding meets it
_GRAVEST: tuple[Verdict, ...] = ("not met", "not tested", "met")
_FINE = ("ranked", "control")


class _Group(NamedTuple):
    """Boards of a model that a criterion is about and whose images can be pooled."""

    boards: list[ModelBoard]
    runs: list[Stored]


def evaluate_criteria(
    file: CriteriaFile, model_boards: list[ModelBoard], doubts: tuple[str, ...] = ()
) -> Criteria:
    """Return the criteria with their verdicts on a model, and whether the file is old enough.

    The number of a criterion is its position in the file. Criteria for other models are counted.

    Args:
        file: the file.
        model_boards: all boards of the model.
        doubts: doubts about every verdict, for example because records could not be read.
    """
    started = [
        run.record.provenance.started
        for model_board in model_boards
        for run in model_board.runs.values()
    ]
    first, victim = min(started), model_boards[0].row.key.victim
    numbered = [
        (number, criterion)
        for number, criterion in enumerate(file.criteria, 1)
        if criterion.victim in ("", victim)
    ]
    return Criteria(
        file=plain(file.file),
        sha256=file.sha256,
        modified=file.modified,
        first_record=first,
        written_after=_time(file.modified) > _time(first),
        judged=tuple(
            _judged(f"C{number}", criterion, model_boards, doubts) for number, criterion in numbered
        ),
        others=len(file.criteria) - len(numbered),
    )


def _time(stamp: str) -> str:
    """Return a UTC time in a form that sorts, because records end it with +00:00 or with Z."""
    return stamp.replace("Z", "+00:00")


def _judged(
    number: str, criterion: Criterion, model_boards: list[ModelBoard], doubts: tuple[str, ...]
) -> Judged:
    groups = _groups(criterion, model_boards)
    outcomes = [outcome for group in groups for outcome in _outcomes(criterion, group)]
    outcomes += _untested(criterion, model_boards, groups)
    outcomes = [
        outcome.model_copy(update={"doubts": (*doubts, *outcome.doubts)}) for outcome in outcomes
    ]
    verdicts = [outcome.verdict for outcome in outcomes]
    stated = criterion.model_dump(exclude_unset=True)
    return Judged(
        number=number,
        words=words(criterion, model_boards, single=any(outcome.single for outcome in outcomes)),
        stated={key: value for key, value in stated.items() if value is not None},
        basis=criterion.judged_on,
        kind=_kind(criterion),
        verdict=next(verdict for verdict in _GRAVEST if verdict in verdicts),
        doubted=any(outcome.doubts for outcome in outcomes),
        outcomes=tuple(outcomes),
    )


def words(
    criterion: Criterion, model_boards: Sequence[ModelBoard] = (), *, single: bool = False
) -> str:
    """Return a criterion in words.

    Args:
        criterion: the criterion.
        model_boards: the boards of the model, whose datasets name the goal of an objective.
        single: whether the worst case is that of the worst single attack, and not image by image.
    """
    alone = single or of_records(criterion)
    worst = "the worst single attack" if alone else "the worst case of all attacks"
    against = {"clean": "on clean images", "worst_case": f"under {worst}"}.get(
        criterion.attack, f"under {criterion.attack}"
    )
    if criterion.attack != "clean":
        if not criterion.critical:
            against += f" at {sign_of(criterion.norm)} {radius(criterion.radius, criterion.norm)}"
        shift = criterion.threat == "shift"
        words = [THREATS[criterion.threat], *([] if shift else [NORMS[criterion.norm]])]
        words.append(_aim(criterion, model_boards))
        against += f" ({', '.join(words)})"
    way = "at least" if criterion.higher else "at most"
    behind = "" if criterion.defense == "none" else f", behind {criterion.defense}"
    where = f", {criterion.dataset}" if criterion.dataset else ", every dataset"
    head = f"{criterion.name}: " if criterion.name else ""
    percent = METRICS[criterion.base][1] == "percent"
    limit = f"{criterion.limit:g}" + (f" ({100 * criterion.limit:g} %)" if percent else "")
    limit += _limit_unit(criterion, model_boards)
    metric = criterion.metric
    if criterion.critical:
        limit = radius(criterion.limit, criterion.norm)
        usual = criterion.of or "accuracy or dice"
        metric = f"{metric}, where {usual} falls below {criterion.critical_level:g},"
    each = f" in each subgroup of {criterion.subgroup}" if criterion.subgroup else ""
    return plain(f"{head}{metric}{each} {way} {limit} {against}{where}{behind}")


def _kind(criterion: Criterion) -> str:
    """Return the format of a criterion's value; a critical radius in L∞ is in parts of 255."""
    grey = criterion.critical and criterion.norm == "linf"
    return "grey" if grey else METRICS[criterion.base][1]


def _cards(criterion: Criterion, model_boards: Iterable[ModelBoard]) -> list[DatasetCard]:
    """Return the cards of the datasets that a criterion is about."""
    cards = {
        model_board.board.dataset.name: model_board.board.dataset for model_board in model_boards
    }
    return [card for name, card in cards.items() if criterion.dataset in ("", name)]


def _aim(criterion: Criterion, model_boards: Iterable[ModelBoard]) -> str:
    """Return the goal of the attackers in words."""
    cards = _cards(criterion, model_boards)
    if any(over_goals(criterion, card) for card in cards):
        return "every objective"
    names = {objective_words(criterion.objective, card) for card in cards}
    return names.pop() if len(names) == 1 else criterion.objective


def _limit_unit(criterion: Criterion, model_boards: Iterable[ModelBoard]) -> str:
    """Return the unit of a limit after a space; empty for shares and scores.

    A length is in mm if the size of a pixel is known, else in pixels. If a limit covers datasets of
    both kinds, both units are named.
    """
    units = dict.fromkeys(_unit(criterion, card) for card in _cards(criterion, model_boards))
    named = [unit for unit in units if unit]
    if len(named) > 1:
        return f" (in the unit of each dataset: {', '.join(named)})"
    return f" {named[0]}" if named else ""


def _unit(criterion: Criterion, card: DatasetCard) -> str:
    if criterion.critical:
        return "/255" if criterion.norm == "linf" else ""
    alarms = criterion.base == "false_alarms"
    return "per 1,000" if alarms else metric_unit(criterion.metric, card)


def _groups(criterion: Criterion, model_boards: list[ModelBoard]) -> list[_Group]:
    """Return the boards that a criterion is about, grouped if their images can be pooled."""
    groups: dict[tuple[object, ...], _Group] = {}
    for model_board in model_boards:
        if not _fits(criterion, model_board):
            continue
        case = next(iter(model_board.runs.values())).record.case
        group = groups.setdefault(_key(criterion, case), _Group([], []))
        group.boards.append(model_board)
        group.runs.extend(_under(criterion, model_board))
    goal = goal_of(criterion.objective)
    return [
        group
        for group in groups.values()
        if criterion.objective == "untargeted"
        or criterion.attack == "clean"
        or any(goal_of(model_board.board.objective) == goal for model_board in group.boards)
    ]


def _key(criterion: Criterion, case: Case) -> tuple[object, ...]:
    if criterion.attack != "clean":
        return alike(case)
    same = {"threat": "white_box", "norm": "linf", "budget": "absolute", "channels": {}}
    return alike(case.model_copy(update=same))


def _fits(criterion: Criterion, model_board: ModelBoard) -> bool:
    board = model_board.board
    if criterion.dataset and board.dataset.name != criterion.dataset:
        return False
    if model_board.row.key.defense != criterion.defense:
        return False
    if criterion.attack == "clean":
        return True
    if board.channels or (board.threat, board.norm) != (criterion.threat, criterion.norm):
        return False
    same = goal_of(board.objective) == goal_of(criterion.objective)
    goal = same or over_goals(criterion, board.dataset)
    named = criterion.attack == "worst_case" or bool(_under(criterion, model_board))
    there = criterion.critical or rung_of(criterion.radius, board.ladder) is not None
    return goal and board.budget == "absolute" and there and named


def _under(criterion: Criterion, model_board: ModelBoard) -> list[Stored]:
    """Return the runs of a board that a criterion is about, valid or not.

    Oblivious attackers are left out, except if the criterion is about clean images.
    """
    return [
        run
        for column, run in model_board.runs.items()
        if criterion.attack == "clean"
        or (
            column not in model_board.row.oblivious
            and criterion.attack in ("worst_case", run.record.case.attack)
        )
    ]


def _untested(
    criterion: Criterion, model_boards: list[ModelBoard], groups: list[_Group]
) -> list[Outcome]:
    """Return an outcome for each dataset and state of the weights without a fitting board."""
    fitting = {_state(model_board) for group in groups for model_board in group.boards}
    mine = [
        model_board
        for model_board in model_boards
        if criterion.dataset in ("", model_board.board.dataset.name)
    ]
    states: dict[tuple[str, str], list[ModelBoard]] = {}
    for model_board in mine:
        states.setdefault(_state(model_board), []).append(model_board)
    names = unknown_names(criterion, model_boards)
    outcomes = [
        _not_run(
            plain(boards[0].board.dataset.heading),
            boards,
            names or unknown_part(criterion.metric, boards[0].board.dataset),
        )
        for state, boards in states.items()
        if state not in fitting
    ]
    return outcomes if mine else [_not_run(plain(criterion.dataset), model_boards, names)]


def _state(model_board: ModelBoard) -> tuple[str, str]:
    return model_board.board.dataset.name, model_board.row.key.weights


def _tried(board: Board) -> str:
    ladder = radii(board.ladder, board.norm, board.budget)
    return f"severity {ladder}" if board.shift else f"ε {ladder}"


def _not_run(heading: str, model_boards: list[ModelBoard], names: str) -> Outcome:
    there = dict.fromkeys(
        f"{model_board.board.dataset.name}, {model_board.board.setting}, "
        f"behind {model_board.row.key.defense}, "
        f"{_tried(model_board.board)}: "
        f"{', '.join(_attacks(model_board))}"
        for model_board in model_boards
    )
    why = names or (
        "there is no record of this dataset, attack, radius, threat model, norm, objective and "
        "defense"
    )
    first = next(iter(there))
    more = f", and {len(there) - 1} more" if len(there) > 1 else ""
    why = plain(f"{why}; there are records of {first}{more}")
    return Outcome(heading=heading, verdict="not tested", why=why)


def _attacks(model_board: ModelBoard) -> list[str]:
    return list(dict.fromkeys(run.record.case.attack for run in model_board.runs.values()))


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
                why="a record is invalid, or all attackers were oblivious",
                doubts=_doubts(group.boards),
                records=tuple(i for model_board in group.boards for i in model_board.ids),
            )
        ]
    levels: tuple[float, ...] = (0.0,) if clean else (0.0, criterion.radius)
    if criterion.critical:
        levels = shared_levels(valid)
    return [
        _outcome(criterion, group, pool, part)
        for pool in pools(valid, levels, largest=clean)
        for part in parts(criterion, pool)
    ]


def _outcome(criterion: Criterion, group: _Group, pool: Pool, part: Part) -> Outcome:
    result = part.value
    home = [
        model_board for model_board in group.boards if pool.home.record.case_id in model_board.ids
    ]
    others = [model_board for model_board in group.boards if model_board not in home]
    if criterion.attack == "clean":  # the flags of attacks do not concern the clean images
        others = [model_board for model_board in others if model_board.row.standing == "invalid"]
    else:
        others = [model_board for model_board in others if set(model_board.ids) & set(pool.ids)]
    boards = home + others
    outcome = Outcome(
        heading=plain(pool.card.heading) + (f": {part.words}" if part.words else ""),
        anchor=boards[0].anchor,
        verdict="not tested",
        images=part.images,
        single=result.single,
        note=plain(result.note),
        unit=_unit(criterion, pool.card),
        doubts=(*_doubts(boards), *map(plain, result.doubts)),
        records=result.records or pool.ids,
    )
    estimate = result.estimate
    if estimate is None or math.isnan(judged := judged_end(criterion, estimate)):
        why = plain(result.why or f"{criterion.metric} is undefined here")
        return outcome.model_copy(update={"why": why})
    held = judged - criterion.limit if criterion.higher else criterion.limit - judged
    verdict: Verdict = "met" if held >= -ROUNDING else "not met"
    return outcome.model_copy(update={"verdict": verdict, "judged": judged, "estimate": estimate})


def _doubts(boards: list[ModelBoard]) -> tuple[str, ...]:
    reasons = [
        r
        for model_board in boards
        if model_board.row.standing not in _FINE
        for r in model_board.row.reasons
    ]
    return tuple(dict.fromkeys(reasons))
