"""Records to boards: who stands how well against the worst of all attacks. Pure.

A board compares like with like: one dataset, objective, norm, ladder and threat model. An image
stands at a radius only if it is classified correctly when clean and under every attack of the
board at that radius. A row is ranked only if every attack of the board ran on the board's images,
validly, and nothing gives a reason to distrust it; every other row is shown below with its reasons.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from robustbench_med.bench.record import Estimate, Stored
from robustbench_med.cards import DatasetCard, ModelCard
from robustbench_med.stats import UNDEFINED

from .text import NORMS, THREATS, plain, radius
from .worst_case import correct_table, means, standing_images

Standing = Literal["ranked", "flagged", "incomplete", "invalid"]
ORDER: tuple[Standing, ...] = ("ranked", "flagged", "incomplete", "invalid")


@dataclass(frozen=True, eq=False)
class Row:
    """One victim (with its defense) on a board.

    Attributes:
        runs: column of the board -> the record and samples behind it.
        stands: who stands; a row an image common to all runs, a column a rung (0 = clean).
        accuracy: column -> accuracy at each radius of the ladder.
        worst: worst-case accuracy at each radius of the ladder.
        ranks: place at each radius; None where the row is not ranked.
        reasons: why it is not ranked; empty where it is.
    """

    model: ModelCard
    defense: str
    victim_sha256: str
    runs: dict[str, Stored]
    stands: pd.DataFrame
    patients: int | None
    clean: Estimate
    accuracy: dict[str, tuple[Estimate, ...]]
    worst: tuple[Estimate, ...]
    standing: Standing = "ranked"
    reasons: tuple[str, ...] = ()
    ranks: tuple[int | None, ...] = ()

    @property
    def images(self) -> int:
        """Number of images the worst case is taken over."""
        return len(self.stands)

    def strongest(self, rung: int) -> str:
        """Return the column of the attack that leaves least accuracy at `rung`; empty if none."""
        return min(self.accuracy, key=lambda c: self.accuracy[c][rung].value, default="")


@dataclass(frozen=True, eq=False)
class Board:
    """Rows that may be compared, best worst case at the headline radius first."""

    dataset: DatasetCard
    objective: str
    norm: str
    ladder: tuple[float, ...]
    threat: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def headline(self) -> int:
        """Index of the radius that ranks the board: the middle rung (the lower of two)."""
        return (len(self.ladder) - 1) // 2

    @property
    def setting(self) -> str:
        """Objective, threat model and norm in words."""
        threat = THREATS.get(self.threat, self.threat)
        return f"{plain(self.objective)} · {threat} · {NORMS.get(self.norm, self.norm)}"

    @property
    def at(self) -> str:
        """The headline radius in words."""
        return radius(self.ladder[self.headline], self.norm)


def boards(records: list[Stored]) -> list[Board]:
    """Return every board the records make, whatever their order: real images before phantoms."""
    groups: dict[tuple[object, ...], list[Stored]] = {}
    for stored in sorted(records, key=lambda s: s.record.case_id):
        case, card = stored.record.case, stored.record.attack_card
        key = (case.dataset, case.objective, case.norm, case.ladder, card.threat)
        groups.setdefault(key, []).append(stored)
    made = [_board(group) for group in groups.values()]
    return sorted(
        made,
        key=lambda b: (
            b.dataset.synthetic,
            b.dataset.name,
            b.threat != "white_box",
            b.norm != "linf",
            b.norm,
            b.objective,
            b.ladder,
        ),
    )


def _board(group: list[Stored]) -> Board:
    names = _columns(group)
    columns = tuple(sorted(set(names)))
    cells: dict[tuple[str, ...], dict[str, Stored]] = {}
    for stored, column in zip(group, names, strict=True):
        case = stored.record.case
        # one row a model *and* the images it saw: another n or split never hides in a shared row
        images = (case.data_sha256, case.split, str(case.n))
        key = (case.victim, case.defense, case.victim_sha256, case.operating_point, *images)
        cells.setdefault(key, {})[column] = stored
    first = group[0].record
    ladder = first.case.ladder
    rows = [_row({c: runs[c] for c in columns if c in runs}, ladder) for runs in cells.values()]
    reference = _common_images(rows)
    rows = _ranked([_judge(row, columns, reference) for row in rows], len(ladder))
    board = Board(
        dataset=first.dataset_card,
        objective=first.case.objective,
        norm=first.case.norm,
        ladder=ladder,
        threat=first.attack_card.threat,
        columns=columns,
        rows=(),
    )
    return replace(board, rows=tuple(sorted(rows, key=lambda row: _order(row, board.headline))))


def _columns(group: list[Stored]) -> list[str]:
    """Return the column of each record: its attack's title, and what tells two settings apart."""
    settings = [
        {
            **s.record.case.parameters,
            "guide": s.record.case.guide,
            "seed": s.record.case.seed,
            "v": s.record.case.attack_version,
        }
        for s in group
    ]
    attacks = [s.record.case.attack for s in group]
    titles = [plain(s.record.attack_card.title) for s in group]
    names = []
    for attack, title, own in zip(attacks, titles, settings, strict=True):
        peers = [p for p, a in zip(settings, attacks, strict=True) if a == attack]
        keys = [k for k in own if any(peer.get(k) != own[k] for peer in peers)]
        parts = [f"{k}={own[k]}" for k in keys]
        if any(t == title and a != attack for a, t in zip(attacks, titles, strict=True)):
            parts.insert(0, attack)
        names.append(f"{title} ({', '.join(parts)})" if parts else title)
    return names


def _row(runs: dict[str, Stored], ladder: tuple[float, ...]) -> Row:
    first = next(iter(runs.values())).record
    valid = {column: run for column, run in runs.items() if run.record.status == "ok"}
    tables = {column: correct_table(run) for column, run in valid.items()}
    stands = standing_images(list(tables.values()))
    undefined = (UNDEFINED,) * len(ladder)
    whole = len(valid) == len(runs) and len(stands) > 0
    average = means(stands, next(iter(valid.values()))) if whole else (UNDEFINED, *undefined)
    return Row(
        model=first.model_card,
        defense=first.case.defense,
        victim_sha256=first.case.victim_sha256,
        runs=runs,
        stands=stands,
        patients=first.patients,
        clean=average[0],
        accuracy={column: means(tables[column], run)[1:] for column, run in valid.items()},
        worst=average[1:],
    )


def _images_of(run: Stored) -> tuple[str, str, frozenset[str]]:
    case = run.record.case
    return case.data_sha256, case.split, frozenset(run.samples["sample"].astype(str))


def _common_images(rows: list[Row]) -> tuple[str, str, frozenset[str]] | None:
    """Return the images most runs of the board saw; the larger set where two are as common."""
    runs = [run for row in rows for run in row.runs.values() if run.record.status == "ok"]
    counted = Counter(_images_of(run) for run in runs)
    return max(counted, key=lambda k: (counted[k], len(k[2]), k[:2]), default=None)


def _judge(
    row: Row, columns: tuple[str, ...], reference: tuple[str, str, frozenset[str]] | None
) -> Row:
    """Return the row with its standing and every reason for it, the gravest first."""
    reasons: list[tuple[Standing, str]] = []
    for column, run in row.runs.items():
        record = run.record
        if record.status == "invalid":
            reasons.append(("invalid", f"{column}: {record.reason}"))
            continue
        reasons += [("flagged", f"{column}: {flag.meaning}") for flag in record.flags]
        if record.audit and record.audit.over_budget > 0:
            over = f"{column}: {record.audit.over_budget} images over their budget"
            reasons.append(("flagged", over))
        if _images_of(run) != reference:
            seen = f"{column}: scored on other images than the board ({record.n} seen)"
            reasons.append(("incomplete", seen))
    missing = [column for column in columns if column not in row.runs]
    if missing:
        reasons.append(("incomplete", f"not run: {', '.join(missing)}"))
    reasons.sort(key=lambda pair: -ORDER.index(pair[0]))
    standing = reasons[0][0] if reasons else "ranked"
    return replace(row, standing=standing, reasons=tuple(plain(text) for _, text in reasons))


def _ranked(rows: list[Row], rungs: int) -> list[Row]:
    """Return the rows with their place at each rung; equal worst cases share a place."""
    worst = np.array([[e.value for e in row.worst] for row in rows if row.standing == "ranked"])

    def place(row: Row, rung: int) -> int | None:
        if row.standing != "ranked":
            return None
        return 1 + int((worst[:, rung] > row.worst[rung].value).sum())

    return [replace(row, ranks=tuple(place(row, r) for r in range(rungs))) for row in rows]


def _order(row: Row, headline: int) -> tuple[int, float, float, str]:
    value, clean = row.worst[headline].value, row.clean.value
    return (
        ORDER.index(row.standing),
        -value if np.isfinite(value) else np.inf,
        -clean if np.isfinite(clean) else np.inf,
        row.model.name,
    )
