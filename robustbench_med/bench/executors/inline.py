"""The executor that computes in the process of the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustbench_med.bench.executors import Event, Finished, Slot

HERE = "this process"


class Inline:
    """One worker, which is this process: a task is computed while the driver waits for it."""

    copies = False
    far = False

    def __init__(self, function: Callable[[Any], Any], device: str) -> None:
        self._function, self._device = function, device
        self._task: list[object] = []

    def idle(self) -> list[str]:
        """Return this process unless it has a task."""
        return [] if self._task else [HERE]

    def slot(self, worker: str) -> Slot:
        """Return the device; torch has as many threads as it is set to."""
        return Slot(0, self._device)

    def start(self, worker: str, task: object) -> None:
        """Keep the task until the driver waits."""
        self._task = [task]

    def wait(self, seconds: float) -> list[Event]:
        """Compute the task, however long it takes."""
        if not self._task:
            return []
        try:
            return [Finished(HERE, self._function(self._task[0]))]
        finally:
            self._task = []

    def end(self, worker: str) -> None:
        """Forget the task."""
        self._task = []

    def close(self) -> None:
        """Forget the task."""
        self._task = []
