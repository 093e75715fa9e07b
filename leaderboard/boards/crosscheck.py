"""Cross-check: find images that an attack missed and on which a weaker attacker succeeds. Pure.

An attack that knows the whole model should succeed wherever an attack without that knowledge does.
If it does not, its gradients misled it or it was too weak, and the robustness may not be real.
Source: Athalye, Carlini, Wagner, ICML 2018, section 3.1; Carlini et al. 2019, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from robustbench_med.bench.record import Record, Stored
from robustbench_med.cards import AttackCard
from robustbench_med.worst_case import lowest, rung_of, standing_table

from ..wording.text import radius

ALLOWED = 1  # image at each radius, since one success may be luck
_KNOWS = {
    "universal": "which has one perturbation for all images",
    "query": "which only queries the model's outputs",
    "label": "which only asks what the model decides",
    "transfer": "which was crafted on another model",
    "no_box": "which was crafted on a model trained on other data",
    "control": "which is no attack at all",
    "oblivious": "which does not know the defense",
}


class Missed(NamedTuple):
    """The number of robust images at one radius on which another attack succeeds."""

    broken: int
    robust: int
    rung: int


class Scale(NamedTuple):
    """The radii of a board.

    Attributes:
        ladder: the radii in the unit of the board.
        radii: the same in image units; NaN where no record states them.
        norm, budget: the norm and the unit with which radii are written.
    """

    ladder: tuple[float, ...]
    radii: tuple[float, ...]
    norm: str
    budget: str

    @classmethod
    def of(
        cls, ladder: tuple[float, ...], records: Iterable[Record], norm: str, budget: str
    ) -> Scale:
        """Return the scale of a board's `ladder` from records on it."""
        radii = [math.nan] * len(ladder)
        for record in records:
            for eps, size in zip(record.case.ladder, _radii(record), strict=True):
                radii[rung_of(eps, ladder)] = size
        return cls(ladder, tuple(radii), norm, budget)

    def shared(self, record: Record) -> list[tuple[int, int]]:
        """Return the rungs at which a record of any board has the same radius in image units."""
        radii = _radii(record)
        pairs = ((i, j) for i in range(len(self.radii)) for j in range(len(radii)))
        return [(i, j) for i, j in pairs if math.isclose(self.radii[i], radii[j], rel_tol=1e-6)]

    def at(self, rung: int) -> str:
        """Return a radius in words."""
        return radius(self.ladder[rung], self.norm, self.budget)


def _radii(record: Record) -> tuple[float, ...]:
    return record.radii or record.case.ladder


def comparable(stored: Stored) -> tuple[object, ...]:
    """Return a key that is equal for two records that can be compared image by image."""
    case = stored.record.case
    victim = (case.victim, case.victim_sha256, case.defense, case.operating_point, case.draws)
    aim = (case.objective, case.norm, tuple(sorted(case.channels.items())))
    return (case.dataset, case.data_sha256, case.split, *aim, *victim)


def weaker_attackers(records: Iterable[Stored]) -> dict[tuple[object, ...], list[Stored]]:
    """Return the records of attackers who do not know the whole model, grouped by `comparable`.

    A record that is invalid or over its budget proves nothing and is left out.
    """
    weaker: dict[tuple[object, ...], list[Stored]] = {}
    for stored in records:
        record = stored.record
        within = record.audit is None or record.audit.over_budget == 0
        if record.case.threat in _KNOWS and record.status == "ok" and within:
            weaker.setdefault(comparable(stored), []).append(stored)
    return weaker


def hidden_gradients(robust: pd.DataFrame, scale: Scale, others: Mapping[str, Stored]) -> list[str]:
    """Return a reason to doubt a white-box row for each kind of attacker that beats it.

    Args:
        robust: which images are robust against all attacks of the row; a row for each image, a
            column for each rung (0 = clean).
        scale: the radii of the columns.
        others: name -> record of a weaker attacker on the same victim and data; its ladder may
            differ.
    """
    worst: dict[str, tuple[Missed, str]] = {}
    for name, other in others.items():
        right = lowest([standing_table(other)])
        missed = _most_missed(robust, right, scale.shared(other.record))
        threat = _kind(other.record)
        if missed.broken > max(ALLOWED, worst[threat][0].broken if threat in worst else 0):
            worst[threat] = missed, name
    return [
        f"{missed.broken} of {missed.robust} images are robust at ε = {scale.at(missed.rung)} "
        f"against attacks that know the model, but not against {name}, {_KNOWS[threat]} ({ALLOWED} "
        "allowed): hidden gradients misled those attacks, or they were too weak"
        for threat, (missed, name) in sorted(worst.items(), key=lambda item: -item[1][0].broken)
    ]


def _kind(record: Record) -> str:
    oblivious = record.case.knowledge == "oblivious"
    return "oblivious" if oblivious else record.case.threat


def summary(names: Iterable[str], *, beaten: bool) -> str:
    """Return which attacks were compared with those of a white-box row, and the result."""
    listed = "; ".join(sorted(names))  # a name may hold a comma
    if not listed:
        return "no attack with less knowledge was run on the same images, so none was compared"
    end = "see above" if beaten else f"none succeeds on more than {ALLOWED} robust image"
    return f"compared, image by image, with attacks that have less knowledge ({listed}): {end}"


def single_step_doubts(runs: dict[str, Stored], scale: Scale) -> list[str]:
    """Return a reason to doubt a row for each single-step attack that beats its iterative ones.

    Args:
        runs: column -> valid record, all from one white-box row.
        scale: the radii of the board.
    """
    iterative = [run for run in runs.values() if many_steps(run.record.attack_card)]
    single = {column: run for column, run in runs.items() if _single_step(run.record.attack_card)}
    if not iterative or not single:
        return []
    robust = lowest([standing_table(run, scale.ladder) for run in iterative])
    reasons = []
    for column, run in single.items():
        right = lowest([standing_table(run)])
        ladder = run.record.case.ladder
        every = [(rung_of(eps, scale.ladder), rung) for rung, eps in enumerate(ladder)]
        missed = _most_missed(robust, right, every)
        if missed.broken > ALLOWED:
            reasons.append(
                f"{missed.broken} of {missed.robust} images are robust at "
                f"ε = {scale.at(missed.rung)} against attacks of many steps, but not against the "
                f"single step of {column} ({ALLOWED} allowed): hidden gradients misled the steps"
            )
    return reasons


def _single_step(card: AttackCard) -> bool:
    return card.schedule == "ascend" and not card.effort


def many_steps(card: AttackCard) -> bool:
    """Whether an attack on single images takes more than one step."""
    return not _single_step(card) and card.schedule != "universal"


def _most_missed(robust: pd.DataFrame, right: pd.DataFrame, rungs: list[tuple[int, int]]) -> Missed:
    """Return the radius at which another attack succeeds on most robust images of both.

    Args:
        robust: which images are robust, with a column for each scored rung of the board.
        right: which images the other attack leaves right, with columns on its own ladder.
        rungs: pairs of rungs of the two ladders that have the same radius.
    """
    images = robust.index.intersection(right.index)
    robust, right = robust.loc[images], right.loc[images]
    counts = [Missed(0, 0, 0)]
    for i, j in rungs:
        if i + 1 not in robust.columns:
            continue
        missed = robust[i + 1].to_numpy(dtype=bool)
        clean, after = (right[c].to_numpy(dtype=bool) for c in (0, j + 1))
        counts.append(Missed(int((missed & clean & ~after).sum()), int(missed.sum()), i))
    return max(counts, key=lambda missed: missed.broken)
