"""Collect the results of a model on one board, as a part of the document."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from robustbench_med.bench.record import Record, Stored
from robustbench_med.stats import Estimate
from robustbench_med.stats.crossing import HALF, Crossing, crossing
from robustbench_med.subgroups import Subgroup

from ..boards.certified_masks import mask_words, of_row
from ..boards.charts import certificate, certified_words
from ..boards.critical import critical, critical_head, critical_words
from ..boards.detectors import COLUMNS, RULE, has_detector, has_detectors
from ..boards.subgroups import by_subgroup, difference_words, group_notes
from ..wording.metrics import metric_rows
from ..wording.records import decision_words
from ..wording.text import plain, radius
from ..wording.threat_model import measure_words, native_radius
from .document import (
    Cell,
    Critical,
    DetectorLine,
    Evidence,
    Line,
    MaskProof,
    Proved,
    SubgroupLine,
    Subgroups,
)
from .goals import lacking, untested
from .model_boards import ModelBoard
from .pooled_runs import Pool, board_pool, rung_of, valid_runs
from .recalls import PooledShare, directed_flips, recalls, region_dice
from .residual_risk import remaining

# metric of masks -> whether higher is better
_OF_MASKS = {"volume_error": False, "lesion_miss": False, "hd95": False}
_ALARMS = "false_alarms"
_RADII = 6  # columns of a certificate
_NAMED = 3  # most attacks that are named if several are tied


class Hardest(NamedTuple):
    """The least favourable estimate of a metric, and the records that have it.

    Attributes:
        estimate: the estimate of the first record.
        runs: the record, or several records if they are tied.
    """

    estimate: Estimate
    runs: list[Stored]


def evidence(model_board: ModelBoard, model_boards: list[ModelBoard]) -> Evidence:
    """Return the results of the model on one board.

    Args:
        model_board: the board.
        model_boards: all boards of the model, because calls count under attacks with every goal.
    """
    board, row, card = model_board.board, model_board.row, model_board.board.dataset
    pool = board_pool(model_board, model_boards)
    calls, flips = (_reported_recalls(pool), directed_flips(pool)) if pool else ([], [])
    call_lines = tuple(_line(pooled, pool) for pooled in calls if pool)
    first = next(iter(row.runs.values())).record
    eps = (0.0, *board.ladder)
    labels = ("clean", *(radius(e, board.norm, board.budget) for e in board.ladder))
    return Evidence(
        anchor=model_board.anchor,
        dataset=card.name,
        heading=plain(card.heading),
        setting=board.setting,
        threat=board.threat,
        norm=board.norm,
        budget=board.budget,
        objective=board.objective,
        measure=measure_words(board.norm, board.budget),
        oblivious=tuple(column for column in row.runs if column in row.oblivious),
        channels=board.channels,
        ladder=board.ladder,
        labels=labels,
        native=("", *(native_radius(e, card, board.norm, board.budget) for e in board.ladder)),
        headline=board.headline,
        defense=row.defense_title,
        defense_spec=row.key.defense,
        weights=row.key.weights,
        metric=board.score.metric,
        score=board.score.key,
        counted=board.score.least,
        rule=RULE if has_detectors(board) else "",
        standing=row.standing,
        doubts=row.reasons,
        crosscheck=row.crosscheck,
        images=row.images,
        patients=row.patients,
        worst=_worst(model_board, eps),
        attacks=_attacks(model_board, eps),
        calls=call_lines,
        flips=tuple(_line(pooled, pool) for pooled in flips if pool),
        unaimed=_unaimed(model_board, pool, [pooled.name for pooled in (*calls, *flips)]),
        regions=()
        if board.score.attacked or not pool
        else (*_regions(pool), *_mask_metrics(model_board, eps)),
        critical=_critical(model_board, call_lines),
        subgroups=_subgroups(model_board, eps),
        detectors=_detectors(model_board),
        proved=_proved(model_board),
        proved_masks=_proved_masks(model_board),
        remaining=remaining(model_board),
        decision=decision_words(first),
        records=model_board.ids,
    )


def counted(model_board: ModelBoard) -> tuple[str, ...]:
    """Return the ids of the cases that the worst case covers."""
    return tuple(run.record.case_id for run in valid_runs(model_board.row))


def _worst(model_board: ModelBoard, eps: tuple[float, ...]) -> Line:
    row, ids = model_board.row, counted(model_board) or model_board.ids
    clean = Cell(eps=0.0, estimate=row.clean, records=ids)
    cells = [clean] if model_board.board.score.clean else []  # otherwise it is 1 by construction
    for rung, estimate in enumerate(row.worst):
        by = _listed(row.strongest(rung)) if math.isfinite(estimate.value) else ""
        cells.append(Cell(eps=eps[rung + 1], estimate=estimate, records=ids, by=by))
    score = model_board.board.score
    title = "Worst case of all attacks, image by image"
    return Line(name="worst_case", title=title, kind=score.kind, n=row.images, cells=tuple(cells))


def _attacks(model_board: ModelBoard, eps: tuple[float, ...]) -> tuple[Line, ...]:
    lines = []
    for column, estimates in model_board.row.scores.items():
        run = model_board.runs[column].record
        cells = tuple(
            Cell(eps=e, estimate=estimate, records=(run.case_id,))
            for e, estimate in zip(eps[1:], estimates, strict=True)
        )
        kind = model_board.board.score.kind
        lines.append(Line(name=run.case.attack, title=column, kind=kind, n=run.n, cells=cells))
    return tuple(lines)


def _reported_recalls(pool: Pool) -> list[PooledShare]:
    """Return the recalls of a table, without those that equal sensitivity or specificity."""
    card, all_recalls = pool.card, recalls(pool)
    if card.task == "multi_label" or card.normal is None:
        return all_recalls
    if card.binary:
        return all_recalls[:2]
    return [
        pooled for pooled in all_recalls if pooled.name != f"recall[{card.classes[card.normal]}]"
    ]


def _line(pooled: PooledShare, pool: Pool, kind: str = "percent") -> Line:
    none = (None,) * len(pool.levels)
    counts: tuple[int | None, ...] = pooled.counts if kind == "percent" else none
    cells = tuple(
        Cell(eps=e, estimate=estimate, records=pool.ids, count=count)
        for e, estimate, count in zip(pool.levels, pooled.estimates, counts, strict=True)
    )
    lax = kind == "percent" and pool.home.record.case.threat != "control"
    aimed = not lax or not lacking(pooled.name, pool.card, pool.covering())
    return Line(
        name=pooled.name, title=pooled.title, kind=kind, n=pooled.n, cells=cells, aimed=aimed
    )


def _unaimed(model_board: ModelBoard, pool: Pool | None, names: list[str]) -> tuple[str, ...]:
    """Return the reason why some of these calls are not a worst case; empty if all are."""
    if pool is None or model_board.board.control:
        return ()
    missing = [need for name in names for need in lacking(name, pool.card, pool.covering())]
    return (untested(list(dict.fromkeys(missing)), list(pool.runs)),) if missing else ()


def _regions(pool: Pool) -> list[Line]:
    return [_line(pooled, pool, "unit") for pooled in region_dice(pool)]


def _mask_metrics(model_board: ModelBoard, eps: tuple[float, ...]) -> list[Line]:
    """Return the metrics of masks that have no worst case image by image."""
    runs = valid_runs(model_board.row)
    if not runs or model_board.board.dataset.task != "segmentation":
        return []
    named = _written(runs[0].record)
    lines = []
    for name, higher in _OF_MASKS.items():
        if name not in named:
            continue
        label, kind = named[name]
        hardest_runs = [hardest(runs, name, e, higher=higher) for e in eps]
        cells = tuple(
            Cell(
                eps=e,
                estimate=cell.estimate,
                records=tuple(r.record.case_id for r in (cell.runs if e else cell.runs[:1])),
                by=_listed(_columns_of(model_board, cell.runs)) if e else "",
            )
            for e, cell in zip(eps, hardest_runs, strict=True)
            if cell is not None
        )
        if len(cells) == len(eps):
            lines.append(Line(name=name, title=label, kind=kind, n=runs[0].record.n, cells=cells))
    return lines


def _columns_of(model_board: ModelBoard, runs: list[Stored]) -> list[str]:
    return [column for column, run in model_board.runs.items() if any(run is r for r in runs)]


def _listed(attacks: list[str]) -> str:
    """Return the names of up to three attacks, and how many more there are.

    >>> _listed(["FGSM", "PGD-40, from chest_vgg"]), _listed(["A", "B", "C", "D", "E"])
    ('FGSM; PGD-40, from chest_vgg', 'A; B; C and 2 more')
    """
    more = len(attacks) - _NAMED
    return "; ".join(attacks[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _written(record: Record) -> dict[str, tuple[str, str]]:
    """Return the title of each metric of masks in a table, and the format of its value."""
    shown = {row.label: row.kind for row in metric_rows(record)}
    starts = {"volume_error": "Volume error", "lesion_miss": "Lesions missed", "hd95": "HD95"}
    return {
        name: (label, kind)
        for name, start in starts.items()
        for label, kind in shown.items()
        if label.startswith(start)
    }


def hardest(
    runs: list[Stored],
    metric: str,
    eps: float,
    *,
    higher: bool,
    end: Literal["low", "value", "high"] = "value",
) -> Hardest | None:
    """Return the least favourable value of a metric over several records.

    Args:
        runs: the records.
        metric: the name of the metric in the records.
        eps: the radius, which may be at a different rung in each record; 0 = clean.
        higher: whether higher is better.
        end: what is compared: the value, or an end of its interval.

    Returns:
        None if no record has the metric, or if it is undefined in all of them.
    """
    pairs = [
        (estimate, run)
        for run in runs
        if (rung := rung_of(eps, (0.0, *run.record.case.ladder))) is not None
        and rung < len(run.record.rungs)
        and (estimate := run.record.rungs[rung].metrics.get(metric)) is not None
        and not math.isnan(estimate.value)
    ]
    if not pairs:
        return None
    pick = min if higher else max
    numbers = [getattr(estimate, end) for estimate, _ in pairs]
    worst = pick(numbers)
    tied = [i for i, number in enumerate(numbers) if number == worst]
    return Hardest(pairs[tied[0]][0], [pairs[i][1] for i in tied])


def _critical(model_board: ModelBoard, calls: tuple[Line, ...]) -> tuple[Critical, ...]:
    """Return where the worst case, and the sensitivity if an attack aimed at it, fall below a half.

    A board on which nothing was scored has none.
    """
    board, ids = model_board.board, counted(model_board) or model_board.ids
    found: list[tuple[str, str, Crossing | None]] = [
        (board.score.metric, critical_head(board), critical(board, model_board.row))
    ]
    for line in calls:
        if line.name == "sensitivity" and line.aimed:
            radii = [cell.eps for cell in line.cells]
            fall = crossing(radii, [cell.estimate for cell in line.cells])
            found.append((line.name, critical_head(board, HALF, line.name), fall))
    return tuple(
        Critical(
            name=name,
            title=title,
            level=fall.level,
            held=fall.held,
            fell=fall.fell,
            low=fall.low,
            high=fall.high,
            words=critical_words(board, fall),
            records=ids,
        )
        for name, title, fall in found
        if fall is not None
    )


def _subgroups(model_board: ModelBoard, eps: tuple[float, ...]) -> tuple[Subgroups, ...]:
    """Return the subgroups of each column with their worst cases and differences."""
    board, ids = model_board.board, counted(model_board) or model_board.ids
    skipped = 0 if board.score.clean else 1  # then the clean score is 1 by construction
    rung = board.headline + 1

    def line(group: Subgroup) -> SubgroupLine:
        cells = zip(eps[skipped:], group.scores[skipped:], strict=True)
        return SubgroupLine(
            name=plain(group.name),
            n=group.images,
            patients=group.patients,
            cells=tuple(Cell(eps=e, estimate=score, records=ids) for e, score in cells),
            difference=group.difference[rung],
            p=group.p[rung],
            versus=difference_words(board, group, rung),
            notes=tuple(group_notes(board, group)),
        )

    return tuple(
        Subgroups(
            column=plain(grouping.column),
            unknown=grouping.unknown,
            lines=tuple(map(line, grouping.subgroups)),
            lowest=tuple(
                Cell(eps=e, estimate=grouping.lowest(place), records=ids)
                for place, e in enumerate(eps)
                if place >= skipped
            ),
        )
        for grouping in by_subgroup(board, model_board.row)
    )


def _proved(model_board: ModelBoard) -> Proved | None:
    """Return the certificate of a board's defense at a few radii; None if it has none."""
    certified = certificate(model_board.row)
    if certified is None:
        return None
    record, proved = certified
    last = len(proved.radii) - 1
    places = sorted({round(step * last / (_RADII - 1)) for step in range(_RADII)})
    cells = tuple(
        Cell(eps=proved.radii[i], estimate=proved.correct[i], records=(record.case_id,))
        for i in places
    )
    return Proved(words=certified_words(model_board.row), cells=cells)


def _proved_masks(model_board: ModelBoard) -> MaskProof | None:
    """Return the certificate of the masks of a board; None if it has none."""
    found = of_row(model_board.board, model_board.row)
    if found is None:
        return None
    radius, ids = found.proved.radius, (found.record.case_id,)
    attacked = None
    if found.attacked is not None:
        attacked = Cell(eps=found.eps, estimate=found.attacked, records=counted(model_board))
    return MaskProof(
        words=mask_words(found),
        broken=found.broken,
        radius=radius,
        dice=Cell(eps=radius, estimate=found.proved.dice, records=ids),
        attacked=attacked,
        certified=Cell(eps=radius, estimate=found.proved.certified, records=ids),
        regions={plain(name): e for name, e in found.proved.regions.items()},
    )


def _detectors(model_board: ModelBoard) -> tuple[DetectorLine, ...]:
    """Return the metrics of the detector under each attack at the headline radius."""
    rung = model_board.board.headline + 1
    lines = []
    for column, run in model_board.runs.items():
        record = run.record
        if record.status != "ok" or not has_detector(record) or rung >= len(record.rungs):
            continue
        metrics = record.rungs[rung].metrics
        own_metrics = {n: metrics[n] for n in (*COLUMNS, _ALARMS) if n in metrics}
        blind = record.case.knowledge == "oblivious"
        lines.append(
            DetectorLine(
                name=model_board.row.defense_title,
                knowledge="oblivious" if blind else "adaptive",
                attack=column,
                eps=model_board.board.ladder[model_board.board.headline],
                metrics=own_metrics,
                records=(record.case_id,),
            )
        )
    return tuple(lines)
