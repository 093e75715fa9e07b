"""Evaluation: the records of one model, and what they say together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from robustbench_med.bench.record import Estimate, Flag, Stored
from robustbench_med.errors import SpecError
from robustbench_med.worst_case import lowest, means, score_table


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What one model still does under one or several attacks.

    The score of an image is its worst under any of the attacks: of labels and findings whether it
    is right when clean and stands (`accuracy`), of masks its lowest Dice (`dice`). With another
    objective than untargeted it is what a board of that objective shows.

    Attributes:
        records: a record an attack, each with its samples table.
    """

    records: list[Stored]

    def __repr__(self) -> str:
        case, worst = self.records[0].record.case, self.interval
        names = ", ".join(dict.fromkeys(one.record.case.attack for one in self.records))
        score = f"{worst.value:.3f} ({worst.low:.3f} to {worst.high:.3f})"
        return (
            f"<Evaluation of {case.victim} on {case.dataset}: clean {self.clean:.3f}, "
            f"under {names} at {self.radii[-1]:.5f} {score}, "
            f"{len(self.flags)} flags>"
        )

    @cached_property
    def radii(self) -> tuple[float, ...]:
        """Every radius asked for, rising."""
        return tuple(sorted({eps for one in self.records for eps in one.record.case.ladder}))

    @property
    def accuracy(self) -> float:
        """The worst-case accuracy at the largest radius.

        Raises:
            SpecError: of masks.
        """
        self._expect(masks=False)
        return self.interval.value

    @property
    def dice(self) -> float:
        """The worst-case Dice at the largest radius, mean over regions and images.

        Raises:
            SpecError: of labels or findings.
        """
        self._expect(masks=True)
        return self.interval.value

    @property
    def clean(self) -> float:
        """The accuracy or Dice without an attack."""
        return self.clean_interval.value

    @cached_property
    def interval(self) -> Estimate:
        """The worst-case score at the largest radius with its 95 % interval."""
        return self.at(self.radii[-1])

    @cached_property
    def clean_interval(self) -> Estimate:
        """The score without an attack with its 95 % interval."""
        return self.at(0)

    def at(self, eps: float | int) -> Estimate:
        """Return the worst-case score at one of the radii asked for; 0 is clean.

        An attack that was asked for smaller radii alone counts with its largest: the smaller ball
        lies inside.

        Raises:
            SpecError: another radius.
        """
        eps, known = float(eps), (0.0, *self.radii)
        if not any(math.isclose(eps, one, rel_tol=1e-6, abs_tol=1e-12) for one in known):
            listed = ", ".join(f"{one:g}" for one in known)
            raise SpecError(f"expected a radius asked for ({listed}), got {eps:g}")
        tables = [score_table(stored)[[0, _rung(stored, eps)]] for stored in self.records]
        for table in tables:
            table.columns = pd.Index([0, 1])
        return means(lowest(tables), self.records[0])[1]

    @property
    def attack_success(self) -> float:
        """Share of the images attacked that any attack broke at the largest radius."""
        broken = pd.concat([_broken(one, self.radii[-1]) for one in self.records], axis=1)
        return float(broken.any(axis=1).mean()) if len(broken) else math.nan

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Every reason to distrust one of the records."""
        return tuple(flag for one in self.records for flag in one.record.flags)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The samples tables of all records, with the attack of each in a column `attack`."""
        parts = [one.samples.assign(attack=one.record.case.attack) for one in self.records]
        return pd.concat(parts, ignore_index=True)

    def _expect(self, *, masks: bool) -> None:
        if masks != (self.records[0].record.dataset_card.task == "segmentation"):
            found, other = ("masks", "dice") if not masks else ("labels", "accuracy")
            raise SpecError(
                f"expected {'masks' if masks else 'labels'}, got {found}: read .{other}"
            )


def _rung(stored: Stored, eps: float) -> int:
    """Return the column of the largest radius up to `eps`; 0 is clean."""
    return sum(one <= eps * (1 + 1e-6) for one in stored.record.case.ladder)


def _broken(stored: Stored, eps: float) -> pd.Series[bool]:
    """Return which of the images attacked are broken at a radius, by their ids."""
    rung = (0.0, *stored.record.case.ladder)[_rung(stored, eps)]
    rows = stored.samples[(stored.samples["eps"] == rung) & stored.samples["attacked"]]
    return rows.set_index("sample")["broken"]
