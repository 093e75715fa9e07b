"""Turn records into boards, which rank victims by their worst case over all attacks. Pure.

All records of a board have the same dataset, objective, norm, budget, threat model, channels and
images. Its ladder has every radius of its records, which have some in common. An image counts as
robust at a radius only if it is right when clean and under every attack of the board that its row
ran there; for masks, the lowest Dice of each image counts. A row is ranked only if every attack
that half of the rows ran also ran on its images with a valid result, and there is no reason to
doubt it; all other rows are listed below with the reasons (`standing`). Rows that do not differ
significantly on their images share a place (`significance`). A board of controls ranks no row,
because a control is no attack.

The columns are ordered from weak to strong: first attackers who do not know the defense, then
attacks of a single step, then all others; each group is sorted by the scores on this board.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from robustbench_med.bench.case import Case
from robustbench_med.bench.decision import argmax_score
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.record import Stored
from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.worst_case import (
    lowest,
    means,
    on_rungs,
    owners_of,
    rungs_of,
    score_table,
    score_table_stands,
    standing_table,
)

from ..wording.text import THREATS, listed
from .board import Board, Row, RowKey, with_distinct_titles
from .cells import Grid, grid_of
from .crosscheck import many_steps, weaker_attackers
from .defenses import defense_title_of
from .image_sets import (
    ImageSetRecords,
    draw_key,
    group_by_image_set,
    group_by_ladder,
    have_common_radius,
    image_set_words,
)
from .significance import ImageScores
from .standing import cross_checked, informed_runs, judge_row, ranked_rows, row_order

_THREATS = list(THREATS)  # the order of the boards of one dataset


def make_boards(records: list[Stored], failures: Sequence[Failure] = ()) -> list[Board]:
    """Return every board of the records, those of real images before phantoms.

    The order of the records does not matter.

    Args:
        records: the records; a case that occurs several times counts once.
        failures: cases without a usable record; they make their rows incomplete.
    """
    once = {s.record.case_id: s for s in sorted(records, key=lambda s: s.folder)}
    ordered = [once[case_id] for case_id in sorted(once)]
    groups: dict[tuple[object, ...], list[Stored]] = {}
    for stored in ordered:
        groups.setdefault(_setting(stored.record.case), []).append(stored)
    weaker = weaker_attackers(ordered)
    boards = []
    for setting, group in groups.items():
        missing = [f for f in failures if f.case and _setting(f.case) == setting]
        boards += _boards_of_setting(group, missing, weaker)
    return sorted(
        boards,
        key=lambda b: (
            b.dataset.synthetic,
            b.dataset.name,
            _THREATS.index(b.threat),
            b.norm != "linf",
            b.norm,
            b.budget,
            b.objective != "untargeted",
            b.objective,
            b.ladder,
            channel_order(b),
        ),
    )


def _setting(case: Case) -> tuple[object, ...]:
    """Return the setting of a case: two cases on one board differ only in images and radii."""
    setting = (case.norm, case.budget, case.threat)
    return (case.dataset, case.objective, *setting, tuple(sorted(case.channels.items())))


def _boards_of_setting(
    group: list[Stored], failures: list[Failure], weaker: Mapping[tuple[object, ...], list[Stored]]
) -> list[Board]:
    """Return the boards of records in one setting: one for each set of images and radii."""
    boards = []
    sets = group_by_image_set(group)
    for image_set, words in zip(sets, image_set_words(sets), strict=True):
        draws = {draw_key(stored.record.case) for stored in image_set.runs}
        ladders = group_by_ladder(image_set)
        for ladder, runs in ladders:
            missing = [
                failure
                for failure in failures
                if failure.case
                and draw_key(failure.case) in draws
                and have_common_radius(failure.case.ladder, ladder)
            ]
            board = _board(image_set._replace(runs=runs), ladder, missing, weaker)
            radii_words = listed(ladder, board.norm, board.budget)
            parts_words = [words, radii_words if len(ladders) > 1 else ""]
            boards.append(replace(board, image_set=", ".join(filter(None, parts_words))))
    return boards


def channel_order(board: Board) -> tuple[object, ...]:
    """Return a key that sorts boards by channels: all channels first, then one, then several."""
    names = board.dataset.channel_names
    places = [names.index(name) if name in names else len(names) for name in board.channels]
    budgets = [-fraction for fraction in board.channels.values()]
    return len(places), places, budgets, list(board.channels)


def _board(
    image_set: ImageSetRecords,
    ladder: tuple[float, ...],
    failures: list[Failure],
    weaker: Mapping[tuple[object, ...], list[Stored]],
) -> Board:
    grid = grid_of(image_set.runs, failures)
    case, common = image_set.runs[0].record.case, grid.common()
    board = Board(
        dataset=image_set.runs[0].record.dataset_card,
        objective=case.objective,
        norm=case.norm,
        ladder=ladder,
        budget=case.budget,
        threat=case.threat,
        columns=tuple(sorted(grid.columns)),
        rows=(),
        channels=case.channels,
        images=image_set.images,
        common=common,
    )
    rows = [_row(key, grid, ladder, common) for key in grid.cells]
    board = replace(
        board, columns=_weak_to_strong(board, rows), ranked_at=headline_of(rows, ladder)
    )
    repeats = {
        column: [name for name, base in grid.repeats.items() if base == column]
        for column in board.columns
    }
    order = [name for column in board.columns for name in (column, *repeats[column])]
    judged = []
    for row in with_distinct_titles(rows):
        row = replace(
            row,
            runs={c: row.runs[c] for c in order if c in row.runs},
            scores={c: row.scores[c] for c in board.columns if c in row.scores},
        )
        doubts: list[str] = []
        if board.threat == "white_box":
            row, doubts = cross_checked(row, board, weaker)
        failed = grid.failed.get(row.key, [])
        judged.append(judge_row(row, board, rows, failed, doubts, image_set.strays))
    judged.sort(key=lambda row: row_order(row, board))
    return replace(board, rows=tuple(ranked_rows(judged, len(board.ladder))))


def _weak_to_strong(board: Board, rows: list[Row]) -> tuple[str, ...]:
    """Return the columns sorted by family, then by how far their scores are above the worst case.

    This distance is the mean over rows and radii.
    """
    cards = {
        row.repeats.get(column, column): run.record.attack_card
        for row in rows
        for column, run in row.runs.items()
    }
    oblivious = frozenset[str]().union(*(row.oblivious for row in rows))

    def family(column: str) -> int:
        if column in oblivious:
            return 0
        card = cards.get(column)
        single = card is not None and card.schedule != "universal" and not many_steps(card)
        return 1 if single else 2

    def weakness(column: str) -> tuple[int, float, str]:
        gaps = [
            score.value - worst.value
            for row in rows
            for score, worst in zip(row.scores.get(column, ()), row.worst, strict=False)
        ]
        known = [gap for gap in gaps if np.isfinite(gap)]
        return family(column), -(math.fsum(known) / len(known) if known else 0.0), column

    return tuple(sorted(board.columns, key=weakness))


def _row(key: RowKey, grid: Grid, ladder: tuple[float, ...], common: frozenset[str]) -> Row:
    runs = grid.cells[key]
    first = next(iter(runs.values())).record
    valid = {column: run for column, run in runs.items() if run.record.status == "ok"}
    tables = {column: score_table(run, ladder) for column, run in valid.items()}
    informed = informed_runs(valid)
    repeats = {column: base for column, base in grid.repeats.items() if column in runs}
    rungs = _scored_rungs(informed, tables, repeats, common)
    worst = lowest([tables[column] for column in informed], rungs)
    averages = [UNDEFINED] * (len(ladder) + 1)
    if len(valid) == len(runs) and len(worst) > 0:
        averages = on_rungs(worst, means(worst, next(iter(valid.values()))), len(ladder))
    patients = owners_of(worst, next(iter(informed.values()))) if informed else None
    return Row(
        key=key,
        model=first.model_card,
        runs=runs,
        robust=_robust(informed, worst, ladder),
        image_scores=ImageScores(worst, patients),
        patients=first.patients,
        clean=averages[0],
        scores=_scores(valid, tables, repeats, len(ladder)),
        worst=tuple(averages[1:]),
        defense_title=defense_title_of(first),
        not_applicable=grid.not_applicable(key),
        repeats=repeats,
        argmax=next((e for run in valid.values() if (e := argmax_score(run))), None),
    )


def _scored_rungs(
    informed: dict[str, Stored],
    tables: dict[str, pd.DataFrame],
    repeats: Mapping[str, str],
    common: frozenset[str],
) -> list[int]:
    """Return the rungs at which a row is scored, 0 (clean) first: all required attacks ran there.

    Other attacks are not needed, but count at the rungs where they ran.
    """
    attacked: dict[str, set[int]] = {}
    for column in informed:
        attacked.setdefault(repeats.get(column, column), set()).update(rungs_of(tables[column]))
    required = [rungs for column, rungs in attacked.items() if column in common]
    required = required or list(attacked.values())
    return sorted(set.intersection(*required)) if required else []


def _scores(
    valid: dict[str, Stored],
    tables: dict[str, pd.DataFrame],
    repeats: Mapping[str, str],
    rungs: int,
) -> dict[str, tuple[Estimate, ...]]:
    """Return the scores under each attack; if one ran twice, each image has the lower score."""
    scores = {}
    for base in dict.fromkeys(repeats.get(column, column) for column in valid):
        columns = [column for column in valid if repeats.get(column, column) == base]
        table = tables[columns[0]]
        if len(columns) > 1:
            every = sorted({rung for column in columns for rung in rungs_of(tables[column])})
            table = lowest([tables[column] for column in columns], every, clean=False)
        estimates = on_rungs(table, means(table, valid[columns[0]]), rungs)
        scores[base] = tuple(estimates[1:])
    return scores


def headline_of(rows: list[Row], ladder: tuple[float, ...]) -> int:
    """Return the index of the radius that ranks a board: the middle of the most common ladder.

    If there are two middle radii, the lower counts. If several ladders are equally common, the one
    counts at whose middle most rows were scored, then the longer one. So a row with other radii
    does not change the radius of the board.
    """
    ladders = [
        tuple(i for i in range(len(ladder)) if any(np.isfinite(s[i].value) for s in scores))
        for scores in (list(row.scores.values()) for row in rows)
    ]
    known = [rungs for rungs in ladders if rungs]
    if not known:
        return (len(ladder) - 1) // 2

    def middle(rungs: tuple[int, ...]) -> int:
        return rungs[(len(rungs) - 1) // 2]

    def weight(rungs: tuple[int, ...]) -> tuple[int, int, int, int]:
        at = middle(rungs)
        scored = sum(bool(np.isfinite(row.worst[at].value)) for row in rows)
        return known.count(rungs), scored, len(rungs), -at

    return middle(max(set(known), key=weight))


def _robust(
    runs: dict[str, Stored], worst: pd.DataFrame, ladder: tuple[float, ...]
) -> pd.DataFrame:
    """Return which images are robust against all `runs`; `worst` itself if scores are 0 or 1."""
    if all(score_table_stands(run) for run in runs.values()):
        return worst
    return lowest([standing_table(run, ladder) for run in runs.values()], rungs_of(worst))
