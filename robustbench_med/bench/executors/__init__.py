"""Executors: the places where the steps of a run are computed.

A driver hands one task at a time to each worker that is idle, and waits for what comes of it. An
executor moves tasks and replies and knows when a worker dies. Which worker gets which task, and how
often a lost task is tried again, is decided by the driver alone (`bench/runner.py`), so that all
executors behave alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable


class Slot(NamedTuple):
    """Where a worker computes: its number of threads (0 = as torch is set), and its device."""

    threads: int
    device: str


class Finished(NamedTuple):
    """A task that ended, with its reply."""

    worker: str
    reply: Any


class Died(NamedTuple):
    """A worker that died with its task."""

    worker: str


class Raised(NamedTuple):
    """A task that a worker could not begin, for example because it lacks a package."""

    worker: str
    error: BaseException


Event = Finished | Died | Raised


@runtime_checkable
class Executor(Protocol):
    """Workers that compute a function of one argument, one task at a time each.

    Attributes:
        copies: whether tasks are copied to other processes.
        far: whether workers may be on other machines, so that a failure names its worker.
    """

    copies: bool
    far: bool

    def idle(self) -> list[str]:
        """Return the workers that are ready for a task. Others may come and go at any time."""
        ...

    def slot(self, worker: str) -> Slot:
        """Return where a worker computes."""
        ...

    def start(self, worker: str, task: object) -> None:
        """Hand a task to an idle worker."""
        ...

    def wait(self, seconds: float) -> list[Event]:
        """Return what happened; wait up to so many seconds for something to happen."""
        ...

    def end(self, worker: str) -> None:
        """End a worker with its task, which causes no event; another worker may replace it."""
        ...

    def close(self) -> None:
        """End all workers of this executor, and the tasks that still run."""
        ...
