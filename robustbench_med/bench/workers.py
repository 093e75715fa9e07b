"""Workers: processes that compute in parallel, and end when the process that started them ends.

A driver that is stopped by a signal or an exception kills its workers. A driver that is killed
outright cannot, so each worker watches its driver, and ends itself and the processes it started
when the driver is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import psutil
from joblib.externals.loky import process_executor

_LOOKED = 0.5  # seconds between two checks of the driver
_TICK = 0.02  # accuracy in seconds of the start time of a process


def can_start() -> bool:
    """Return whether this process may start workers, which a daemonic process may not."""
    return not multiprocessing.current_process().daemon


def start(driver: int) -> None:
    """Prepare a worker, and end it with the driver.

    Args:
        driver: the process id of the driver.
    """
    prepare()
    threading.Thread(target=_watch, args=(driver,), daemon=True).start()


def prepare() -> None:
    """Let this process ignore Ctrl-C and keep its memory."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky warns and replaces a worker that holds 300 MB more than after its first call, but a
    # larger victim or surrogate is no memory leak
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize


def _watch(driver: int) -> None:
    while _lives(driver):
        time.sleep(_LOOKED)
    kill_children()
    os._exit(1)


def _lives(driver: int) -> bool:
    # the parent id changes as soon as the driver dies, even if it stays in the process table
    return psutil.pid_exists(driver) if os.name == "nt" else os.getppid() == driver


def kill_children(*, since: float = 0.0) -> None:
    """Kill every process that this one started, and all their descendants.

    Args:
        since: kill only processes that started at this time or later, in seconds of `time.time()`.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.create_time() >= since - _TICK:
                _kill(child)


def kill_process(pid: int) -> None:
    """Kill a process and all its descendants; nothing happens if it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        _kill(psutil.Process(pid))


def _kill(process: psutil.Process) -> None:
    for descendant in [*reversed(process.children(recursive=True)), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
