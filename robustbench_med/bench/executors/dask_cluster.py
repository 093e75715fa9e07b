"""The executor that computes on a Dask cluster: one made on this machine, or one that runs already.

Every task is sent to the worker that the driver has chosen, one at a time each, so that a worker
with several threads gives them all to torch. Workers may come and go while a run lasts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robustbench_med import registry
from robustbench_med.bench import workers
from robustbench_med.bench.executors import Died, Event, Finished, Raised, Slot
from robustbench_med.errors import BenchError, NotInstalledError, SpecError
from robustbench_med.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

_log = logging.getLogger(__name__)
_ANSWER = 5.0  # seconds in which a scheduler must answer
_LOOKED = 1.0  # seconds between two looks at the workers of a cluster
_STARTED = 120.0  # seconds in which the first worker of this machine must be there
_PLUG_INS = ("attacks", "defenses")
_CORE = ("bench", "datasets", "metrics", "models", "objectives", "stats")
_CLOSED = 5.0  # seconds for a cluster of this machine to end by itself


def describe(driver: int | None) -> dict[str, str]:
    """Return what a worker runs; on the driver's machine, end the worker with the driver.

    Args:
        driver: the process id of a driver that started this worker; None on another machine.
    """
    if driver is not None:
        workers.start(driver)
    return {
        "code": _code_sha256(),
        "robustbench_med": __version__,
        "torch": torch.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "process": str(os.getpid()),
    }


def _code_sha256() -> str:
    """Return the hash of all code that scores depend on, wherever its folders are."""
    homes = {name: Path(str(registry.module(name).__file__)).parent for name in _PLUG_INS}
    homes |= {name: registry.CORE / name for name in _CORE}
    files = [(f"core/{path.name}", path) for path in sorted(registry.CORE.glob("*.py"))]
    for name, home in homes.items():
        files += [
            (f"{name}/{p.relative_to(home).as_posix()}", p) for p in sorted(home.rglob("*.py"))
        ]
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class DaskCluster:
    """Workers of a Dask cluster.

    Args:
        function: a function in a module that the workers can import.
        slots: where each worker of a new cluster on this machine computes.
        scheduler: address or scheduler file of a running cluster; None makes a new one.
        device: the device of the workers of a running cluster.

    Raises:
        NotInstalledError: Dask is not installed.
        SpecError: no scheduler answers.
    """

    copies = True

    def __init__(
        self,
        function: Callable[[Any], Any],
        slots: Sequence[Slot],
        *,
        scheduler: str | None = None,
        device: str = "auto",
    ) -> None:
        try:
            import distributed
        except ImportError:
            raise NotInstalledError("distributed", "--executor dask", "cluster") from None
        self._function, self._slots, self._device = function, list(slots), device
        self._cluster: LocalCluster | None = None
        self.scheduler, self.far = scheduler, scheduler is not None
        if scheduler is None:
            self._cluster = _local_cluster(len(slots))
            self._client: Client = distributed.Client(self._cluster, set_as_default=False)
        else:
            self._client = _connected(scheduler)
        self._wake = threading.Event()
        self._threads: dict[str, int] = {}  # of each worker that is there
        self._slot_of: dict[str, Slot] = {}  # of the workers of a cluster on this machine
        self._pids: dict[str, int] = {}  # of the same workers
        self._described: dict[str, Future] = {}
        self._usable: set[str] = set()
        self._refused: dict[str, str] = {}  # why a worker is not used
        self._futures: dict[str, Future] = {}
        self._looked, self._alone, self._said = 0.0, time.monotonic(), False

    def idle(self) -> list[str]:
        """Return the workers that run this version of the bench and have no task."""
        return sorted(self._usable - set(self._futures))

    def slot(self, worker: str) -> Slot:
        """Return the threads and the device of a worker."""
        if self._cluster is None:
            return Slot(self._threads.get(worker, 1), self._device)
        return self._slot_of[worker]

    def start(self, worker: str, task: object) -> None:
        """Send a task to a worker."""
        self._futures[worker] = self._submit(self._function, task, worker)

    def _submit(self, function: Callable[[Any], Any], argument: object, worker: str) -> Future:
        with warnings.catch_warnings():
            # a bundle with images is large, and sent once to each worker
            warnings.filterwarnings("ignore", message="Sending large graph")
            future = self._client.submit(
                function,
                argument,
                workers=[worker],
                key=f"robustbench_med-{uuid.uuid4().hex}",
                pure=False,
            )
        future.add_done_callback(lambda _: self._wake.set())
        return future

    def wait(self, seconds: float) -> list[Event]:
        """Return the finished tasks, and the workers that are gone.

        Raises:
            SpecError: no worker runs this version of the bench.
            BenchError: the scheduler is gone, or no worker of this machine starts.
        """
        end = time.monotonic() + seconds
        while True:
            before = set(self._usable)
            self._look()
            events = self._events()
            remaining = end - time.monotonic()
            if events or self._usable - before or remaining <= 0:
                return events
            self._wake.wait(min(remaining, _LOOKED))
            self._wake.clear()

    def _look(self) -> None:
        """Look which workers are there, and which of them can be used."""
        if time.monotonic() - self._looked >= _LOOKED:
            self._looked = time.monotonic()
            try:
                self._threads = dict(self._client.nthreads())
            except (OSError, TimeoutError, RuntimeError) as error:
                raise BenchError(
                    f"the Dask scheduler is gone ({type(error).__name__}): start it and run the "
                    "command again; finished cases are kept"
                ) from None
            self._greet()
        for worker, future in list(self._described.items()):
            if future.done():
                del self._described[worker]
                self._judge(worker, future)
        self._check_workers()

    def _greet(self) -> None:
        """Ask new workers what they run, and forget those that are gone."""
        for worker in self._threads:
            if worker not in {*self._usable, *self._described, *self._refused}:
                driver = None if self._cluster is None else os.getpid()
                self._described[worker] = self._submit(describe, driver, worker)
        for gone in self._usable - set(self._threads):
            self._usable.discard(gone)
            self._slot_of.pop(gone, None)
            self._pids.pop(gone, None)
        for gone in set(self._described) - set(self._threads):
            del self._described[gone]

    def _judge(self, worker: str, future: Future) -> None:
        """Use a worker if it runs what the driver runs."""
        if worker not in self._threads or future.status in ("cancelled", "lost"):
            return
        answer = future.exception() if future.status == "error" else future.result()
        reason = _difference(answer)
        if reason:
            self._refused[worker] = f"worker {worker} is not used: {reason}"
            _log.warning("%s", self._refused[worker])
            return
        if self._cluster is not None:
            free = [slot for slot in self._slots if not self._has(slot)]
            self._slot_of[worker] = (free or self._slots)[0]
            self._pids[worker] = int(answer["process"])
        self._usable.add(worker)

    def _has(self, slot: Slot) -> bool:
        """Whether as many workers as planned have this slot."""
        taken = sum(other == slot for other in self._slot_of.values())
        return taken >= self._slots.count(slot)

    def _check_workers(self) -> None:
        """Say that there are no workers yet; raise an error where there will be none."""
        if self._usable or self._described:
            self._alone = time.monotonic()
            return
        there = set(self._threads)
        if self._cluster is None and there and there <= set(self._refused):
            raise SpecError(next(iter(self._refused.values())))
        if self._cluster is not None and time.monotonic() - self._alone > _STARTED:
            raise BenchError(
                f"expected Dask workers that start within {_STARTED:g} s, got none: run again with "
                "--executor processes"
            )
        if self._cluster is None and not self._said and time.monotonic() - self._alone > _ANSWER:
            self._said = True
            _log.warning("%s has no workers yet: waiting for them", self.scheduler)

    def _events(self) -> list[Event]:
        events: list[Event] = []
        for worker, future in list(self._futures.items()):
            if future.status == "finished":
                events.append(self._result(worker, future))
            elif future.status == "error" and not self._was_killed(future):
                events.append(Raised(worker, future.exception()))
            elif worker not in self._threads or future.status in ("error", "cancelled", "lost"):
                events.append(Died(worker))
            else:
                continue
            del self._futures[worker]
            future.cancel()
        return events

    @staticmethod
    def _was_killed(future: Future) -> bool:
        import distributed

        return isinstance(future.exception(), distributed.KilledWorker)

    def _result(self, worker: str, future: Future) -> Event:
        """Return the result of a finished task, which is lost if its worker dies right now."""
        try:
            return Finished(worker, future.result(timeout=60))
        except Exception:  # Dask names no common class for a result that is gone
            return Died(worker)

    def end(self, worker: str) -> None:
        """Restart a worker; one that no nanny watches cannot be restarted, and is used no more."""
        self._futures.pop(worker).cancel()
        self._usable.discard(worker)
        if self._cluster is not None:
            # its nanny starts another, which has another address
            self._refused[worker] = "it was killed"
            self._slot_of.pop(worker)
            workers.kill_process(self._pids.pop(worker))
            return
        try:
            self._client.restart_workers([worker], timeout=_ANSWER, raise_for_error=False)
        except Exception as error:  # as above
            reason = f"worker {worker} is not used any more: it hangs and cannot be restarted"
            self._refused[worker] = reason
            _log.warning("%s (%s)", reason, type(error).__name__)

    def close(self) -> None:
        """Cancel the tasks; end the cluster if it was made here."""
        for future in (*self._futures.values(), *self._described.values()):
            future.cancel()
        self._client.close(timeout=_ANSWER)
        if self._cluster is not None:
            self._cluster.close(timeout=_CLOSED)


def _difference(answer: object) -> str:
    """Return how a worker differs from this process; nothing if it runs the same."""
    mine = describe(None)
    names = ("robustbench_med", "torch", "Python")
    words = ", ".join(f"{name} {mine[name]}" for name in names)
    if not isinstance(answer, dict):
        return f"expected {words}, got {type(answer).__name__}: {answer}"
    theirs = ", ".join(f"{name} {answer[name]}" for name in names)
    if theirs != words:
        return f"expected {words}, got {theirs}"
    if answer["code"] != mine["code"]:
        return "expected the code that the driver runs, got files with other contents"
    return ""


def _local_cluster(count: int) -> LocalCluster:
    import distributed

    return distributed.LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        memory_limit=0,
    )


def _connected(scheduler: str) -> Client:
    """Return a client of a running cluster.

    Raises:
        SpecError: there is no such file, or no scheduler answers.
    """
    import distributed

    if Path(scheduler).is_file():
        where: dict[str, str] = {"scheduler_file": scheduler}
    elif "/" in scheduler.partition("://")[2] or "://" not in scheduler and ":" not in scheduler:
        raise SpecError(
            f"expected the address of a Dask scheduler (tcp://HOST:8786) or its scheduler file, "
            f"got {scheduler!r}: there is no such file"
        )
    else:
        where = {"address": scheduler if "://" in scheduler else f"tcp://{scheduler}"}
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        return distributed.Client(**where, timeout=_ANSWER, set_as_default=False)
    except (OSError, TimeoutError, ValueError, KeyError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise SpecError(
            f"expected a Dask scheduler at {scheduler}, got no answer: {first}"
        ) from None
