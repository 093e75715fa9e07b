"""Run the cases of a plan, in this process or by several workers; a failure costs its case."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import torch

from robustbench_med import registry
from robustbench_med.bench import store, workers
from robustbench_med.bench.driver import Driver, remove_leftovers
from robustbench_med.bench.executors import Executor, Slot
from robustbench_med.bench.executors.inline import Inline
from robustbench_med.bench.executors.processes import Processes
from robustbench_med.bench.failure import Failure, unique_labels
from robustbench_med.bench.progress import Show
from robustbench_med.bench.queue import Queue, case_runs, chains_of, most_steps
from robustbench_med.bench.resolved_case import ResolvedCase
from robustbench_med.bench.steps import Settings, Worker, compute
from robustbench_med.devices import device_of
from robustbench_med.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from robustbench_med.bench.executors.dask_cluster import DaskCluster

ExecutorName = Literal["inline", "processes", "dask"]
_MOST = 4  # most processes by default, since each holds torch, a victim and its images
_LEAST_TIMEOUT = 0.1  # seconds
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
    executor: ExecutorName | None = None,
    scheduler: str | None = None,
    timeout: float | None = None,
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
        jobs: workers that share the cores; None = as many as save time on this machine, one for
            each GPU. Cases that share a victim run on one worker as long as there are others.
        log_every: seconds after which a console that is no terminal gets a line of progress.
        shard: number of images that are attacked together; None = as many as 32 MiB hold. Finished
            shards are stored until the record is written, so that a stopped run loses at most one.
        executor: where the cases are computed; None = on the cluster of `scheduler` if that is
            given, in this process if there is one job and no timeout, else in several processes.
        scheduler: the address or the scheduler file of a Dask cluster that runs already.
        timeout: longest time of a shard, or another step of a case, in seconds.

    Raises:
        SpecError: there is no such device, or images of real data would be saved in a folder that
            is committed.
        ResultsError: the folder can no longer be written.
    """
    if images:
        _check_private(planned, folder)
    waiting = [
        resolved for resolved in planned if force or not store.finished(folder, resolved.case.id)
    ]
    if len(waiting) < len(planned):
        remaining = {resolved.case.id for resolved in waiting}
        finished = (r.case.id for r in planned if r.case.id not in remaining)
        chains = chains_of(planned)
        unfinished = [ids for ids in chains.values() if not remaining.isdisjoint(ids)]
        ended = [name for name, ids in chains.items() if remaining.isdisjoint(ids)]
        remove_leftovers(folder, [*finished, *ended], {one for ids in unfinished for one in ids})
        console.print(
            f"{len(planned) - len(waiting)} of {len(planned)} cases are finished in {folder}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    labels = unique_labels(resolved.case for resolved in planned)
    most = most_steps(waiting, shard)
    where = _Where(executor, scheduler, device, jobs, timeout).checked(waiting, most)
    runs = case_runs(waiting, in_order=where.jobs == 1, planned=planned)
    if not runs:
        return []
    settings = Settings(command, examples, images, shard)
    with closing(where.start()) as started:
        return Driver(
            Queue(runs),
            started,
            folder=folder,
            settings=settings,
            force=force,
            timeout=timeout,
            show=Show(runs, labels, console, log_every),
            failure=lambda run, reason: _failure(run.resolved, labels, reason),
        ).run()


def _failure(resolved: ResolvedCase, labels: Mapping[str, str], reason: str) -> Failure:
    """Return the failure of a case of this run, with the reason."""
    return Failure(
        label=labels[resolved.case.id],
        reason=reason,
        case=resolved.case,
        attack=resolved.attack.card,
        defense=resolved.defense.card,
    )


def executor_of(name: str | None) -> ExecutorName | None:
    """Return the executor that a text names.

    Raises:
        UnknownNameError: there is no such executor.
    """
    for known in get_args(ExecutorName):
        if name == known:
            return cast("ExecutorName", known)
    if name is None:
        return None
    raise UnknownNameError("executor", name, get_args(ExecutorName))


class _Where(NamedTuple):
    """Where the cases are computed: the arguments of `run_cases` of the same names."""

    executor: ExecutorName | None
    scheduler: str | None
    device: str
    jobs: int | None
    timeout: float | None

    def checked(self, waiting: list[ResolvedCase], most: int) -> _Where:
        """Return the same with an executor, and a number of jobs unless a cluster decides that.

        Args:
            waiting: the cases without a record.
            most: how many steps may be computed at the same time.

        Raises:
            SpecError: this machine has no such device, or an executor cannot do what is asked.
        """
        if self.timeout is not None and not self.timeout >= _LEAST_TIMEOUT:
            raise SpecError(
                f"expected --timeout of at least {_LEAST_TIMEOUT} seconds, got {self.timeout:g}"
            )
        name = self.executor
        if self.scheduler is not None:
            if name not in (None, "dask"):
                raise SpecError(f"expected --executor dask with --scheduler, got {name}")
            return self._replace(executor="dask", jobs=None)
        device = device_of(self.device)
        jobs = max(min(self.jobs or _worthwhile(waiting, device), most), 1)
        if name is None:
            name = "inline" if jobs == 1 and self.timeout is None else "processes"
        if not workers.can_start():
            name = "inline"
        if name == "inline" and self.timeout is not None:
            raise SpecError(
                "expected --executor processes or dask with --timeout: this process cannot end a "
                "model that hangs in it"
            )
        return self._replace(executor=name, jobs=1 if name == "inline" else jobs)

    def start(self) -> Executor:
        """Return the executor, whose workers start."""
        if self.jobs is None:
            return _dask()(compute, [], scheduler=self.scheduler, device=self.device)
        where = device_of(self.device)
        if self.executor == "inline":
            return Inline(Worker(), str(where))
        threads = max((os.cpu_count() or 1) // self.jobs, 1)
        slots = [Slot(threads, device) for device in spread(where, self.jobs)]
        return _dask()(compute, slots) if self.executor == "dask" else Processes(compute, slots)


def _dask() -> type[DaskCluster]:
    """Return the executor on Dask, which is imported only where it is used."""
    from robustbench_med.bench.executors.dask_cluster import DaskCluster

    return DaskCluster


def spread(device: torch.device, jobs: int) -> list[str]:
    """Return the device of each of several workers; `cuda` without a number is all of them.

    >>> spread(torch.device("cpu"), 2)
    ['cpu', 'cpu']
    """
    if device.type != "cuda" or device.index is not None:
        return [str(device)] * jobs
    return [f"cuda:{i % torch.cuda.device_count()}" for i in range(jobs)]


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
    """Return the number of workers that save time: one for each GPU, or a few on the processor."""
    if device.type == "cuda":
        return torch.cuda.device_count() if device.index is None else 1
    if device.type != "cpu" or sum(resolved.seconds or 1.0 for resolved in waiting) < _WORTH:
        return 1
    return min(os.cpu_count() or 1, _MOST)
