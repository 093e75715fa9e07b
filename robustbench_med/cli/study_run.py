"""Run the published protocols of studies, and write their page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustbench_med.errors import BenchError, ChecksumError, DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from robustbench_med.bench.failure import Failure
    from robustbench_med.bench.record import Stored
    from robustbench_med.bench.suite import Grid, Suite
    from robustbench_med.cards import ModelCard
    from robustbench_med.studies.study import Study


class Lacking(NamedTuple):
    """What cannot be used in a run of studies: names of datasets, and of victims."""

    datasets: frozenset[str] = frozenset()
    victims: frozenset[str] = frozenset()

    def allows(self, datasets: Iterable[str], victims: Iterable[str]) -> bool:
        """Return whether none of the names is among those that cannot be used."""
        return self.datasets.isdisjoint(datasets) and self.victims.isdisjoint(victims)


def missing_datasets(
    studies: Sequence[Study], data: Path | None
) -> tuple[frozenset[str], list[Failure]]:
    """Return the datasets of studies that cannot be read, and a failure for each.

    The data on which a victim is still to be trained counts as data of the study.
    """
    from robustbench_med.bench.failure import Failure
    from robustbench_med.datasets.load import load_dataset
    from robustbench_med.training.missing import missing_victims

    needed: dict[str, list[str]] = {}
    for study in studies:
        trained_on = [name for card in missing_victims(study.victims()) for name in _data_of(card)]
        for name in dict.fromkeys([*study.datasets(), *trained_on]):
            needed.setdefault(name, []).append(study.title)
    failures: dict[str, Failure] = {}
    for name, titles in needed.items():
        try:
            load_dataset(name, data=data)
        except (DataError, ChecksumError) as error:
            label = ", ".join(titles) if len(titles) < 4 else f"{len(titles)} studies"
            failures[name] = Failure(label=label, reason=str(error), error=error)
    return frozenset(failures), list(failures.values())


def train_victims(
    studies: Sequence[Study], missing: frozenset[str], data: Path | None, console: Console
) -> tuple[Lacking, list[Failure]]:
    """Train the victims whose weights are neither shipped nor in the cache.

    A victim whose training data is missing is left out, for its data has a failure of its own.

    Args:
        studies: the studies that need the victims.
        missing: datasets that cannot be read.
        data: folder with the files of named datasets.
        console: shows the progress.

    Returns:
        What cannot be used now, and a failure for each training that failed.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from robustbench_med.bench.failure import Failure
    from robustbench_med.training.missing import missing_victims, train_missing

    failures: list[Failure] = []
    cards = to_train(studies, missing)
    failed: set[str] = set()
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console) as progress:
        for place, card in enumerate(cards, start=1):
            if card.recipe is not None and card.recipe.start in failed:
                failed.add(card.name)
                continue
            label = f"training {place} of {len(cards)}: {card.name}"
            _say(label, console)
            task = progress.add_task(label, total=1.0)
            try:
                train_missing(card, data=data, progress=partial(_show, progress, task))
            except BenchError as error:
                failed.add(card.name)
                label = f"training of {card.name}"
                failures.append(Failure(label=label, reason=str(error), error=error))
    untrained = missing_victims(_victims(studies))
    return Lacking(missing, frozenset(card.name for card in untrained)), failures


def to_train(studies: Sequence[Study], missing: frozenset[str]) -> list[ModelCard]:
    """Return the cards of victims to train, without those whose data is missing."""
    from robustbench_med.training.missing import missing_victims

    left: list[ModelCard] = []
    without = set[str]()
    for card in missing_victims(_victims(studies)):
        start = "" if card.recipe is None else card.recipe.start
        if start in without or not missing.isdisjoint(_data_of(card)):
            without.add(card.name)
        else:
            left.append(card)
    return left


def _data_of(card: ModelCard) -> list[str]:
    """Return the datasets that a victim is trained on."""
    first = None if card.recipe is None else card.recipe.first
    return [card.dataset] if first is None else [card.dataset, first.dataset]


def _victims(studies: Sequence[Study]) -> list[str]:
    return [name for study in studies for name in study.victims()]


def _is_stored(study: Study, name: str, folder: Path) -> bool:
    """Return whether a results folder holds the outcome of a measurement as it is stated now."""
    from robustbench_med.studies.outcome import read_outcomes

    stored = read_outcomes(folder, study.name).get(name)
    return stored is not None and stored.measured == study.measurements()[name]


def _say(line: str, console: Console) -> None:
    """Print what begins into a log, which shows no progress bar."""
    if not console.is_terminal:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show(progress: Progress, task: TaskID, fraction: float) -> None:
    progress.update(task, completed=fraction)


def usable(suite: Suite, lacking: Lacking) -> Suite | None:
    """Return the part of a suite whose data and victims are there; None if nothing is."""
    grids = [part for grid in suite.grids if (part := _usable(grid, lacking)) is not None]
    return suite.model_copy(update={"grids": tuple(grids)}) if grids else None


def _usable(grid: Grid, lacking: Lacking) -> Grid | None:
    fields = {"datasets": lacking.datasets, "victims": lacking.victims}
    fields["surrogates"] = lacking.victims
    kept = {
        name: tuple(value for value in getattr(grid, name) if value not in names)
        for name, names in fields.items()
    }
    emptied = [name for name, values in kept.items() if getattr(grid, name) and not values]
    return None if emptied else grid.model_copy(update=kept)


def measurements_of(studies: Sequence[Study], lacking: Lacking) -> Iterator[tuple[Study, str]]:
    """Yield the published protocols that can run: a study, and the id of a measurement."""
    for study in studies:
        for name, measured in study.measurements().items():
            if lacking.allows([measured.dataset], [measured.victim, measured.surrogate]):
                yield study, name


def print_needs(
    studies: Sequence[Study], suite: Suite, folder: Path, data: Path | None, console: Console
) -> tuple[Lacking, list[Failure]]:
    """Print what a run of studies measures and trains before it attacks; compute nothing.

    Args:
        studies: the studies.
        suite: the suite of their corrected cases.
        folder: the results folder of the suite.
        data: folder with the files of named datasets.
        console: prints the tables.

    Returns:
        What cannot be used yet, and a failure for each dataset that is missing.
    """
    from rich.table import Table

    from robustbench_med.training.missing import missing_victims

    missing, failures = missing_datasets(studies, data)
    cards = to_train(studies, missing)
    lacking = Lacking(missing, frozenset(c.name for c in missing_victims(_victims(studies))))
    table = Table(title="As published", title_justify="left")
    for heading in ("study", "protocols", "finished"):
        table.add_column(heading, justify="left" if heading == "study" else "right")
    for study in studies:
        wanted = study.measurements()
        finished = [name for name in wanted if _is_stored(study, name, folder)]
        table.add_row(study.title, str(len(wanted)), str(len(finished)))
    console.print(table)
    if cards:
        table = Table(title="To be trained first", title_justify="left")
        for heading in ("victim", "dataset", "title"):
            table.add_column(heading, no_wrap=heading == "victim")
        for card in cards:
            table.add_row(card.name, card.dataset, card.title)
        console.print(table)
    names = {card.name for card in cards}
    waiting = sum(_cases(grid, names) for grid in suite.grids if missing.isdisjoint(grid.datasets))
    if waiting:
        cases = f"{waiting} corrected case{'' if waiting == 1 else 's'}"
        line = f"{cases} of these victims will be listed below once they are trained."
        console.print(line, highlight=False, soft_wrap=True)
    return lacking, failures


def _cases(grid: Grid, names: set[str]) -> int:
    """Return the number of a grid's cases with a victim or a surrogate of these names."""
    pairs = [
        (victim, surrogate)
        for victim in grid.victims
        for surrogate in grid.surrogates or ("",)
        if victim != surrogate and names & {victim, surrogate}
    ]
    known = sum(1 if name == "none" else len(grid.knowledge) for name in grid.defenses)
    return len(grid.datasets) * len(grid.attacks) * len(grid.channels) * known * len(pairs)


def measure_studies(
    studies: Sequence[Study],
    folder: Path,
    data: Path | None,
    console: Console,
    lacking: Lacking,
) -> list[Failure]:
    """Run every published protocol that has no outcome stored; return what failed.

    A protocol that fails costs no other one. A finished one is not run again.

    Args:
        studies: the studies.
        folder: the results folder of the suite.
        data: folder with the files of named datasets.
        console: shows the progress.
        lacking: what cannot be used; protocols that need it are left out.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from robustbench_med.bench.failure import Failure
    from robustbench_med.studies.measure import measure

    measurements = list(measurements_of(studies, lacking))
    failures: list[Failure] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("as published", total=len(measurements))
        for study, name in measurements:
            label = f"{study.title} · {name}"
            progress.update(task, description=label)
            if not _is_stored(study, name, folder):
                _say(f"as published: {label}", console)
            try:
                measure(study, name, folder, data=data)
            except BenchError as error:
                failures.append(Failure(label=label, reason=str(error), error=error))
            progress.advance(task)
    return failures


def write_study_page(folder: Path, records: Sequence[Stored]) -> Path | None:
    """Write the page of all studies for a results folder; None if it holds no published protocol.

    A study of which it holds nothing is listed as not run.
    """
    from robustbench_med.bench.publish import pages
    from robustbench_med.studies import outcome
    from robustbench_med.studies.evidence import evidence_of
    from robustbench_med.studies.study import studies

    if not (folder / outcome.FOLDER).is_dir():
        return None
    page: Path = pages().write_study_page(evidence_of(studies().values(), folder, records), folder)
    return page
