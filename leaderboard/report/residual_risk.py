"""Compute the residual risk, and state the limits of the figures."""

from __future__ import annotations

import math

import pandas as pd

from robustbench_med.stats.intervals import miss_bound, wilson
from robustbench_med.stats.paired_tests import fewest_changes

from ..tables import patients
from ..wording.text import plain, radius
from .document import Remaining
from .model_boards import ModelBoard
from .pooled_runs import valid_runs

ALPHA = 0.05


def least_changes(n: int) -> float:
    """Return the smallest share of `n` units whose change is significant by McNemar's exact test.

    All changes have one direction, and the test is two-sided at 5 %: 2 · 0.5^k <= 0.05, so k = 6.
    The result is NaN below 6 units.
    Source: McNemar 1947, exact binomial form.

    >>> least_changes(60), least_changes(5)
    (0.1, nan)
    """
    k = fewest_changes(ALPHA / 2)
    return k / n if n >= k else float("nan")


def remaining(model_board: ModelBoard) -> Remaining | None:
    """Return the residual risk at the smallest radius; None if nothing was scored.

    If patients are known, it counts the patients with an image that is right when clean and broken
    by any attack; else it counts such images.
    """
    row, runs = model_board.row, valid_runs(model_board.row)
    if not runs or not row.images or model_board.board.control:
        return None
    sound = row.robust[0].to_numpy(dtype=bool)
    broken = sound & ~row.robust[1].to_numpy(dtype=bool)
    by_patient = row.patients is not None
    owner = row.robust.index.to_series()
    if by_patient:
        table = runs[0].samples.drop_duplicates("sample").set_index("sample")
        owner = table["patient"].loc[row.robust.index]
    units = pd.Series(broken).groupby(owner.to_numpy()).any()
    changed, of = int(units.sum()), len(units)
    return Remaining(
        eps=model_board.board.ladder[0],
        units="patients" if by_patient else "images",
        changed=changed,
        of=of,
        share=wilson(changed, of),
        least_seen=least_changes(of),
        possible=miss_bound(of),
    )


def _sample(title: str, mine: list[ModelBoard]) -> str:
    """Return how many images the boards of a dataset have, and which changes they can show."""
    images = sorted({model_board.row.images for model_board in mine if model_board.row.images})
    sizes = sorted({model_board.row.patients or model_board.row.images for model_board in mine})
    units = (
        "patients"
        if any(model_board.row.patients is not None for model_board in mine)
        else "images"
    )
    known = {size: least_changes(size) for size in sizes}
    seen = [
        f"{round(least * size)} of {size} {units} ({100 * least:.1f} %)"
        for size, least in known.items()
        if math.isfinite(least)
    ]
    few = [str(size) for size, least in known.items() if not math.isfinite(least)]
    smallest = [
        f"a change of fewer than {' or '.join(seen)} cannot be distinguished from chance"
        if seen
        else "",
        f"{' or '.join(few)} {units} are too few to distinguish any change from chance"
        if few
        else "",
    ]
    counts = (
        f"{' / '.join(map(str, sizes))} patients"
        if units == "patients"
        else patients(mine[0].board)
    )
    return (
        f"Sample of {title}: {' / '.join(map(str, images)) or 'no'} images, {counts}; "
        f"{'; '.join(filter(None, smallest))} (exact McNemar test at 5 %). Intervals cover the "
        "sampling of images (by patient where patients are known), not the training of the model."
    )


def limits(model_boards: list[ModelBoard], lines: list[str]) -> tuple[str, ...]:
    """Return the limits of the figures in sentences, the gravest first; `lines` come last."""
    cards = {
        model_board.board.dataset.name: model_board.board.dataset for model_board in model_boards
    }
    synthetic = [plain(card.title) for card in cards.values() if card.synthetic]
    runs = [run.record for model_board in model_boards for run in model_board.runs.values()]
    sentences = []
    if synthetic:
        sentences.append(
            f"Synthetic data: {', '.join(synthetic)}. The images are drawn phantoms, not patients; "
            "they compare attacks and models and say nothing about clinical use."
        )
    for card in cards.values():
        mine = [
            model_board
            for model_board in model_boards
            if model_board.board.dataset.name == card.name
        ]
        sentences.append(_sample(plain(card.title), mine))
        sentences += [f"{plain(card.title)}: {plain(note)}" for note in card.notes]
    if any(record.patients is None for record in runs):
        sentences.append(
            "Where patients are not known, images are treated as independent. If several are of "
            "one patient, the intervals are too narrow."
        )
    attacks = [r.case for r in runs if r.case.threat != "shift"]
    largest = sorted({radius(case.ladder[-1], case.norm, case.budget) for case in attacks})
    if largest:
        sentences.append(f"No radius above the largest tried was tested ({', '.join(largest)}).")
    severest = sorted({f"{r.case.ladder[-1]:.3g}" for r in runs if r.case.threat == "shift"})
    if severest:
        sentences.append(
            f"No severity of a shift above the largest tried was tested ({', '.join(severest)})."
        )
    sentences.append(
        "Robustness under attack is an upper bound: an attack that fails proves nothing."
    )
    if any(record.provenance.git_dirty for record in runs):
        sentences.append(
            "Some records were made from a checkout with uncommitted changes (marked +)."
        )
    if any(not record.provenance.git_commit for record in runs):
        sentences.append("Some records do not state the commit they were made from.")
    return (*sentences, *map(plain, lines))
