"""Memory: give what is free back to the system, so that a run does not grow with its images."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SLACK = 64 * 2**20  # bytes that may be free and unreturned; less costs time, see HeapLimit
_LEARNS = 6  # checks; a step of an attack and the reading of its images are fewer
_STATM = Path("/proc/self/statm")


def release_memory() -> None:
    """Give free memory of the C heap back to the system; without glibc, do nothing."""
    trim = _trim()
    if trim is not None:
        trim(0)


def limit_memory() -> None:
    """Release memory if this process holds much more than it needed; without glibc, do nothing.

    It is called before every pass, and takes a few microseconds unless there is much to release.
    """
    if _trim() is not None:
        _heap.check()


@dataclass
class HeapLimit:
    """Release memory when a process holds more than it needs, by `SLACK` or more.

    Tensors of a batch differ in size from those of the next, and glibc's heap returns only what
    lies at its end. It would grow from batch to batch. A page that is returned must be zeroed by
    the system when it is used again, which for a small network takes longer than the network.
    Therefore nothing is released as long as no more is held than what some work has needed on a
    heap that was just released.

    Attributes:
        resident: returns the bytes of memory that this process holds.
        release: returns what is free to the system.
        limit: bytes above which memory is released.
        learning: number of checks that still raise the limit, since the last release.
    """

    resident: Callable[[], int]
    release: Callable[[], None]
    limit: int = 0
    learning: int = 0

    def check(self) -> None:
        """Release memory above the limit; raise it by what the first work after that needs."""
        held = self.resident()
        if self.learning:
            self.limit = max(self.limit, held + SLACK)
            self.learning -= 1
        elif held > self.limit:
            self.release()
            self.learning = _LEARNS


def _resident() -> int:
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def _trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`; None on a system that has none."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        _resident()
    except (OSError, AttributeError, TypeError):
        return None
    return trim


_heap = HeapLimit(_resident, release_memory)
