"""Plan: from a suite to its cases. Reads cards and data, computes nothing on tensors."""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from robustbench_med import objectives, registry, spec
from robustbench_med.bench.case import Case
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.cards import AttackCard, ModelCard
from robustbench_med.datasets.dataset import Dataset
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import (
    BenchError,
    ChecksumError,
    DataError,
    SpecError,
    UnknownNameError,
    VictimError,
)
from robustbench_med.models.load import describe


class Planned(NamedTuple):
    """A case to run, with what running it needs and may cost."""

    case: Case
    data: Dataset
    model: ModelCard
    seconds: float | None  # at most, from the victim's card; None where the card does not know


class Broken(NamedTuple):
    """Cases that cannot run, and why: a damaged file costs its own cases, never the others."""

    label: str
    error: BenchError


def plan(suite: Suite, *, data: Path | None = None) -> tuple[list[Planned], list[Broken]]:
    """Return the cases of a suite in the order they run, and what cannot run.

    Raises:
        UnknownNameError, SpecError: a name, parameter, objective or ladder that is wrong: nothing
            is run.
    """
    planned: dict[str, Planned] = {}
    broken: list[Broken] = []
    for grid in suite.grids:
        check_ladder(grid.ladder)
        attacks = [attack_of(text, grid) for text in grid.attacks]
        for name in grid.datasets:
            try:
                dataset = load_dataset(name, data=data)
                sha256 = data_sha256(dataset, grid)
            except UnknownNameError:
                raise
            except BenchError as error:
                broken.append(Broken(name, error))
                continue
            objectives.make(grid.objective, dataset.card.task, k=len(dataset.card.classes))
            for victim in victims_of(grid, dataset):
                try:
                    model, digest = describe(victim, dataset.card)
                except (VictimError, ChecksumError) as error:
                    broken.append(Broken(f"{name} · {victim}", error))
                    continue
                for case in _cases(suite, grid, name, sha256, victim, digest, attacks):
                    seconds = estimate(case, dataset, model)
                    planned.setdefault(case.id, Planned(case, dataset, model, seconds))
    return list(planned.values()), broken


def check_ladder(ladder: tuple[float, ...]) -> None:
    """Raise SpecError unless the radii are positive and rise."""
    if min(ladder) < 0:
        raise SpecError(f"expected eps >= 0, got {min(ladder):g}")
    if not all(map(math.isfinite, ladder)):
        raise SpecError(f"expected finite eps, got {', '.join(f'{e:g}' for e in ladder)}")
    if ladder[0] == 0 or list(ladder) != sorted(set(ladder)):
        raise SpecError(
            f"expected a ladder of rising eps > 0, got {', '.join(f'{e:g}' for e in ladder)}"
        )


def attack_of(text: str, grid: Grid) -> tuple[AttackCard, dict[str, object]]:
    """Return an attack's card and all its parameters, those of the spec over the defaults.

    Raises:
        UnknownNameError: no such attack.
        SpecError: a parameter it does not have, or a norm it is not defined for.
    """
    name, given = spec.parse(text)
    card: AttackCard = registry.find("attacks", name)
    for key in given:
        if key not in card.parameters:
            known = ", ".join(card.parameters) or "none"
            raise SpecError(f"{name}: expected a known parameter ({known}), got {key!r}")
        if not _alike(given[key], card.parameters[key]):
            kind = type(card.parameters[key]).__name__
            raise SpecError(f"{name}: expected {key} to be of type {kind}, got {given[key]!r}")
        if key in card.positive and not given[key] > 0:
            raise SpecError(f"{name}: expected {key} > 0, got {given[key]!r}")
    if grid.norm not in card.norms:
        raise SpecError(f"{name}: expected norm in {', '.join(card.norms)}, got {grid.norm!r}")
    return card, {**card.parameters, **given}


def _alike(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def victims_of(grid: Grid, dataset: Dataset) -> list[str]:
    """Return the victims a grid names; "*" stands for every shipped victim of the dataset."""
    shipped = [c.name for c in registry.load("models").values() if c.dataset == dataset.card.name]
    named = [v for name in grid.victims for v in (shipped if name == "*" else [name])]
    if not named:
        raise SpecError(
            f"expected a victim for {dataset.card.name}, got none shipped: name one with --victim"
        )
    return list(dict.fromkeys(named))


def data_sha256(dataset: Dataset, grid: Grid) -> str:
    """Return the hash of what a score depends on: contract, split attacked, and validation."""
    card = dataset.card
    contract = (card.task, card.classes, card.normal, card.channels, card.size, card.bit_depth)
    splits = {grid.split, "val"} if grid.operating_point == "youden" else {grid.split}
    parts = [repr(contract)]
    for split in sorted(splits):
        try:
            parts.append(dataset.arrays(split).fingerprint())
        except DataError:
            if split != "val" or grid.split == "val":
                raise
            raise DataError(
                f"{dataset.card.name}: expected a validation split for the operating point, got "
                "none: add val_images and val_labels, or pass --operating-point argmax"
            ) from None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _cases(
    suite: Suite,
    grid: Grid,
    dataset: str,
    data_hash: str,
    victim: str,
    victim_hash: str,
    attacks: list[tuple[AttackCard, dict[str, object]]],
) -> Iterator[Case]:
    for card, parameters in attacks:
        yield Case(
            dataset=dataset,
            data_sha256=data_hash,
            split=grid.split,
            n=grid.n,
            victim=victim,
            victim_sha256=victim_hash,
            operating_point=grid.operating_point,
            attack=card.name,
            attack_version=card.version,
            parameters=parameters,
            guide=grid.guide,
            objective=grid.objective,
            norm=grid.norm,
            ladder=grid.ladder,
            seed=suite.seed,
        )


def passes(card: AttackCard, parameters: dict[str, object]) -> float:
    """Return the forward + backward passes an image costs at one radius, at most.

    >>> from robustbench_med import registry
    >>> passes(registry.find("attacks", "pgd"), {"steps": 40, "restarts": 2})
    80.0
    """

    def value(word: str) -> float:
        return float(parameters[word] if word in parameters else ast.literal_eval(word))  # type: ignore[arg-type]

    terms = [[value(word.strip()) for word in term.split("*")] for term in card.passes.split("+")]
    return sum(map(math.prod, terms))


def estimate(case: Case, dataset: Dataset, model: ModelCard) -> float | None:
    """Return the seconds a case takes at most, or None where the victim's card has no timing."""
    if model.measured is None:
        return None
    card: AttackCard = registry.find("attacks", case.attack)
    available = len(dataset.arrays(case.split))
    n = available if case.n is None else min(case.n, available)
    runs = len(case.ladder) if card.rungs == "ascend" else 1.5
    return n * runs * passes(card, case.parameters) * model.measured.gradient_ms / 1000
