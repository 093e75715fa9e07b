"""Standing: decide which rows of a board are ranked, and list the reasons for the others. Pure.

All reasons against a row are listed, the gravest first. A row without a reason is ranked, except
on a board of controls, which ranks no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from robustbench_med.bench.check_words import flag_words
from robustbench_med.bench.record import Stored
from robustbench_med.worst_case import lowest, score_table

from ..wording.commands import commands
from ..wording.text import plain
from .board import ORDER, Board, Comparison, Row, Standing
from .columns import heading
from .crosscheck import (
    ALLOWED,
    Scale,
    comparable,
    hidden_gradients,
    single_step_doubts,
    summary,
)
from .significance import Pairs, pairs, places

_DROP = 0.05  # an attack does more harm if it lowers the Dice by at least this much


def is_oblivious(stored: Stored) -> bool:
    """Whether the attacker did not know the defense; such an attack is shown but never ranks."""
    return stored.record.case.knowledge == "oblivious"


def informed_runs(runs: dict[str, Stored]) -> dict[str, Stored]:
    """Return the runs of attackers who know the defense."""
    return {column: run for column, run in runs.items() if not is_oblivious(run)}


def cross_checked(
    row: Row, board: Board, weaker: Mapping[tuple[object, ...], list[Stored]]
) -> tuple[Row, list[str]]:
    """Return a white-box row with its cross-check, and the reasons to doubt its attacks.

    Args:
        row: a row of a white-box board.
        board: the board, for its radii.
        weaker: records of attackers who know less, see `crosscheck.weaker_attackers`.
    """
    valid = {c: run for c, run in informed_runs(row.runs).items() if run.record.status == "ok"}
    if all(run.record.attack_card.schedule == "universal" for run in valid.values()):
        # one perturbation for all images need not beat perturbations for single images
        return row, []
    first = next(iter(valid.values()))
    scale = Scale.of(board.ladder, [run.record for run in valid.values()], board.norm, board.budget)
    attackers = {heading(stored): stored for stored in weaker.get(comparable(first), [])}
    # an attacker who knows the defense can do everything that one without this knowledge can
    attackers |= {
        c: run for c, run in row.runs.items() if is_oblivious(run) and run.record.status == "ok"
    }
    names = tuple(name for name, stored in attackers.items() if scale.shared(stored.record))
    doubts = hidden_gradients(row.robust, scale, {name: attackers[name] for name in names})
    beaten = summary(names, beaten=bool(doubts))
    return replace(row, crosscheck=beaten), doubts + single_step_doubts(valid, scale)


def judge_row(
    row: Row,
    board: Board,
    rows: list[Row],
    failed: list[str],
    doubts: list[str],
    strays: frozenset[str],
) -> Row:
    """Return the row with its standing and every reason for it, the gravest first.

    Args:
        row: the row to judge.
        board: the board without its rows.
        rows: all rows of the board.
        failed: columns of the row whose case failed.
        doubts: reasons to doubt the row's attacks, from `cross_checked`.
        strays: ids of cases that were scored on other images than the board.
    """
    reasons: list[tuple[Standing, str]] = [("flagged", doubt) for doubt in doubts]
    for column, run in row.runs.items():
        reasons += _record_reasons(column, run, strays)
    if not row.images and all(run.record.status == "ok" for run in row.runs.values()):
        reasons.append(("incomplete", "no image was attacked by every attack: nothing to score"))
    if not informed_runs(row.runs):
        reasons.append(("incomplete", "all attacks ignored the defense (oblivious)"))
    if failed:
        reasons.append(("incomplete", f"failed or not readable: {', '.join(sorted(failed))}"))
    required = board.common - row.attacked_by - row.not_applicable - {*failed}
    missing = [column for column in board.columns if column in required]
    needed = [column for column in missing if may_matter(column, row, rows, board)]
    if needed:
        how = commands(row, needed, rows)
        end = f". To run it: {how}" if how else ""
        reasons.append(("incomplete", f"not run: {', '.join(needed)}{end}"))
    spared = [column for column in missing if column not in needed]
    notes = row.notes
    if spared:
        how = commands(row, spared, rows)
        notes = (
            *notes,
            f"not run: {', '.join(spared)}, which broke at most {ALLOWED} image more in any row "
            f"that ran it than the attacks run here. To run it: {how}",
        )
    short = _not_run_at_headline(row, board)
    if short and row.images:
        how = commands(row, short, [row], ladder=board.ladder)
        words = f"not run at {board.sign} {board.at}: {', '.join(short)}. To run it: {how}"
        reasons.append(("incomplete", words))
    reasons.sort(key=lambda pair: -ORDER.index(pair[0]))
    fine: Standing = "control" if board.control else "ranked"
    standing = reasons[0][0] if reasons else fine
    words_of_reasons = tuple(plain(text) for _, text in reasons)
    return replace(row, standing=standing, reasons=words_of_reasons, notes=notes)


def _record_reasons(column: str, run: Stored, strays: frozenset[str]) -> list[tuple[Standing, str]]:
    """Return the reasons of one record against its row: invalid, flagged, or on other images."""
    record = run.record
    if record.status == "invalid":
        return [("invalid", f"{column}: {record.reason}")]
    reasons: list[tuple[Standing, str]] = [
        ("flagged", f"{column}: {flag_words(record, flag)}") for flag in record.doubts
    ]
    if record.case_id in strays:
        words = f"{column}: scored on other images than the board ({record.n} images)"
        reasons.append(("incomplete", words))
    return reasons


def _not_run_at_headline(row: Row, board: Board) -> list[str]:
    """Return the columns of a row that did not run at the headline radius.

    If the row has required columns, only these are considered.
    """
    required = row.attacked_by & board.common or row.attacked_by
    return [
        column
        for column in board.columns
        if column in required
        and column in row.scores
        and column not in row.oblivious
        and not np.isfinite(row.scores[column][board.headline].value)
    ]


def may_matter(column: str, row: Row, rows: list[Row], board: Board) -> bool:
    """Whether an attack that a row lacks may change its place.

    It does not matter if some other row ran it together with attacks of this row, and in every such
    row it added at most one success at each radius: then a ranking by the common attacks gives the
    same result. An oblivious attack never ranks.
    """
    if any(column in other.oblivious for other in rows):
        return False
    present = {c for c in row.attacked_by if c not in row.oblivious}
    compared = False
    for other in rows:
        common = {c for c in other.attacked_by if c in present and c not in other.oblivious}
        if column not in other.attacked_by or not common:
            continue
        before, after = (
            [score_table(run, board.ladder) for run in _valid_runs(other, columns)]
            for columns in (common, {*common, column})
        )
        if len(after) <= len(before) or not before:
            return True
        rungs = [r for r in range(len(board.ladder) + 1) if any(r in t.columns for t in before)]
        without, with_it = (lowest(tables, rungs) for tables in (before, after))
        images = without.index.intersection(with_it.index)
        drop = without.loc[images].to_numpy(float) - with_it.loc[images].to_numpy(float)
        if ((drop > _DROP).sum(axis=0) > ALLOWED).any():
            return True
        compared = True
    return not compared


def _valid_runs(row: Row, columns: set[str]) -> list[Stored]:
    """Return the valid records of a row under the attacks of `columns`."""
    return [
        run
        for column, run in row.runs.items()
        if row.repeats.get(column, column) in columns and run.record.status == "ok"
    ]


def ranked_rows(rows: list[Row], rungs: int) -> list[Row]:
    """Return the rows with their places at each rung; rows that do not differ share a place."""
    ranked = [row for row in rows if row.standing == "ranked"]
    every = pairs([row.image_scores for row in ranked], rungs + 1)
    # column 0 of the image scores is the clean image, which ranks no row
    tested = Pairs(every.gain[1:], every.p[1:])
    worst = np.array([[e.value for e in row.worst] for row in ranked]).T
    placed = places(worst, tested) if ranked else np.zeros((rungs, 0), dtype=np.intp)
    index = {id(row): i for i, row in enumerate(ranked)}

    def ranks_of(i: int) -> tuple[int | None, ...]:
        return tuple(int(rank) or None for rank in placed[:, i])

    def with_rank(row: Row) -> Row:
        if id(row) not in index:
            return replace(row, ranks=(None,) * rungs, sharing=(0,) * rungs)
        i = index[id(row)]
        comparisons = tuple(
            Comparison(
                other.title, tuple(tested.gain[:, i, j]), tuple(tested.p[:, i, j]), ranks_of(j)
            )
            for j, other in enumerate(ranked)
            if j != i
        )
        ranks = ranks_of(i)
        counts = (placed == placed[:, i : i + 1]).sum(axis=1)
        sharing = tuple(int(n) if rank else 0 for n, rank in zip(counts, ranks, strict=True))
        return replace(row, ranks=ranks, sharing=sharing, comparisons=comparisons)

    return [with_rank(row) for row in rows]


def row_order(row: Row, board: Board) -> tuple[int, float, float, str, str, str]:
    """Return the sort key of a board's rows: by standing, then by worst case, best first."""
    value, clean = row.worst[board.headline].value, row.clean.value
    return (
        ORDER.index(row.standing),
        -value if np.isfinite(value) else np.inf,
        -clean if np.isfinite(clean) else np.inf,
        row.model.name,
        row.title,
        str(row.key),
    )
