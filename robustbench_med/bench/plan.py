"""Plan: turn a suite into its cases, by reading cards and data but without running any model."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from robustbench_med import objectives, registry
from robustbench_med.bench.attack_spec import (
    ResolvedAttack,
    by_queries,
    resolve_channels,
    validate_parameters,
)
from robustbench_med.bench.case import Case
from robustbench_med.bench.corruption_cases import each_corruption
from robustbench_med.bench.defense_spec import ResolvedDefense, resolve_defenses
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.own_sizes import check_own_sizes, of_own_sizes
from robustbench_med.bench.radii import attacks_on, attacks_on_data, radius_reader, resolve_attacks
from robustbench_med.bench.resolved_case import ResolvedCase, ResolvedSurrogate
from robustbench_med.bench.suite import Grid, Suite
from robustbench_med.bench.transfer import trained_on
from robustbench_med.cards import DatasetCard, ModelCard, Threat
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
from robustbench_med.models.preprocess import with_preprocess
from robustbench_med.models.source import ModelSource, resolve_model
from robustbench_med.objective import Objective


def plan(
    suite: Suite,
    *,
    data: Path | None = None,
    datasets: Mapping[str, Dataset] | None = None,
    victims: Mapping[str, Loaded] | None = None,
    titles: Mapping[str, str] | None = None,
) -> tuple[list[ResolvedCase], list[Failure]]:
    """Return the cases of a suite in the order they run, and what cannot run.

    Args:
        suite: the suite that declares the cases.
        data: folder with the files of named datasets.
        datasets: datasets that are already loaded, by the names that the suite uses for them.
        victims: models passed as Python objects, by the names that the suite uses for them.
        titles: names on boards and in records for models of the user's own, by their specs.

    Raises:
        UnknownNameError, SpecError: a name, parameter, objective or ladder is wrong, so that
            nothing can run.
    """
    planned: dict[str, ResolvedCase] = {}
    failures: list[Failure] = []
    for grid in suite.grids:
        # find mistakes before any data are read
        stated = resolve_attacks(grid)
        for name in grid.datasets:
            try:
                dataset = (datasets or {}).get(name) or load_dataset(name, data=data)
                attacks = each_corruption(attacks_on_data(stated, grid, dataset.card), dataset.card)
                block = _block_of(grid, name, dataset, attacks)
            except (UnknownNameError, SpecError):
                raise
            except BenchError as error:
                failures.append(_failure(name, error))
                continue
            for victim in _resolved_victims(block, victims or {}, failures):
                victim = victim.titled(_title_of(victim.source.name, titles or {}, grid))
                for resolved in _cases(suite, block, victim, failures):
                    planned.setdefault(resolved.case.id, resolved)
    for resolved in planned.values():  # not before an error that ends the run
        resolved.data.log_notes()
    return list(planned.values()), failures


def _title_of(victim: str, titles: Mapping[str, str], grid: Grid) -> str | None:
    """Return the title of a victim, whose text may have got the steps of the grid."""
    return {with_preprocess(name, grid.preprocess): titles[name] for name in titles}.get(victim)


_GREY_LEVELS = DatasetCard.model_fields["native_range"].default


class _Block(NamedTuple):
    """A grid on one of its datasets, with its texts parsed.

    Attributes:
        grid: the grid of the suite.
        name: the name of the dataset in the suite.
        data: the dataset; the splits that are scored have been checked.
        attacks: the attacks, with all their parameters.
        defenses: the defenses, with what the attacker knows about each.
        channels: sets of channels that may change.
        objective: the attacker's goal.
        data_sha256: hash of the attacked split and of validation.
        train_sha256: hash of the training split; "" if no case needs it.
    """

    grid: Grid
    name: str
    data: Dataset
    attacks: list[ResolvedAttack]
    defenses: list[ResolvedDefense]
    channels: list[dict[str, float]]
    objective: Objective
    data_sha256: str
    train_sha256: str


class _Victim(NamedTuple):
    """A victim of a plan: the source that its text names, its card and its hash."""

    source: ModelSource
    card: ModelCard
    sha256: str
    loaded: Loaded | None

    def titled(self, title: str | None) -> _Victim:
        """Return the victim under a title that a person chose; None keeps its own."""
        if title is None:
            return self
        return self._replace(card=self.card.model_copy(update={"title": title, "named": True}))


def _block_of(grid: Grid, name: str, dataset: Dataset, attacks: list[ResolvedAttack]) -> _Block:
    card = dataset.card
    defenses = resolve_defenses(grid, card)
    fitted = any(defense.fitted for defense in defenses)
    train = train_sha256(dataset, attacks, defenses)
    used: tuple[SplitName, ...] = ("train",) if train else ()
    used += _threshold_splits(dataset, grid, fitted)
    dataset = dataset.scored_on(grid.split, also=used)
    card = dataset.card  # without the regions and classes that are missing in the split
    sha256 = data_sha256(dataset, grid, fitted=fitted)
    objective = objectives.make(grid.objective, card.task, card=card)
    if not grid.stated and card.name not in registry.shipped("datasets"):
        # a suite's attacks on data of one's own: those that are for such data
        attacks = [a for a in attacks if card.task in a.card.tasks] or attacks
    if card.sizes_differ:
        attacks = of_own_sizes(attacks, grid)
        check_own_sizes(card, grid, attacks, defenses)
    for attack in attacks:
        validate_parameters(attack, card, objective, grid.norm)
    channels = [resolve_channels(text, card, grid.norm) for text in grid.channels]
    return _Block(grid, name, dataset, attacks, defenses, channels, objective, sha256, train)


def _resolved_victims(
    block: _Block, loaded: Mapping[str, Loaded], failures: list[Failure]
) -> Iterator[_Victim]:
    """Yield the victims of a block; those that cannot be used are added to `failures`."""
    for name in victims_of(block.grid, block.data):
        if name in loaded:
            _, card, sha256 = loaded[name]
            yield _Victim(ModelSource(name), card, sha256, loaded[name])
            continue
        try:
            source = resolve_model(name)
            card, sha256 = describe(
                source, block.data.card, images=partial(block.data.few_images, block.grid.split)
            )
        except (VictimError, ChecksumError) as error:
            failures.append(_failure(f"{block.name} · {name}", error))
            continue
        yield _Victim(source, card, sha256, None)


def _cases(
    suite: Suite, block: _Block, victim: _Victim, failures: list[Failure]
) -> Iterator[ResolvedCase]:
    """Yield the cases of a victim; surrogates that cannot be used are added to `failures`."""
    surrogates: list[ResolvedSurrogate | None] = [None]
    attacks = attacks_on(block.attacks, block.grid, block.data.card, victim.card)
    if block.grid.surrogates:
        surrogates = _surrogates(block, victim.source.name, failures)
    elif victim.card.queries_only:
        try:
            to_radius = radius_reader(block.data.card, victim.card)
            attacks = by_queries(victim.card, attacks, block.grid, to_radius)
        except VictimError as error:
            failures.append(_failure(f"{block.name} · {victim.source.name}", error))
            return
    every = itertools.product(surrogates, attacks, block.channels, block.defenses)
    for surrogate, attack, channels, defense in every:
        if not defense.allows(attack.card, transferred=surrogate is not None):
            continue
        case = _case(suite, block, victim, attack, defense, surrogate, channels)
        resolved = ResolvedCase(
            case=case,
            data=block.data,
            model=victim.card,
            victim=victim.source,
            attack=attack,
            defense=defense,
            objective=block.objective,
            surrogate=surrogate,
            loaded=victim.loaded,
        )
        yield resolved._replace(seconds=resolved.estimate())


def _failure(label: str, error: BenchError) -> Failure:
    """Return a failure, so that a damaged file stops only its own cases."""
    return Failure(label=label, reason=str(error), error=error)


def _surrogates(
    block: _Block, victim: str, failures: list[Failure]
) -> list[ResolvedSurrogate | None]:
    """Return the surrogates of a victim; those that cannot be used are added to `failures`.

    Raises:
        SpecError: the only surrogate is the victim, or the objective does not work with a
            surrogate that was trained on other data.
    """
    card, grid = block.data.card, block.grid
    names = victims_of(grid.model_copy(update={"victims": grid.surrogates}), block.data)
    if set(names) <= {victim}:
        raise SpecError(f"{victim}: expected a surrogate other than the victim, got none")
    surrogates: list[ResolvedSurrogate | None] = []
    for name in names:
        if name == victim:
            continue
        try:
            source = resolve_model(name)
            trained = trained_on(source, card)
            _check_fits(name, trained, card)
            if trained.name != card.name and grid.objective != "untargeted":
                raise SpecError(
                    f"{name}: expected the untargeted objective with a surrogate trained on other "
                    f"data ({trained.name}), got {grid.objective!r}"
                )
            surrogate_card, sha256 = describe(source, trained)
            if surrogate_card.queries_only:
                raise VictimError(
                    f"{name}: expected a surrogate with gradients, got one that is asked by "
                    "queries only"
                )
        except (VictimError, ChecksumError) as error:
            failures.append(_failure(f"{card.name} · {victim} from {name}", error))
            continue
        surrogates.append(ResolvedSurrogate(source, trained, sha256))
    return surrogates


def _check_fits(name: str, trained: DatasetCard, card: DatasetCard) -> None:
    """Raise VictimError unless a surrogate can be attacked on such images."""
    if card.task == "segmentation" and trained.name != card.name:
        raise VictimError(
            f"{name}: expected a surrogate trained on {card.name} for masks, got one trained on "
            f"{trained.name}"
        )
    if len(trained.size) != len(card.size):
        raise VictimError(
            f"{name}: expected a surrogate for images of {len(card.size)} axes, got "
            f"{len(trained.size)}"
        )


def victims_of(grid: Grid, dataset: Dataset) -> list[str]:
    """Return the victims of a grid; those that match a pattern are sorted by name.

    A pattern ("*", "*_resnet") matches the shipped victims of the dataset that no defense
    retrained. "defended" matches the retrained victims and the ones they were made from.
    """
    # a plug-in's model on a shipped dataset must be named, so that installing a package changes no
    # suite
    is_shipped = dataset.card.name in registry.shipped("datasets")
    cards = registry.shipped("models") if is_shipped else registry.load("models")
    shipped = [c for c in cards.values() if c.dataset == dataset.card.name and not c.trained_here]
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
    return [with_preprocess(name, grid.preprocess) for name in dict.fromkeys(named)]


def train_sha256(
    dataset: Dataset, attacks: list[ResolvedAttack], defenses: list[ResolvedDefense]
) -> str:
    """Return the hash of the training split if an attack or a defense needs it.

    Raises:
        DataError: the training split is needed, but there is none.
    """
    needed_by = [str(attack.card.name) for attack in attacks if attack.trains]
    needed_by += [defense.text for defense in defenses if defense.fitted]
    if not needed_by:
        return ""
    try:
        return dataset.arrays("train").fingerprint()
    except MissingSplitError:
        names = ", ".join(dict.fromkeys(needed_by))
        raise DataError(
            f"{dataset.card.name}: expected a training split for {names}, got none: add "
            "train_images and train_labels"
        ) from None


def data_sha256(dataset: Dataset, grid: Grid, *, fitted: bool = False) -> str:
    """Return the hash of the data that a score depends on: contract, attacked and val split."""
    card = dataset.card
    contract = (card.task, card.classes, card.normal, card.channels, card.size, card.bit_depth)
    splits = {grid.split, *_threshold_splits(dataset, grid, fitted)}
    texts = [repr(contract)]
    if card.native is not None:
        texts.append(repr(card.native))
    elif card.name not in registry.shipped("datasets") and card.native_range != _GREY_LEVELS:
        texts.append(card.native_range)  # the steps before a network may be stated in its values
    if card.channel_names:  # a case may name channels
        texts.append(repr(card.channel_names))
    if card.task == "segmentation":
        texts.append(repr((card.parts, card.spacing, card.tolerance)))
    for split in sorted(splits):
        texts.append(dataset.arrays(split).fingerprint())
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _threshold_splits(dataset: Dataset, grid: Grid, fitted: bool) -> tuple[SplitName, ...]:
    """Return the splits that a threshold is chosen on.

    Raises:
        MissingSplitError: the operating point needs validation images, but there are none.
        DataError: a split has a defect.
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
    """Return how the victim decides; for masks always argmax, since they have no threshold."""
    return "argmax" if card.task == "segmentation" else grid.operating_point


def _case(
    suite: Suite,
    block: _Block,
    victim: _Victim,
    attack: ResolvedAttack,
    defense: ResolvedDefense,
    surrogate: ResolvedSurrogate | None,
    channels: dict[str, float],
) -> Case:
    grid, card = block.grid, attack.card
    universal = card.schedule == "universal"
    threat: Threat = "universal" if universal else card.threat
    if surrogate is not None:
        # a surrogate trained on the victim's data makes a transfer attack, on other data a no-box
        # attack
        threat = "transfer" if surrogate.data.name == block.data.card.name else "no_box"
    return Case.model_validate(
        {
            "dataset": block.name,
            "data_sha256": block.data_sha256,
            "train_sha256": block.train_sha256 if attack.trains or defense.fitted else "",
            "split": grid.split,
            "n": grid.n,
            "victim": victim.source.name,
            "victim_sha256": victim.sha256,
            "operating_point": _operating_point(grid, block.data.card),
            **defense.case_fields,
            "attack": card.name,
            "attack_version": card.version,
            "attack_sha256": card.sha256,
            "parameters": attack.parameters,
            "guide": grid.guide,
            "draws": grid.draws,
            "threat": threat,
            "surrogate": None if surrogate is None else surrogate.source.name,
            "surrogate_sha256": "" if surrogate is None else surrogate.sha256,
            "objective": grid.objective,
            "channels": channels,
            "norm": grid.norm,
            "ladder": attack.ladder,
            "budget": grid.budget,
            "n_fit": grid.n_fit if universal else None,
            "seed": suite.seed,
        }
    )
