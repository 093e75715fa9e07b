"""Records to boards: who stands how well against the worst of all attacks. Pure.

A board compares like with like: one dataset, objective, norm, ladder, budget, threat model, set of
channels and set of images. An image stands at a radius only if it is classified correctly when
clean and under every attack of the board at that radius; of masks the lowest Dice of each image
counts. A row is ranked only if every attack of the board ran on its images, validly, and nothing
gives a reason to distrust it; every other row is shown below with its reasons. Rows that their
images do not tell apart share a place (see ties). A board of controls ranks nobody: a control is no
attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.stats import UNDEFINED

from .board import ORDER, Board, Row, RowKey, Standing, Versus, told_apart
from .checks import flag_words
from .columns import heading, titles_of
from .crosscheck import comparable, hidden_gradients, misled, rivals, shared_rungs, summary
from .grid import grid_of
from .images import Part, by_images, draw_of, image_words
from .lost import Lost
from .shield import shield_words
from .text import THREATS, plain
from .ties import Pairs, Scored, pairs, places
from .worst_case import (
    lowest,
    means,
    owners_of,
    score_table,
    score_table_stands,
    standing_table,
)

_THREATS = list(THREATS)  # boards of one dataset stand in this order


def boards(records: list[Stored], lost: Sequence[Lost] = ()) -> list[Board]:
    """Return every board the records make, whatever their order: real images before phantoms.

    Args:
        records: a case counts once, however often it is in them.
        lost: cases without a record; whose row lacks one is incomplete.
    """
    groups: dict[tuple[object, ...], list[Stored]] = {}
    once = {s.record.case_id: s for s in sorted(records, key=lambda s: s.folder)}
    ordered = [once[case_id] for case_id in sorted(once)]
    for stored in ordered:
        groups.setdefault(_setting(stored.record.case), []).append(stored)
    titles, others = titles_of(ordered), rivals(ordered)
    made = []
    for setting, group in groups.items():
        parts = by_images(group)
        for part, drawn in zip(parts, image_words(parts), strict=True):
            draws = {draw_of(stored.record.case) for stored in part.runs}
            mine = [
                one
                for one in lost
                if one.case and _setting(one.case) == setting and draw_of(one.case) in draws
            ]
            made.append(replace(_board(part, mine, titles, others), drawn=drawn))
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


def _setting(case: Case) -> tuple[object, ...]:
    """Return what the cases of a board share, but for the images."""
    setting = (case.norm, case.ladder, case.budget, case.threat)
    return (case.dataset, case.objective, *setting, tuple(sorted(case.channels.items())))


def channel_order(board: Board) -> tuple[object, ...]:
    """Return what sorts boards by channels: all of them first, then one, then several."""
    names = board.dataset.channel_names
    places = [names.index(name) if name in names else len(names) for name in board.channels]
    shares = [-share for share in board.channels.values()]
    return len(places), places, shares, list(board.channels)


def _board(
    part: Part,
    lost: list[Lost],
    titles: dict[str, str],
    others: dict[tuple[object, ...], list[Stored]],
) -> Board:
    grid = grid_of(part.runs, lost, titles)
    case = part.runs[0].record.case
    board = Board(
        dataset=part.runs[0].record.dataset_card,
        objective=case.objective,
        norm=case.norm,
        ladder=case.ladder,
        budget=case.budget,
        threat=case.threat,
        columns=tuple(sorted(grid.asked)),
        rows=(),
        channels=case.channels,
        images=part.images,
    )
    rows = []
    # columns that a victim without a defense cannot have
    shielded = {c for c, asked in grid.asked.items() if asked.case.knowledge != "adaptive"}
    for key, runs in grid.cells.items():
        row = _row(key, {c: runs[c] for c in board.columns if c in runs}, case.ladder)
        own = {c for c, asked in grid.asked.items() if asked.case.surrogate == key.victim}
        rows.append(
            replace(row, own=frozenset(own | (shielded if key.defense == "none" else set())))
        )
    judged = []
    for row in told_apart(rows):
        doubts: list[str] = []
        if board.threat == "white_box":
            row, doubts = _held_against(row, titles, others)
        judged.append(_judge(row, board, grid.lost.get(row.key, []), doubts, part.strays))
    ranked = _ranked(judged, len(board.ladder))
    return replace(board, rows=tuple(sorted(ranked, key=lambda row: _order(row, board.headline))))


def _held_against(
    row: Row, titles: dict[str, str], others: dict[tuple[object, ...], list[Stored]]
) -> tuple[Row, list[str]]:
    """Return a white-box row with its cross-check, and why its attacks can be distrusted."""
    valid = {c: run for c, run in knowing(row.runs).items() if run.record.status == "ok"}
    if all(run.record.attack_card.rungs == "universal" for run in valid.values()):
        return row, []  # one perturbation for all images need not beat what is made for each
    first = next(iter(valid.values()))
    found = {heading(one, titles): one for one in others.get(comparable(first), [])}
    # who knows of a defense can do all that who does not can
    found |= {
        c: run for c, run in row.runs.items() if is_oblivious(run) and run.record.status == "ok"
    }
    names = tuple(name for name, one in found.items() if shared_rungs(first.record, one.record))
    doubts = hidden_gradients(row.stands, first.record, {name: found[name] for name in names})
    return replace(row, crosscheck=summary(names, beaten=bool(doubts))), doubts + misled(valid)


def _row(key: RowKey, runs: dict[str, Stored], ladder: tuple[float, ...]) -> Row:
    first = next(iter(runs.values())).record
    valid = {column: run for column, run in runs.items() if run.record.status == "ok"}
    tables = {column: score_table(run) for column, run in valid.items()}
    counted = knowing(valid)
    worst = lowest([tables[column] for column in counted])
    undefined = (UNDEFINED,) * len(ladder)
    whole = len(valid) == len(runs) and len(worst) > 0
    average = means(worst, next(iter(valid.values()))) if whole else (UNDEFINED, *undefined)
    return Row(
        key=key,
        model=first.model_card,
        runs=runs,
        stands=_stands(counted, worst),
        left=Scored(worst, owners_of(worst, next(iter(counted.values()))) if counted else None),
        patients=first.patients,
        clean=average[0],
        scores={column: means(tables[column], run)[1:] for column, run in valid.items()},
        worst=average[1:],
        shield=shield_words(first),
    )


def _stands(runs: dict[str, Stored], worst: pd.DataFrame) -> pd.DataFrame:
    """Return who stands against all `runs`; what they have left says so where it is yes or no."""
    if all(score_table_stands(run) for run in runs.values()):
        return worst
    return lowest([standing_table(run) for run in runs.values()])


def is_oblivious(stored: Stored) -> bool:
    """Whether the attacker did not know of the defense: shown, and never ranked by."""
    return stored.record.case.knowledge == "oblivious"


def knowing(runs: dict[str, Stored]) -> dict[str, Stored]:
    """Return the runs of attackers who know what they attack."""
    return {column: run for column, run in runs.items() if not is_oblivious(run)}


def _judge(
    row: Row, board: Board, lost: list[str], doubts: list[str], strays: frozenset[str]
) -> Row:
    """Return the row with its standing and every reason for it, the gravest first."""
    reasons: list[tuple[Standing, str]] = [("flagged", doubt) for doubt in doubts]
    for column, run in row.runs.items():
        record = run.record
        if record.status == "invalid":
            reasons.append(("invalid", f"{column}: {record.reason}"))
            continue
        reasons += [("flagged", f"{column}: {flag_words(record, flag)}") for flag in record.flags]
        over = record.audit.over_budget if record.audit else 0
        if over and not any(flag.name == "over_budget" for flag in record.flags):
            reasons.append(("flagged", f"{column}: {over} images over their budget"))
        if record.case_id in strays:
            seen = f"{column}: scored on other images than the board ({record.n} seen)"
            reasons.append(("incomplete", seen))
    if not row.images and all(run.record.status == "ok" for run in row.runs.values()):
        reasons.append(("incomplete", "no image was attacked by every attack: nothing to score"))
    if not knowing(row.runs):
        reasons.append(("incomplete", "attacked only as if it had no defense"))
    if lost:
        reasons.append(("incomplete", f"failed or not readable: {', '.join(sorted(lost))}"))
    missing = [c for c in board.columns if c not in {*row.runs, *row.own, *lost}]
    if missing:
        reasons.append(("incomplete", f"not run: {', '.join(missing)}"))
    reasons.sort(key=lambda pair: -ORDER.index(pair[0]))
    fine: Standing = "control" if board.control else "ranked"
    standing = reasons[0][0] if reasons else fine
    return replace(row, standing=standing, reasons=tuple(plain(text) for _, text in reasons))


def _ranked(rows: list[Row], rungs: int) -> list[Row]:
    """Return the rows with their place at each rung; who is not told apart shares one."""
    ranked = [row for row in rows if row.standing == "ranked"]
    found = pairs([row.left for row in ranked])
    worst = np.array([[e.value for e in row.worst] for row in ranked]).T
    # column 0 of what is left is the clean image, which ranks nobody
    found = Pairs(found.gain[1:], found.p[1:])
    placed = places(worst, found) if ranked else np.zeros((rungs, 0), dtype=np.intp)
    own = {id(row): i for i, row in enumerate(ranked)}

    def judged(row: Row) -> Row:
        if id(row) not in own:
            return replace(row, ranks=(None,) * rungs, sharing=(0,) * rungs)
        i = own[id(row)]
        versus = tuple(
            Versus(other.title, tuple(found.gain[:, i, j]), tuple(found.p[:, i, j]))
            for j, other in enumerate(ranked)
            if j != i
        )
        ranks = tuple(int(place) for place in placed[:, i])
        sharing = tuple(int(n) for n in (placed == placed[:, i : i + 1]).sum(axis=1))
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
