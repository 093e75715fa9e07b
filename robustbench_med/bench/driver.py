"""The driver of a run: it hands steps to workers, writes what they compute, and counts deaths.

Only the driver writes into the results folder, so that the workers may be on machines that do not
have it. A step whose worker dies is computed again by another one, three times in all; a step that
takes longer than the limit ends with its worker.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from robustbench_med import registry
from robustbench_med.bench import store
from robustbench_med.bench.candidates import remove_file
from robustbench_med.bench.claims import Claims
from robustbench_med.bench.crafted import unpacked
from robustbench_med.bench.executors import Died, Event, Executor, Finished
from robustbench_med.bench.failure import Failure
from robustbench_med.bench.progress import Pace, Show
from robustbench_med.bench.queue import CaseRun, Queue
from robustbench_med.bench.shard_files import CRAFTED, ShardFiles, shards_of_case
from robustbench_med.bench.steps import Bundle, Reply, Settings, ShardStep, Task, pickled

TRIES = 3  # so often a step is computed whose worker dies
_POLL = 0.5  # seconds between two looks at limits, claims and the log
_CLAIMED = 1.0  # seconds before a case that another run has claimed is looked at again


class _Running(NamedTuple):
    """A step that a worker computes."""

    run: CaseRun
    step: ShardStep | None
    since: float


class Driver:
    """Runs cases on an executor.

    Args:
        queue: the cases.
        executor: the workers.
        folder: the results folder of the suite.
        settings: the settings of the run.
        force: compute finished cases too and replace their records.
        timeout: longest time of a step in seconds; None = no limit.
        show: shows the progress.
        failure: returns the failure of a case, with the reason.
    """

    def __init__(
        self,
        queue: Queue,
        executor: Executor,
        *,
        folder: Path,
        settings: Settings,
        force: bool,
        timeout: float | None,
        show: Show,
        failure: Callable[[CaseRun, str], Failure],
    ) -> None:
        self._queue, self._executor, self._folder = queue, executor, folder
        self._settings, self._force, self._timeout = settings, force, timeout
        self._show, self._failure = show, failure
        self._pace = Pace(queue.runs)
        self._claims = Claims(folder)
        self._running: dict[str, _Running] = {}
        self._holds: dict[str, str] = {}  # the bundle of each worker
        self._name = uuid.uuid4().hex  # workers of a cluster may serve several drivers
        self._pickled: tuple[str, bytes] | None = None  # the bundle that was sent last
        self._failures: list[Failure] = []
        self._waits = False
        self._crafted: dict[str, bytes] = {}  # by finished case, where it cannot be stored
        self._scored: set[str] = set()  # cases with a surrogate that have a record now

    def run(self) -> list[Failure]:
        """Run all cases and return the failures.

        Raises:
            ResultsError: the folder can no longer be written.
        """
        try:
            with self._show.shown():
                while self._queue.unfinished:
                    self._hand_out()
                    if not self._running and self._executor.idle():
                        self._wait_for_others()
                    for event in self._executor.wait(_POLL):
                        self._handle(event)
                    self._end_overdue()
                    self._update(None)
        finally:
            self._claims.release_all()
        return self._failures

    def _hand_out(self) -> None:
        """Give every idle worker a step, if there is one for it."""
        for worker in self._executor.idle():
            while worker not in self._running:
                pick = self._queue.next(worker, time.monotonic())
                if pick is None:
                    break
                run, step = pick
                if run.state == "waiting" and not self._claim(run):
                    continue
                self._start(worker, run, step)

    def _claim(self, run: CaseRun) -> bool:
        """Claim a case that is to begin; return whether this run is to compute it."""
        # two runs that craft on one surrogate would count other images as crafted before
        if not (self._claims.take(run.chain or run.id) and self._claims.take(run.id)):
            run.later = time.monotonic() + _CLAIMED
            return False
        if not self._force and store.finished(self._folder, run.id):  # by another run, since
            self._remove_shards(run)
            self._end(run)
            return False
        if self._force:
            shards_of_case(self._folder, run.id).remove()
        return True

    def _wait_for_others(self) -> None:
        """Wait for cases that other runs compute."""
        if not self._waits:
            self._waits = True
            count = len(self._queue.unfinished)
            cases = "a case" if count == 1 else f"{count} cases"
            self._show.say(f"waiting for {cases} that another run computes in {self._folder}")
        time.sleep(_POLL)

    def _start(self, worker: str, run: CaseRun, step: ShardStep | None) -> None:
        """Hand a step to a worker, with the bundle of its group if the worker lacks it."""
        bundle: Bundle | bytes | None = None
        if self._holds.get(worker) != run.group:
            bundle = self._bundle_of(run)
            if bundle is None:
                return
        known = {} if step is not None else self._known(run)
        task = Task(
            key=self._key(run),
            case_id=run.id,
            slot=self._executor.slot(worker),
            settings=self._settings,
            bundle=bundle,
            shard=step,
            known=known,
            fit=None if run.needs is None else run.needs.fit,
            prepared=None if run.needs is None or step is None else run.needs.prepared,
            crafted=self._crafted_before(run, step),
        )
        self._holds[worker] = run.group
        run.begin(step)
        self._running[worker] = _Running(run, step, time.monotonic())
        self._executor.start(worker, task)

    def _bundle_of(self, run: CaseRun) -> Bundle | bytes | None:
        """Return the cases of a group; None if they cannot be sent, so that the case failed."""
        cases = {r.id: r.resolved for r in self._queue.runs if r.group == run.group}
        bundle = Bundle(self._key(run), cases, registry.registered())
        if not self._executor.copies:
            return bundle
        if self._pickled is None or self._pickled[0] != run.group:
            try:
                self._pickled = run.group, pickled(bundle)
            except Exception as error:  # a model or a dataset of the user's may hold anything
                reason = f"it cannot be sent to another process ({error}): run it with --jobs 1"
                self._fail(run, reason)
                return None
        return self._pickled[1]

    def _key(self, run: CaseRun) -> str:
        return f"{self._name} {run.group}"

    def _known(self, run: CaseRun) -> dict[str, bytes]:
        """Return the finished shards of a case, also those of an earlier run."""
        return {**shards_of_case(self._folder, run.id).load(), **run.known}

    def _crafted_before(self, run: CaseRun, step: ShardStep | None) -> tuple[bytes, ...] | None:
        """Return what earlier cases crafted on the surrogate of a case; None if it has none."""
        if not run.chain:
            return None
        if step is not None:  # the worker has the ladder open, and all of it
            return ()
        parts = (
            self._crafted.get(case_id) or shards_of_case(self._folder, case_id).load_crafted()
            for case_id in run.earlier
        )
        return tuple(part for part in parts if part)

    def _handle(self, event: Event) -> None:
        """Take what a worker hands back, or note that it is gone."""
        running = self._running.pop(event.worker, None)
        if isinstance(event, Died):
            self._holds.pop(event.worker, None)
            self._queue.forget(event.worker)
        if running is None:
            return
        run, step, since = running
        if run.state == "ended":  # it failed by another of its shards
            return
        if isinstance(event, Finished):
            self._take(event.worker, run, step, event.reply)
        elif isinstance(event, Died):
            self._count_death(run, step)
        else:
            error = event.error
            self._fail(run, f"{event.worker}: {type(error).__name__}: {error}")
        self._pace.add(run, time.monotonic() - since)
        self._update(run)

    def _take(self, worker: str, run: CaseRun, step: ShardStep | None, reply: Reply) -> None:
        """Store the shards or the record of a step."""
        if reply.lacks:
            if reply.lacks == "bundle":
                self._holds.pop(worker, None)
                run.lose(step)
            else:
                run.state = "ready"
            return
        self._store(run, reply)
        if reply.failure is not None:
            self._fail(run, f"{worker}: {reply.failure}" if self._executor.far else reply.failure)
        elif reply.outcome is not None:
            if reply.crafted and not shards_of_case(self._folder, run.id).store(
                CRAFTED, reply.crafted
            ):
                self._crafted[run.id] = reply.crafted
            store.write(self._folder, *reply.outcome, replace=self._force)
            self._remove_shards(run)
            self._end(run)
        elif reply.needs is not None:
            run.open(reply.needs, worker)
        elif step is not None:
            run.finish_shard(step)

    def _store(self, run: CaseRun, reply: Reply) -> None:
        """Store new shards; keep in memory those that cannot be."""
        files = shards_of_case(self._folder, run.id)
        for name, content in reply.shards.items():
            if not files.store(name, content):
                run.known[name] = content

    def _count_death(self, run: CaseRun, step: ShardStep | None) -> None:
        """Put a lost step back, or give its case up."""
        words = run.words(step)
        run.deaths[words] += 1
        if run.deaths[words] < TRIES:
            run.lose(step)
            return
        of = "" if step is None else " of this case"
        self._fail(
            run,
            f"a worker died {TRIES} times on {words}{of}, perhaps for lack of memory: run again "
            "with a smaller --shard or fewer --jobs",
        )

    def _end_overdue(self) -> None:
        """End the workers whose step takes longer than the limit, and give its case up."""
        if self._timeout is None:
            return
        now = time.monotonic()
        for worker, (run, step, since) in list(self._running.items()):
            if now - since <= self._timeout:
                continue
            del self._running[worker]
            self._holds.pop(worker, None)
            self._queue.forget(worker)
            self._executor.end(worker)
            if run.state != "ended":
                words = run.words(step)
                self._fail(run, f"{words} took longer than --timeout {self._timeout:g} s")
                self._update(run)

    def _fail(self, run: CaseRun, reason: str) -> None:
        self._failures.append(self._failure(run, reason))
        self._end(run)

    def _remove_shards(self, run: CaseRun) -> None:
        """Remove the shards of a case that has a record, and what no later case needs to know."""
        files = shards_of_case(self._folder, run.id)
        if not run.chain:
            files.remove()
            return
        files.remove_shards()
        self._scored.add(run.id)
        chain = [other for other in self._queue.runs if other.chain == run.chain]
        if {other.id for other in chain} <= self._scored:
            for case_id in run.sharing:
                remove_crafted(shards_of_case(self._folder, case_id))

    def _end(self, run: CaseRun) -> None:
        run.state, run.needs = "ended", None
        run.pending, run.attacked, run.known = [], set(), {}
        self._claims.release(run.id)
        if not any(other.chain == run.chain for other in self._queue.unfinished):
            self._claims.release(run.chain)

    def _update(self, run: CaseRun | None) -> None:
        now = time.monotonic()
        running = [(one.run, now - one.since) for one in self._running.values()]
        workers = len(self._running) + len(self._executor.idle())
        self._show.update(self._pace.seconds_remaining(running, workers), run)


def remove_crafted(files: ShardFiles) -> None:
    """Remove the files of a case that has a record, and the images crafted on its surrogate."""
    raw = files.load_crafted()
    part = None if raw is None else unpacked(raw, torch.device("cpu"))
    if part is not None:
        remove_file(part.name)
    files.remove()


def remove_leftovers(folder: Path, finished: Iterable[str], needed: Collection[str] = ()) -> None:
    """Remove what a run left that was killed between writing a record and removing its shards.

    Args:
        folder: the folder of the suite.
        finished: ids of cases that have a record.
        needed: ids of those whose images on a surrogate are shared by cases without a record.
    """
    claims = Claims(folder)
    for case_id in finished:
        shards = shards_of_case(folder, case_id)
        if (shards.folder.exists() or claims.left(case_id)) and claims.take(case_id):
            if case_id in needed:
                shards.remove_shards()
            else:
                remove_crafted(shards)
            claims.release(case_id)
