"""How often subgroups are right, by simulation: `python -m tests.simulation_subgroups` prints it.

Patients have 1 to 8 images, and two images of a patient are alike: `icc` is their correlation. Each
study has columns of sex (two subgroups), site (three, the smallest with a tenth of the patients)
and scanner, which changes from image to image, so that patients have images on both sides. The test
draws 499 permutations here; its level is the same with any number of them.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd

from robustbench_med.bench.record import Stored
from robustbench_med.stats.label_permutation import two_sided_p
from robustbench_med.subgroups import Grouping, groupings

Rng = np.random.Generator
SITES = (0.6, 0.3, 0.1)

WARNED = tuple(
    (masks, patients, icc, means)
    for masks, patients in ((True, 30), (True, 60), (True, 100), (False, 30))
    for icc in (0.3, 0.7)
    for means in ((0.5, 0.5), (0.9, 0.9))
)


class Rates(NamedTuple):
    """What a number of studies gave.

    Attributes:
        scores: share of the intervals of a subgroup's score that hold the truth.
        differences: the same of the differences between the sexes.
        false: share of the studies with any difference called significant that is none.
    """

    scores: float
    differences: float
    false: float


def study(
    rng: Rng,
    patients: int,
    means: tuple[float, float],
    *,
    icc: float,
    masks: bool,
    draws: int = 499,
) -> list[Grouping]:
    """Return the subgroups of one study; `means` are the true scores of the sexes."""
    number = np.repeat(np.arange(patients), rng.integers(1, 9, patients))
    sex = rng.permuted(np.arange(patients) % 2)
    site = rng.choice(3, patients, p=SITES)
    scanner = rng.integers(2, size=len(number))
    mean = np.asarray(means)[sex]
    total = 1 / icc - 1
    each = rng.beta(mean * total, (1 - mean) * total)[number]
    scores: Any = rng.random(len(number)) < each
    if masks:  # a Dice: the share of twenty such parts
        scores = rng.binomial(20, each) / 20
    ids = [f"i{place:04d}" for place in range(len(number))]
    samples = pd.DataFrame(
        {
            "sample": ids,
            "patient": number.astype(str),
            "eps": 0.0,
            "subgroup:sex": np.array(["F", "M"])[sex[number]],
            "subgroup:site": np.array(["A", "B", "C"])[site[number]],
            "subgroup:scanner": np.array(["x", "y"])[scanner],
        }
    )
    record: Any = SimpleNamespace(patients=patients)
    with mock.patch("robustbench_med.subgroups.two_sided_p", partial(two_sided_p, draws=draws)):
        return groupings(pd.DataFrame({0: scores}, index=ids), Stored(record, samples, ""))


def rates(
    patients: int,
    means: tuple[float, float],
    *,
    icc: float,
    masks: bool = False,
    runs: int = 500,
    seed: int = 0,
) -> Rates:
    """Return how often intervals hold the truth, and how often a difference is called falsely.

    Where the sexes differ, their difference is none of the false ones.
    """
    rng = np.random.default_rng(seed)
    held, differences, false = [], [], 0
    for _ in range(runs):
        found = {
            grouping.column: grouping
            for grouping in study(rng, patients, means, icc=icc, masks=masks)
        }
        for group, mean in zip(found["sex"].subgroups, means, strict=True):
            held.append(group.scores[0].low <= mean <= group.scores[0].high)
        true = means[0] - means[1]
        first = found["sex"].subgroups[0].difference[0]
        differences.append(first.low <= true <= first.high)
        nulls = [g for g in found.values() if true == 0 or g.column != "sex"]
        false += any(group.p[0] <= 0.05 for grouping in nulls for group in grouping.subgroups)
    return Rates(float(np.mean(held)), float(np.mean(differences)), false / runs)


class Warned(NamedTuple):
    """Shares of the intervals of scores, and of the lowest score, that hold the truth.

    Attributes:
        warned: share of the intervals with a warning that rare failures may be missing.
        with_warning: share of these that hold the truth; NaN if there are none.
        without_warning: the same of the others.
        lowest: share of the intervals of the lowest true score of the sexes that hold it.
        uncorrected: the same of the interval of the sex with the lowest mean.
    """

    warned: float
    with_warning: float
    without_warning: float
    lowest: float
    uncorrected: float


def warnings(
    patients: int,
    means: tuple[float, float],
    *,
    icc: float,
    masks: bool = True,
    runs: int = 300,
    seed: int = 0,
) -> Warned:
    """Return how often intervals with and without a warning hold the truth, and of the lowest."""
    rng, true = np.random.default_rng(seed), min(means)
    held: dict[bool, list[bool]] = {True: [], False: []}
    lowest, uncorrected = [], []
    for _ in range(runs):
        made = study(rng, patients, means, icc=icc, masks=masks, draws=1)
        sexes = next(grouping for grouping in made if grouping.column == "sex")
        for group, mean in zip(sexes.subgroups, means, strict=True):
            held[group.rare(0)].append(group.scores[0].low <= mean <= group.scores[0].high)
        worst, e = sexes.worst(0), sexes.lowest(0)
        assert worst is not None
        lowest.append(e.low <= true <= e.high)
        uncorrected.append(worst.scores[0].low <= true <= worst.scores[0].high)
    shares = [float(np.mean(held[k])) if held[k] else float("nan") for k in (True, False)]
    rows = [float(np.mean(row)) for row in (lowest, uncorrected)]
    return Warned(len(held[True]) / (2 * runs), *shares, *rows)


def main() -> None:
    """Print the table of docs/statistics.md."""
    print("| score | patients | correlation | true scores | scores | difference | false |")
    print("|---|---|---|---|---|---|---|")
    for masks in (False, True):
        for patients in (30, 100):
            for icc in (0.3, 0.7):
                for means in ((0.5, 0.5), (0.9, 0.9), (0.6, 0.9)):
                    r = rates(patients, means, icc=icc, masks=masks)
                    print(
                        f"| {'Dice' if masks else 'right or wrong'} | {patients} | {icc} "
                        f"| {means[0]}, {means[1]} | {r.scores:.3f} | {r.differences:.3f} "
                        f"| {r.false:.3f} |",
                        flush=True,
                    )
    print(
        "| score | patients | correlation | true scores | warned | with a warning "
        "| without | lowest | uncorrected |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for masks, patients, icc, means in WARNED:
        w = warnings(patients, means, icc=icc, masks=masks)
        print(
            f"| {'Dice' if masks else 'right or wrong'} | {patients} | {icc} "
            f"| {means[0]}, {means[1]} | {w.warned:.2f} | {w.with_warning:.3f} "
            f"| {w.without_warning:.3f} | {w.lowest:.3f} | {w.uncorrected:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
