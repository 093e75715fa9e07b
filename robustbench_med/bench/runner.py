"""Run the cases of a plan in one process or several; if one fails, the others still run."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from robustbench_med import registry
from robustbench_med.bench import store, workers
from robustbench_med.bench.execute import execute
from robustbench_med.bench.failure import Failure, unique_labels
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.schedules import Sharding
from robustbench_med.bench.setup import SetupCache, crafting_key, is_crafted_elsewhere, setup_key
from robustbench_med.bench.shard_files import shards_of_case
from robustbench_med.devices import device_of
from robustbench_med.errors import BenchError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

_log = logging.getLogger(__name__)
_MOST = 4  # most processes by default, since each holds torch, a victim and its images
_WORTH = 15.0  # for fewer seconds of attacks, starting processes costs more than it saves


def run_cases(
    planned: list[ResolvedCase],
    folder: Path,
    *,
    console: Console,
    command: str,
    force: bool = False,
    examples: int = 4,
    images: bool = False,
    device: str = "auto",
    jobs: int | None = 1,
    log_every: float = 30.0,
    shard: int | None = None,
) -> list[Failure]:
    """Run the cases that `folder` has no record of, and return those that failed.

    Args:
        planned: the cases in the order they run; those that share a victim should be neighbours.
        folder: the folder of the suite, below the results folder.
        console: shows the progress.
        command: command that runs the suite again; the provenance stores it with the case's id.
        force: compute finished cases too and replace their records.
        examples: largest number of examples for each case.
        images: save the adversarial images beside each record.
        device: "cpu", "cuda", "cuda:1", or "auto".
        jobs: processes that share the cores; None = as many as save time on this machine. Cases
            that share a victim run in the same process.
        log_every: seconds after which a console that is no terminal gets a line of progress.
        shard: number of images that are attacked together; None = as many as 32 MiB hold. Finished
            shards are stored until the record is written, so that a stopped run loses at most one.

    Raises:
        SpecError: there is no such device, or images of real data would be saved in a folder that
            is committed.
        ResultsError: the folder can no longer be written.
    """
    where = device_of(device)
    if images:
        _check_private(planned, folder)
    waiting = [
        resolved for resolved in planned if force or not store.finished(folder, resolved.case.id)
    ]
    if len(waiting) < len(planned):
        console.print(
            f"{len(planned) - len(waiting)} of {len(planned)} cases are finished in {folder}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    labels = unique_labels(resolved.case for resolved in planned)
    registered = registry.registered()
    work = _Work(folder, command, force, examples, images, where, labels, registered, shard)
    groups = _grouped(waiting)
    if jobs is None:
        jobs = _worthwhile(waiting, where)
    jobs = max(min(jobs, len(groups)), 1) if workers.can_start() else 1
    failures: list[Failure] = []
    ran = _one_by_one(waiting, work) if jobs == 1 else _at_once(groups, work, jobs)
    with closing(ran), _progress(console) as bar:
        task = bar.add_task("", total=sum(map(_seconds, waiting)))
        done, last_line = 0, time.monotonic()
        for cases, failed in ran:
            failures += failed
            done += len(cases)
            # a log shows no progress bar
            if not console.is_terminal and time.monotonic() - last_line >= log_every:
                line = f"{done} of {len(waiting)} cases done"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
                last_line = time.monotonic()
            bar.update(task, description=labels[cases[-1].case.id])
            bar.advance(task, sum(map(_seconds, cases)))
    return failures


_Ran = tuple[list[ResolvedCase], list[Failure]]  # the cases that ran, and the failures among them


@dataclass(frozen=True)
class _Work:
    """The settings to run a case and store its record, in this process or another."""

    folder: Path
    command: str
    force: bool
    examples: int
    images: bool
    device: torch.device
    labels: dict[str, str]  # by case id
    registered: dict[registry.Kind, dict[str, registry.Entry]]  # which a worker lacks
    shard: int | None

    def failure(self, resolved: ResolvedCase, reason: str) -> Failure:
        """Return the failure of a case of this run, with the reason."""
        return Failure(
            label=self.labels[resolved.case.id],
            reason=reason,
            case=resolved.case,
            attack=resolved.attack.card,
            defense=resolved.defense.card,
        )

    def run(self, resolved: ResolvedCase, setups: SetupCache) -> list[Failure]:
        """Run a case and write its record; return the failure if it failed."""
        files = shards_of_case(self.folder, resolved.case.id)
        if self.force:
            files.remove()
        try:
            outcome = execute(
                resolved,
                lambda: setups.of(resolved),
                command=f"{self.command} --case {resolved.case.id} --force",
                examples=self.examples,
                images=self.images,
                device=str(self.device),
                sharding=Sharding(self.shard, files),
            )
        except BenchError as error:
            return [self.failure(resolved, str(error))]
        except (
            Exception
        ) as error:  # a model is foreign code that may raise anything; only its case fails
            _log.debug("%s", traceback.format_exc())
            last = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
            return [self.failure(resolved, reason)]
        store.write(self.folder, *outcome, replace=self.force)
        files.remove()
        return []


def _one_by_one(waiting: list[ResolvedCase], work: _Work) -> Generator[_Ran, None, None]:
    setups = SetupCache(work.device)
    for resolved in waiting:
        yield [resolved], work.run(resolved, setups)


def _at_once(
    groups: list[list[ResolvedCase]], work: _Work, jobs: int
) -> Generator[_Ran, None, None]:
    """Run the groups in `jobs` processes, the longest first; if one process dies, all end."""
    threads = max((os.cpu_count() or 1) // jobs, 1)
    longest = sorted(groups, key=lambda cases: -sum(map(_seconds, cases)))
    unfinished = dict(enumerate(longest))
    arguments = [(*item, work, threads) for item in unfinished.items()]
    ran = workers.map_unordered(_run_group, arguments, jobs=jobs, threads=threads)
    try:
        with closing(ran):
            for index, failures in ran:
                yield unfinished.pop(index), failures
    except workers.WorkerDiedError:
        reason = "a process died, perhaps for lack of memory: run again with --jobs 1"
        for cases in unfinished.values():
            unwritten = [
                resolved for resolved in cases if not store.finished(work.folder, resolved.case.id)
            ]
            yield cases, [work.failure(resolved, reason) for resolved in unwritten]


def _run_group(
    index: int, cases: list[ResolvedCase], work: _Work, threads: int
) -> tuple[int, list[Failure]]:
    torch.set_num_threads(threads)
    registry.adopt(work.registered)
    return index, [failure for _, failures in _one_by_one(cases, work) for failure in failures]


def _grouped(waiting: list[ResolvedCase]) -> list[list[ResolvedCase]]:
    """Return the cases in groups that share a victim, or the candidates of a surrogate."""
    groups: defaultdict[tuple[object, ...], list[ResolvedCase]] = defaultdict(list)
    for resolved in waiting:
        key = crafting_key if is_crafted_elsewhere(resolved.case) else setup_key
        groups[key(resolved.case)].append(resolved)
    return list(groups.values())


def _check_private(planned: list[ResolvedCase], folder: Path) -> None:
    """Raise SpecError if images of real data would be saved among the committed records."""
    committed = registry.CORE.parent / "results"
    home = folder.resolve()
    if not home.is_relative_to(committed) or home.is_relative_to(committed / "local"):
        return
    for resolved in planned:
        if not resolved.data.card.synthetic:
            raise SpecError(
                f"{resolved.case.dataset}: expected synthetic images for --save-images into "
                f"{folder}, got real ones, which are never committed: choose another folder with "
                "--results DIR"
            )


def _worthwhile(waiting: list[ResolvedCase], device: torch.device) -> int:
    if device.type != "cpu" or sum(map(_seconds, waiting)) < _WORTH:
        return 1
    return min(os.cpu_count() or 1, _MOST)


def _seconds(resolved: ResolvedCase) -> float:
    return resolved.seconds or 1.0


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )
