"""The scores of one model under several attacks as a frame, a LaTeX table and a figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from robustbench_med.bench.case import Case
from robustbench_med.bench.record import Stored
from robustbench_med.cards import SEVERITY
from robustbench_med.paper import cell, escape, latex_table
from robustbench_med.spec import Spec
from robustbench_med.stats import UNDEFINED, Estimate
from robustbench_med.worst_case import image_score, lowest, means, rung_of, score_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = "worst_case"
_NAMES = {  # metric -> name on an axis and in a caption
    "accuracy": "accuracy",
    "dice": "Dice",
    "1-attack_success": "share of goals not reached",
    "1-target_dice": "1 − target Dice",
}


class ScoreFrame(NamedTuple):
    """The scores of one model: a row per radius, a column per attack.

    Attributes:
        radii: the radii, 0 first.
        columns: column name -> score at each radius; the worst case is the first column.
        metric: the name of the score.
        percent: whether the score is a share that is printed in percent.
        case: a case of the model.
    """

    radii: tuple[float, ...]
    columns: dict[str, tuple[Estimate, ...]]
    metric: str
    percent: bool
    case: Case

    def table(self, extra: Mapping[tuple[str, str], Sequence[float]]) -> pd.DataFrame:
        """Return the numbers; the columns have two levels, see `Evaluation.table`.

        Args:
            extra: more columns, by the name of one of these and their own.
        """
        numbers = {
            (name, field): [getattr(estimate, field) for estimate in estimates]
            for name, estimates in self.columns.items()
            for field in ("value", "low", "high")
        }
        for name in self.columns:
            numbers |= {key: list(value) for key, value in extra.items() if key[0] == name}
        return pd.DataFrame(numbers, index=pd.Index(self.radii, name="eps"))

    def latex(self, *, caption: str | None, label: str) -> str:
        """Return the table in LaTeX, see `Evaluation.to_latex`."""
        unit = r", \%" if self.percent else ""
        heads = {WORST: f"worst case{unit}"}
        cells: dict[str, list[str]] = {
            "severity" if self.shift else "radius": [
                self._radius(eps) if eps else "clean" for eps in self.radii
            ]
        }
        for name, estimates in self.columns.items():
            heading = heads.get(name, f"{escape(name)}{unit}")
            cells[heading] = [cell(estimate, percent=self.percent) for estimate in estimates]
        if caption is None:
            what = "acquisition shifts" if self.shift else f"{_NORMS[self.case.norm]} attacks"
            caption = escape(
                f"{_first_upper(self.metric)} of {self.case.victim} on {self.case.dataset} with "
                f"95 % intervals ({what}). The worst case is taken image by image over all "
                f"{'shifts' if self.shift else 'attacks'}."
            )
        return latex_table(pd.DataFrame(cells), caption=caption, label=label)

    @property
    def shift(self) -> bool:
        """Whether nobody attacks, so that the radii are severities."""
        return self.case.norm == SEVERITY

    def _radius(self, eps: float) -> str:
        image_units = self.case.norm == "linf" and self.case.budget == "absolute"
        return f"{255 * eps:.3g}/255" if image_units else f"{eps:.3g}"

    def plot(self) -> Figure:
        """Return the figure, see `Evaluation.plot`."""
        from matplotlib.figure import Figure

        factor = 100.0 if self.percent else 1.0
        grey = self.case.norm == "linf" and self.case.budget == "absolute"
        x = [255 * eps if grey else eps for eps in self.radii]
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for name, estimates in self.columns.items():
            if len(self.columns) == 2 and name != WORST:
                continue  # one attack is the worst case
            # an attack has a line through the radii at which it ran
            known = [i for i, estimate in enumerate(estimates) if math.isfinite(estimate.value)]
            at = [x[i] for i in known]
            value, low, high = (
                [factor * getattr(estimates[i], field) for i in known]
                for field in ("value", "low", "high")
            )
            worst = name == WORST
            style = {"color": "black", "linewidth": 2} if worst else {"linewidth": 1.2}
            heading = "worst case" if worst else name
            # a name may hold a "$"
            (line,) = axes.plot(
                at, value, marker="o", markersize=3, label=heading.replace("$", r"\$"), **style
            )
            axes.fill_between(at, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        unit = " (/255)" if grey else ""
        words = "severity" if self.shift else f"radius ε, {_NORMS[self.case.norm]}{unit}"
        axes.set_xlabel(words)
        axes.set_ylabel(f"{self.metric}, %" if self.percent else self.metric)
        axes.set_xlim(0, None)
        axes.set_ylim(-0.015 * factor, 1.015 * factor)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


_NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}


def score_frame(
    records: Sequence[Stored], radii: Sequence[float], worst: Callable[[float], Estimate]
) -> ScoreFrame:
    """Return the scores of the records of one model.

    Args:
        records: one record per attack.
        radii: all radii that were attacked, rising.
        worst: returns the worst case at a radius; 0 is clean.
    """
    rungs = (0.0, *radii)
    columns = {WORST: tuple(worst(eps) for eps in rungs)}
    for name, stored in zip(attack_names(records), records, strict=True):
        scores = means(lowest([score_table(stored)]), stored)
        ladder = (0.0, *stored.record.case.ladder)
        places = [0 if not eps else rung_of(eps, ladder) for eps in rungs]
        columns[name] = tuple(UNDEFINED if at < 0 else scores[at] for at in places)
    first = records[0].record
    metric = image_score(first.dataset_card, first.case.objective).metric
    percent = first.dataset_card.task != "segmentation"
    return ScoreFrame(rungs, columns, _NAMES.get(metric, metric), percent, first.case)


def attack_names(records: Sequence[Stored]) -> list[str]:
    """Return the attack of each record, with the parameters that distinguish two settings."""
    cases = [stored.record.case for stored in records]
    names = []
    for case in cases:
        peers = [other.parameters for other in cases if other.attack == case.attack]
        differing = {
            key: value
            for key, value in case.parameters.items()
            if any(peer.get(key) != value for peer in peers)
        }
        surrogate = f" from {case.surrogate}" if case.surrogate else ""
        names.append(f"{Spec(case.attack, differing)}{surrogate}")
    counts = Counter(names)
    numbered: Counter[str] = Counter()
    for i, name in enumerate(names):
        if counts[name] > 1:  # the cases differ in their radii, for example
            numbered[name] += 1
            names[i] = f"{name} #{numbered[name]}"
    return names


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:] if text else text
