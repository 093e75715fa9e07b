"""Workers: processes that compute beside this one, none of which outlives it.

A driver that is stopped by a signal or an exception kills its workers. One that is killed outright
can do nothing any more: hence each worker watches its driver, and ends itself and whatever it
started once the driver is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import psutil
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import process_executor

Result = TypeVar("Result")
WorkerDiedError = process_executor.TerminatedWorkerError
_LOOKED = 0.5  # seconds between two looks at the driver
_TICK = 0.02  # seconds to which the start of a process is known


def map_unordered(
    function: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    *,
    jobs: int,
    threads: int,
) -> Generator[Result, None, None]:
    """Yield `function(*call)` of all arguments as they come, computed in `jobs` processes.

    Workers that have no more to do wait for the next call. Where this generator is closed early, or
    the caller is interrupted, they are killed.

    Args:
        function: of a module that the workers can import.
        arguments: of each call, in the order they are begun.
        jobs: processes.
        threads: of each process.

    Raises:
        WorkerDiedError: a worker died; the calls that were not finished are lost.
    """
    # arrays travel whole: those mapped from a file are read-only, which torch warns of
    with parallel_config(
        backend="loky",
        inner_max_num_threads=threads,
        initializer=start,
        initargs=(os.getpid(),),
    ):
        pool = Parallel(n_jobs=jobs, return_as="generator_unordered", max_nbytes=None)
        results = pool(delayed(function)(*call) for call in arguments)
    # joblib kills its workers where its generator is closed before its end
    with contextlib.closing(results):
        yield from results


def can_start() -> bool:
    """Return whether this process may have workers: one that is daemonic may not."""
    return not multiprocessing.current_process().daemon


def start(driver: int) -> None:
    """Prepare a worker: end with the driver, leave Ctrl-C to it, and keep what memory it takes.

    Args:
        driver: its process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky replaces a worker that holds 300 MB more than after its first call, and warns of it:
    # a larger victim or surrogate than the first one is no leak
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    threading.Thread(target=_watch, args=(driver,), daemon=True).start()


def _watch(driver: int) -> None:
    while _lives(driver):
        time.sleep(_LOOKED)
    kill_children()
    os._exit(1)


def _lives(driver: int) -> bool:
    # a parent that died is replaced at once, though it may stay in the process table
    return psutil.pid_exists(driver) if os.name == "nt" else os.getppid() == driver


def kill_children(*, since: float = 0.0) -> None:
    """Kill every process that this one started, and those that they did.

    Args:
        since: only those that began at this time or later, in seconds of `time.time()`.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.create_time() >= since - _TICK:
                _kill(child)


def _kill(process: psutil.Process) -> None:
    for descendant in [*reversed(process.children(recursive=True)), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
