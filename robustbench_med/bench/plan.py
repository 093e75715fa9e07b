"""Plan: from a suite to its cases. Reads cards and data, computes nothing on tensors."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from robustbench_med import objectives, registry
from robustbench_med.bench.attack_spec import ResolvedAttack, resolve_attack, validate_parameters
from robustbench_med.bench.case import Case
from robustbench_med.bench.channels import channels_of
from robustbench_med.bench.defense_spec import Shield, resolve_defenses
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.bench.transfer import trained_on
from robustbench_med.cards import AttackCard, DatasetCard, ModelCard
from robustbench_med.datasets.dataset import Dataset, SplitName
from robustbench_med.datasets.load import load_dataset
from robustbench_med.errors import (
    BenchError,
    ChecksumError,
    DataError,
    MissingSplitError,
    SpecError,
    UnknownNameError,
    VictimError,
)
from robustbench_med.models.load import Loaded, describe

_RUNS = {"descend": 1.5, "distance": 1.0}  # full runs of an attack a ladder costs; else one a rung


class ResolvedCase(NamedTuple):
    """A case to run, with what running it needs and may cost."""

    case: Case
    data: Dataset
    model: ModelCard
    seconds: float | None  # at most, from the victim's card; None where the card does not know
    own: Loaded | None = None  # a victim handed in from Python, which no name can load


def plan(
    suite: Suite,
    *,
    data: Path | None = None,
    datasets: Mapping[str, Dataset] | None = None,
    victims: Mapping[str, Loaded] | None = None,
) -> tuple[list[ResolvedCase], list[Failure]]:
    """Return the cases of a suite in the order they run, and what cannot run.

    Args:
        suite: declares them.
        data: folder with the files of named datasets.
        datasets: loaded before, by the names that the suite calls them.
        victims: models handed in from Python, by the names that the suite calls them.

    Raises:
        UnknownNameError, SpecError: a name, parameter, objective or ladder that is wrong: nothing
            is run.
    """
    held = {} if victims is None else victims
    planned: dict[str, ResolvedCase] = {}
    failures: list[Failure] = []
    for grid in suite.grids:
        attacks = [resolve_attack(text, grid) for text in grid.attacks]
        for name in grid.datasets:
            try:
                dataset = (datasets or {}).get(name) or load_dataset(name, data=data)
                shields = resolve_defenses(grid, dataset.card)
                fitted = any(one.wrapping.fitted for one in shields)
                train = train_sha256(dataset, attacks, shields)
                used: tuple[SplitName, ...] = ("train",) if train else ()
                used += _chosen_on(dataset, grid, fitted)
                dataset = dataset.scored_on(grid.split, also=used)
                sha256 = data_sha256(dataset, grid, fitted=fitted)
            except (UnknownNameError, SpecError):
                raise
            except BenchError as error:
                failures.append(_failure(name, error))
                continue
            objective = objectives.make(grid.objective, dataset.card.task, card=dataset.card)
            for attack in attacks:
                validate_parameters(attack, dataset.card, objective, grid.norm)
            allowed = [channels_of(text, dataset.card, grid.norm) for text in grid.channels]
            for victim in victims_of(grid, dataset):
                try:
                    own = held.get(victim)
                    model, digest = own[1:] if own else describe(victim, dataset.card)
                except (VictimError, ChecksumError) as error:
                    failures.append(_failure(f"{name} · {victim}", error))
                    continue
                owned: list[dict[str, object]] = [{}]
                if grid.surrogates:
                    found = _surrogates(grid, dataset, victim)
                    owned = [one for one in found if isinstance(one, dict)]
                    if not found:
                        raise SpecError(
                            f"{victim}: expected a surrogate other than the victim, got none"
                        )
                    failures += [one for one in found if isinstance(one, Failure)]
                every = itertools.product(owned, attacks, allowed, shields)
                for one, attack, channels, shield in every:
                    if not shield.allows(attack.card, transferred=bool(one)):
                        continue
                    rest = {"data_sha256": sha256, "channels": channels, **one, **shield.fields}
                    trains = attack.trains or shield.wrapping.fitted
                    rest["train_sha256"] = train if trains else ""
                    rest["operating_point"] = _operating_point(grid, dataset.card)
                    case = _case(suite, grid, name, victim, digest, attack, rest)
                    seconds = estimate(case, dataset, model)
                    planned.setdefault(case.id, ResolvedCase(case, dataset, model, seconds, own))
    return list(planned.values()), failures


def _failure(label: str, error: BenchError) -> Failure:
    """Return what cannot run: a damaged file costs its own cases, never the others."""
    return Failure(label=label, reason=str(error), error=error)


def _surrogates(grid: Grid, dataset: Dataset, victim: str) -> list[dict[str, object] | Failure]:
    """Return the fields of a case that name each surrogate, or why one cannot be used.

    A surrogate trained on the victim's data makes a transfer attack, one trained on other data a
    no-box attack.
    """
    rest = grid.model_copy(update={"victims": grid.surrogates})
    found: list[dict[str, object] | Failure] = []
    for name in victims_of(rest, dataset):
        if name == victim:
            continue
        try:
            trained = trained_on(name, dataset.card)
            if dataset.card.task == "segmentation" and trained.name != dataset.card.name:
                raise VictimError(
                    f"{name}: expected a surrogate trained on {dataset.card.name} for masks, got "
                    f"one trained on {trained.name}"
                )
            if len(trained.size) != len(dataset.card.size):
                raise VictimError(
                    f"{name}: expected a surrogate for images of {len(dataset.card.size)} axes, "
                    f"got {len(trained.size)}"
                )
            other = trained.name != dataset.card.name
            if other and grid.objective != "untargeted":
                raise SpecError(
                    f"{name}: expected the untargeted objective with a surrogate trained on other "
                    f"data ({trained.name}), got {grid.objective!r}"
                )
            _, digest = describe(name, trained)
        except (VictimError, ChecksumError) as error:
            found.append(_failure(f"{dataset.card.name} · {victim} from {name}", error))
            continue
        threat = "no_box" if other else "transfer"
        found.append({"surrogate": name, "surrogate_sha256": digest, "threat": threat})
    return found


def victims_of(grid: Grid, dataset: Dataset) -> list[str]:
    """Return the victims a grid names, in the order of their names where one stands for several.

    A pattern ("*", "*_resnet") stands for the shipped victims of the dataset that no defense
    retrained, "defended" for those retrained, each beside the one it was made from.
    """
    shipped = [c for c in registry.load("models").values() if c.dataset == dataset.card.name]
    retrained = [c for c in shipped if c.undefended]
    plain = [c.name for c in shipped if not c.undefended]
    defended = sorted({v for c in retrained for v in (c.undefended, c.name)})
    named: list[str] = []
    for name in grid.victims:
        pattern = "*" in name and not registry.is_own(name)
        several = fnmatch.filter(plain, name) if pattern else [name]
        named += defended if name == "defended" else several
    if not named:
        raise SpecError(
            f"expected a victim for {dataset.card.name}, got none shipped: name one with --victim"
        )
    return list(dict.fromkeys(named))


def train_sha256(dataset: Dataset, attacks: list[ResolvedAttack], shields: list[Shield]) -> str:
    """Return the hash of the training split, where an attack or a defense needs it.

    Raises:
        DataError: it does, and there is none.
    """
    wanted_by = [str(one.card.name) for one in attacks if one.trains]
    wanted_by += [one.wrapping.text for one in shields if one.wrapping.fitted]
    if not wanted_by:
        return ""
    try:
        return dataset.arrays("train").fingerprint()
    except MissingSplitError:
        names = ", ".join(dict.fromkeys(wanted_by))
        raise DataError(
            f"{dataset.card.name}: expected a training split for {names}, got none: add "
            "train_images and train_labels"
        ) from None


def data_sha256(dataset: Dataset, grid: Grid, *, fitted: bool = False) -> str:
    """Return the hash of what a score depends on: contract, split attacked, and validation."""
    card = dataset.card
    contract = (card.task, card.classes, card.normal, card.channels, card.size, card.bit_depth)
    splits = {grid.split, *_chosen_on(dataset, grid, fitted)}
    parts = [repr(contract)]
    if card.channel_names:  # a case may name them
        parts.append(repr(card.channel_names))
    if card.task == "segmentation":
        parts.append(repr((card.parts, card.spacing, card.tolerance)))
    for split in sorted(splits):
        parts.append(dataset.arrays(split).fingerprint())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _chosen_on(dataset: Dataset, grid: Grid, fitted: bool) -> tuple[SplitName, ...]:
    """Return the splits that a threshold is chosen on.

    Raises:
        MissingSplitError: there is none, and the operating point needs it.
        DataError: it has a defect.
    """
    if _operating_point(grid, dataset.card) != "youden" and not fitted:
        return ()
    if grid.split != "val":
        try:
            dataset.arrays("val")
        except MissingSplitError:
            raise MissingSplitError(
                f"{dataset.card.name}: expected a validation split for the operating point, got "
                "none: add val_images and val_labels, or pass --operating-point argmax"
            ) from None
    return ("val",)


def _operating_point(grid: Grid, card: DatasetCard) -> str:
    """Return how the victim decides: a mask has no threshold to choose, it takes the likeliest."""
    return "argmax" if card.task == "segmentation" else grid.operating_point


def _case(
    suite: Suite,
    grid: Grid,
    dataset: str,
    victim: str,
    victim_hash: str,
    attack: ResolvedAttack,
    rest: dict[str, object],
) -> Case:
    card = attack.card
    values = {
        "dataset": dataset,
        "split": grid.split,
        "n": grid.n,
        "victim": victim,
        "victim_sha256": victim_hash,
        "attack": card.name,
        "attack_version": card.version,
        "parameters": attack.parameters,
        "guide": grid.guide,
        "draws": grid.draws,
        "threat": "universal" if card.schedule == "universal" else card.threat,
        "objective": grid.objective,
        "norm": grid.norm,
        "ladder": attack.ladder,
        "budget": grid.budget,
        "fit": grid.fit if card.schedule == "universal" else None,
        "seed": suite.seed,
    }
    return Case.model_validate(values | rest)


def estimate(case: Case, dataset: Dataset, model: ModelCard) -> float | None:
    """Return the seconds a case takes at most, or None where the victim's card has no timing."""
    if model.measured is None:
        return None
    return bound(case, dataset) * model.measured.gradient_ms / 1000


def bound(case: Case, dataset: Dataset) -> float:
    """Return the images that a case passes forward and backward, at most."""
    card: AttackCard = registry.find("attacks", case.attack)
    available = len(dataset.arrays(case.split))
    n = available if case.n is None else min(case.n, available)
    if case.fit is not None:  # the passes are those of the images it is fitted on
        n = min(case.fit, len(dataset.arrays("train")))
    every_rung = float(len(case.ladder))
    masks = dataset.card.task == "segmentation"  # searched for the worst at every radius
    runs = every_rung if masks else _RUNS.get(card.schedule, every_rung)
    return n * runs * registry.passes(card, case.parameters)
