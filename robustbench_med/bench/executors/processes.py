"""The executor that computes in processes of this machine, which share its cores or devices."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from robustbench_med.bench import workers
from robustbench_med.bench.executors import Died, Event, Finished, Raised, Slot
from robustbench_med.errors import BenchError

_STARTS = 3  # a process that dies before its first task is started again so often
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Process:
    """A process with a queue of its own, so that its death costs no other one."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            timeout=None,
            initializer=workers.start,
            initargs=(os.getpid(),),
            env=dict.fromkeys(_THREADS, str(slot.threads)),
        )
        self.ready: Future[int] = self._pool.submit(os.getpid)
        self.future: Future[Any] | None = None
        self.new = True

    def start(self, function: Callable[[Any], Any], task: object) -> None:
        self.future = self._pool.submit(function, task)

    def kill(self) -> None:
        """Kill the process and all that it has started."""
        pids = list(self._pool._processes or {})
        for pid in pids:
            workers.kill_process(pid)
        self._pool.shutdown(wait=True, kill_workers=True)


class Processes:
    """Processes that loky starts: they import no script of the user's, and share no memory."""

    copies = True
    far = False

    def __init__(self, function: Callable[[Any], Any], slots: Sequence[Slot]) -> None:
        self._function = function
        self._failed_starts = 0
        self._processes = {f"process {i}": _Process(slot) for i, slot in enumerate(slots, 1)}

    def idle(self) -> list[str]:
        """Return the processes that are ready and have no task."""
        return [
            name
            for name, process in self._processes.items()
            if process.future is None and process.ready.done() and not process.ready.exception()
        ]

    def slot(self, worker: str) -> Slot:
        """Return the threads and the device of a process."""
        return self._processes[worker].slot

    def start(self, worker: str, task: object) -> None:
        """Copy the task to the process."""
        self._processes[worker].start(self._function, task)

    def wait(self, seconds: float) -> list[Event]:
        """Return the finished tasks and the processes that died; those are replaced.

        Raises:
            BenchError: processes die before they can compute anything.
        """
        end = time.monotonic() + seconds
        while not (events := self._events()) and not self._some_are_new():
            expected = [p.ready if p.new else p.future for p in self._processes.values()]
            pending = [future for future in expected if future is not None]
            remaining = end - time.monotonic()
            if remaining <= 0:
                break
            if pending:
                wait(pending, remaining, FIRST_COMPLETED)
            else:
                time.sleep(remaining)
        return events

    def _some_are_new(self) -> bool:
        """Return whether a process has become ready since this was last asked."""
        new = [p for p in self._processes.values() if p.new and p.ready.done()]
        for process in new:
            process.new = False
        return bool(new)

    def _events(self) -> list[Event]:
        events: list[Event] = []
        for name, process in list(self._processes.items()):
            if process.ready.done() and process.ready.exception() is not None:
                self._count_failed_start()
                self._replace(name)
            elif process.future is not None and process.future.done():
                future, process.future = process.future, None
                error = future.exception()
                if error is None:
                    events.append(Finished(name, future.result()))
                elif isinstance(error, BrokenExecutor | BrokenProcessPool):
                    events.append(Died(name))
                    self._replace(name)
                else:
                    events.append(Raised(name, error))
        return events

    def _count_failed_start(self) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _STARTS:
            raise BenchError(
                f"expected processes that start, got {self._failed_starts} that died before their "
                "first task: run again with --executor inline, or with fewer --jobs"
            )

    def _replace(self, worker: str) -> None:
        process = self._processes[worker]
        process.kill()
        self._processes[worker] = _Process(process.slot)

    def end(self, worker: str) -> None:
        """Kill a process with its task, and start another in its place."""
        self._replace(worker)

    def close(self) -> None:
        """Kill all processes."""
        for process in self._processes.values():
            process.kill()
