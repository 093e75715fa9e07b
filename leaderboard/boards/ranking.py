"""Records to boards: who stands how well against the worst of all attacks. Pure.

A board compares like with like: one dataset, objective, norm, budget, threat model, set of channels
and set of images; its ladder has every radius of its records, which share some. An image stands at
a radius only if it is classified correctly when clean and under every attack of the board at that
radius that its row met; of masks the lowest Dice of each image counts. A row is ranked only if
every attack that half of the rows met ran on its images, validly, and nothing gives a reason to
distrust it; every other row is shown below with its reasons. Rows that their images do not tell
apart share a place (see ties). A board of controls ranks nobody: a control is no attack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from robustbench_med.bench.case import Case
from robustbench_med.bench.check_words import flag_words
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

from ..wording.commands import commands
from ..wording.text import THREATS, plain, radii
from .board import ORDER, Board, Row, RowKey, Standing, Versus, told_apart
from .cells import Grid, grid_of
from .columns import heading
from .crosscheck import ALLOWED, Scale, comparable, hidden_gradients, misled, rivals, summary
from .defenses import shield_words
from .image_sets import Part, by_images, by_ladder, draw_of, image_words, shares
from .significance import Pairs, Scored, pairs, places
from .standing import adds

_THREATS = list(THREATS)  # boards of one dataset stand in this order


def make_boards(records: list[Stored], failures: Sequence[Failure] = ()) -> list[Board]:
    """Return every board the records make, whatever their order: real images before phantoms.

    Args:
        records: a case counts once, however often it is in them.
        failures: cases without a record; whose row lacks one is incomplete.
    """
    groups: dict[tuple[object, ...], list[Stored]] = {}
    once = {s.record.case_id: s for s in sorted(records, key=lambda s: s.folder)}
    ordered = [once[case_id] for case_id in sorted(once)]
    for stored in ordered:
        groups.setdefault(_setting(stored.record.case), []).append(stored)
    others = rivals(ordered)
    made = []
    for setting, group in groups.items():
        parts = by_images(group)
        for part, drawn in zip(parts, image_words(parts), strict=True):
            draws = {draw_of(stored.record.case) for stored in part.runs}
            mine = [
                one
                for one in failures
                if one.case and _setting(one.case) == setting and draw_of(one.case) in draws
            ]
            met = by_ladder(part)
            for ladder, runs in met:
                own = [one for one in mine if one.case and shares(one.case.ladder, ladder)]
                board = _board(part._replace(runs=runs), ladder, own, others)
                told = [drawn, _radii_words(board) if len(met) > 1 else ""]
                made.append(replace(board, drawn=", ".join(filter(None, told))))
    return sorted(
        made,
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


def _radii_words(board: Board) -> str:
    return f"ε ∈ {radii(board.ladder, board.norm, board.budget)}"


def _setting(case: Case) -> tuple[object, ...]:
    """Return what the cases of a board share, but for the images and the radii."""
    setting = (case.norm, case.budget, case.threat)
    return (case.dataset, case.objective, *setting, tuple(sorted(case.channels.items())))


def channel_order(board: Board) -> tuple[object, ...]:
    """Return what sorts boards by channels: all of them first, then one, then several."""
    names = board.dataset.channel_names
    places = [names.index(name) if name in names else len(names) for name in board.channels]
    shares = [-share for share in board.channels.values()]
    return len(places), places, shares, list(board.channels)


def _board(
    part: Part,
    ladder: tuple[float, ...],
    failures: list[Failure],
    others: dict[tuple[object, ...], list[Stored]],
) -> Board:
    grid = grid_of(part.runs, failures)
    case, common = part.runs[0].record.case, grid.common()
    board = Board(
        dataset=part.runs[0].record.dataset_card,
        objective=case.objective,
        norm=case.norm,
        ladder=ladder,
        budget=case.budget,
        threat=case.threat,
        columns=tuple(sorted(grid.columns)),
        rows=(),
        channels=case.channels,
        images=part.images,
        common=common,
    )
    rows = [_row(key, grid, ladder, common) for key in grid.cells]
    board = replace(
        board, columns=_weak_to_strong(board, rows), ranked_at=headline_of(rows, ladder)
    )
    again = {own: [c for c, base in grid.again.items() if base == own] for own in board.columns}
    order = [name for column in board.columns for name in (column, *again[column])]
    judged = []
    for row in told_apart(rows):
        row = replace(row, runs={c: row.runs[c] for c in order if c in row.runs})
        doubts: list[str] = []
        if board.threat == "white_box":
            row, doubts = _held_against(row, board, others)
        judged.append(_judge(row, board, rows, grid.lost.get(row.key, []), doubts, part.strays))
    ranked = _ranked(judged, len(board.ladder))
    return replace(board, rows=tuple(sorted(ranked, key=lambda row: _order(row, board.headline))))


def _weak_to_strong(board: Board, rows: list[Row]) -> tuple[str, ...]:
    """Return the columns by how far each stays above the worst case, mean over rows and radii."""

    def weakness(column: str) -> tuple[float, str]:
        gaps = [
            own.value - worst.value
            for row in rows
            for own, worst in zip(row.scores.get(column, ()), row.worst, strict=False)
        ]
        known = [gap for gap in gaps if np.isfinite(gap)]
        return -(float(np.mean(known)) if known else 0.0), column

    return tuple(sorted(board.columns, key=weakness))


def _held_against(
    row: Row, board: Board, others: dict[tuple[object, ...], list[Stored]]
) -> tuple[Row, list[str]]:
    """Return a white-box row with its cross-check, and why its attacks can be distrusted."""
    valid = {c: run for c, run in knowing(row.runs).items() if run.record.status == "ok"}
    if all(run.record.attack_card.schedule == "universal" for run in valid.values()):
        return row, []  # one perturbation for all images need not beat what is made for each
    first = next(iter(valid.values()))
    scale = Scale.of(board.ladder, [run.record for run in valid.values()], board.norm, board.budget)
    found = {heading(one): one for one in others.get(comparable(first), [])}
    # who knows of a defense can do all that who does not can
    found |= {
        c: run for c, run in row.runs.items() if is_oblivious(run) and run.record.status == "ok"
    }
    names = tuple(name for name, one in found.items() if scale.shared(one.record))
    doubts = hidden_gradients(row.stands, scale, {name: found[name] for name in names})
    beaten = summary(names, beaten=bool(doubts))
    return replace(row, crosscheck=beaten), doubts + misled(valid, scale)


def _row(key: RowKey, grid: Grid, ladder: tuple[float, ...], common: frozenset[str]) -> Row:
    runs = grid.cells[key]
    first = next(iter(runs.values())).record
    valid = {column: run for column, run in runs.items() if run.record.status == "ok"}
    tables = {column: score_table(run, ladder) for column, run in valid.items()}
    counted = knowing(valid)
    again = {column: base for column, base in grid.again.items() if column in runs}
    rungs = _scored(counted, tables, again, common)
    worst = lowest([tables[column] for column in counted], rungs)
    whole = len(valid) == len(runs) and len(worst) > 0
    average = [UNDEFINED] * (len(ladder) + 1)
    if whole:
        found = means(worst, next(iter(valid.values())))
        average = on_rungs(worst, found, len(ladder))
    return Row(
        key=key,
        model=first.model_card,
        runs=runs,
        stands=_stands(counted, worst, ladder),
        left=Scored(worst, owners_of(worst, next(iter(counted.values()))) if counted else None),
        patients=first.patients,
        clean=average[0],
        scores=_scores(valid, tables, again, len(ladder)),
        worst=tuple(average[1:]),
        shield=shield_words(first),
        own=grid.own(key),
        again=again,
        argmax=next((e for run in valid.values() if (e := argmax_score(run))), None),
    )


def _scored(
    counted: dict[str, Stored],
    tables: dict[str, pd.DataFrame],
    again: Mapping[str, str],
    common: frozenset[str],
) -> list[int]:
    """Return the rungs at which a row is scored, 0 (clean) first: all attacks it owes ran there.

    An attack that it need not have met counts where it ran.
    """
    met: dict[str, set[int]] = {}
    for column in counted:
        met.setdefault(again.get(column, column), set()).update(rungs_of(tables[column]))
    owed = [rungs for column, rungs in met.items() if column in common] or list(met.values())
    return sorted(set.intersection(*owed)) if owed else []


def _scores(
    valid: dict[str, Stored],
    tables: dict[str, pd.DataFrame],
    again: Mapping[str, str],
    rungs: int,
) -> dict[str, tuple[Estimate, ...]]:
    """Return the scores under each attack; of one that ran twice the lower, image by image."""
    found = {}
    for base in dict.fromkeys(again.get(column, column) for column in valid):
        own = [column for column in valid if again.get(column, column) == base]
        table = tables[own[0]]
        if len(own) > 1:
            every = sorted({rung for column in own for rung in rungs_of(tables[column])})
            table = lowest([tables[column] for column in own], every, clean=False)
        found[base] = tuple(on_rungs(table, means(table, valid[own[0]]), rungs)[1:])
    return found


def headline_of(rows: list[Row], ladder: tuple[float, ...]) -> int:
    """Return the place of the radius that ranks a board: the middle of the ladder most rows have.

    The lower of two. Of ladders that as many rows have the one whose middle most rows were scored
    at, then the longer one: a row with radii of its own does not move the others.
    """
    own = [
        tuple(i for i in range(len(ladder)) if any(np.isfinite(s[i].value) for s in each))
        for each in (list(row.scores.values()) for row in rows)
    ]
    known = [rungs for rungs in own if rungs]
    if not known:
        return (len(ladder) - 1) // 2

    def middle(rungs: tuple[int, ...]) -> int:
        return rungs[(len(rungs) - 1) // 2]

    def weight(rungs: tuple[int, ...]) -> tuple[int, int, int, int]:
        at = middle(rungs)
        scored = sum(bool(np.isfinite(row.worst[at].value)) for row in rows)
        return known.count(rungs), scored, len(rungs), -at

    return middle(max(set(known), key=weight))


def _stands(
    runs: dict[str, Stored], worst: pd.DataFrame, ladder: tuple[float, ...]
) -> pd.DataFrame:
    """Return who stands against all `runs`; what they have left says so where it is yes or no."""
    if all(score_table_stands(run) for run in runs.values()):
        return worst
    return lowest([standing_table(run, ladder) for run in runs.values()], rungs_of(worst))


def is_oblivious(stored: Stored) -> bool:
    """Whether the attacker did not know of the defense: shown, and never ranked by."""
    return stored.record.case.knowledge == "oblivious"


def knowing(runs: dict[str, Stored]) -> dict[str, Stored]:
    """Return the runs of attackers who know what they attack."""
    return {column: run for column, run in runs.items() if not is_oblivious(run)}


def _judge(
    row: Row,
    board: Board,
    rows: list[Row],
    lost: list[str],
    doubts: list[str],
    strays: frozenset[str],
) -> Row:
    """Return the row with its standing and every reason for it, the gravest first."""
    reasons: list[tuple[Standing, str]] = [("flagged", doubt) for doubt in doubts]
    for column, run in row.runs.items():
        record = run.record
        if record.status == "invalid":
            reasons.append(("invalid", f"{column}: {record.reason}"))
            continue
        reasons += [("flagged", f"{column}: {flag_words(record, one)}") for one in record.doubts]
        if record.case_id in strays:
            seen = f"{column}: scored on other images than the board ({record.n} seen)"
            reasons.append(("incomplete", seen))
    if not row.images and all(run.record.status == "ok" for run in row.runs.values()):
        reasons.append(("incomplete", "no image was attacked by every attack: nothing to score"))
    if not knowing(row.runs):
        reasons.append(("incomplete", "attacked only as if it had no defense"))
    if lost:
        reasons.append(("incomplete", f"failed or not readable: {', '.join(sorted(lost))}"))
    missing = [c for c in board.columns if c in board.common - row.met - row.own - {*lost}]
    needed = [c for c in missing if adds(c, row, rows, board)]
    if needed:
        how = commands(row, needed, rows)
        end = f". To run it: {how}" if how else ""
        reasons.append(("incomplete", f"not run: {', '.join(needed)}{end}"))
    spared = [c for c in missing if c not in needed]
    notes = row.notes
    if spared:
        how = commands(row, spared, rows)
        notes = (
            *notes,
            f"not run: {', '.join(spared)}, which broke no more than {ALLOWED} image of any row "
            f"that met it beyond what the attacks run here break. To run it: {how}",
        )
    at = board.headline
    short = [
        c
        for c in board.columns
        if c in (row.met & board.common or row.met)
        and c in row.scores
        and c not in row.oblivious
        and not np.isfinite(row.scores[c][at].value)
    ]
    if short and row.images:
        reasons.append(
            (
                "incomplete",
                f"not run at ε = {board.at}: {', '.join(short)}. To run it: "
                f"{commands(row, short, [row], ladder=board.ladder)}",
            )
        )
    reasons.sort(key=lambda pair: -ORDER.index(pair[0]))
    fine: Standing = "control" if board.control else "ranked"
    standing = reasons[0][0] if reasons else fine
    told = tuple(plain(text) for _, text in reasons)
    return replace(row, standing=standing, reasons=told, notes=notes)


def _ranked(rows: list[Row], rungs: int) -> list[Row]:
    """Return the rows with their place at each rung; who is not told apart shares one."""
    ranked = [row for row in rows if row.standing == "ranked"]
    found = pairs([row.left for row in ranked], rungs + 1)
    worst = np.array([[e.value for e in row.worst] for row in ranked]).T
    # column 0 of what is left is the clean image, which ranks nobody
    found = Pairs(found.gain[1:], found.p[1:])
    placed = places(worst, found) if ranked else np.zeros((rungs, 0), dtype=np.intp)
    own = {id(row): i for i, row in enumerate(ranked)}

    def ranks_of(i: int) -> tuple[int | None, ...]:
        return tuple(int(place) or None for place in placed[:, i])

    def judged(row: Row) -> Row:
        if id(row) not in own:
            return replace(row, ranks=(None,) * rungs, sharing=(0,) * rungs)
        i = own[id(row)]
        versus = tuple(
            Versus(other.title, tuple(found.gain[:, i, j]), tuple(found.p[:, i, j]), ranks_of(j))
            for j, other in enumerate(ranked)
            if j != i
        )
        ranks = ranks_of(i)
        sharing = tuple(
            int(n) if rank else 0
            for n, rank in zip((placed == placed[:, i : i + 1]).sum(axis=1), ranks, strict=True)
        )
        return replace(row, ranks=ranks, sharing=sharing, versus=versus)

    return [judged(row) for row in rows]


def _order(row: Row, headline: int) -> tuple[int, float, float, str]:
    value, clean = row.worst[headline].value, row.clean.value
    return (
        ORDER.index(row.standing),
        -value if np.isfinite(value) else np.inf,
        -clean if np.isfinite(clean) else np.inf,
        row.model.name,
    )
