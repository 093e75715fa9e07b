"""Stop a command that is interrupted by Ctrl-C or asked to end by a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

# how to go on, by the command that was stopped
_NEXT = {
    "run": "finished cases are kept; run the command again to go on",
    "train": "run the command again to go on from its last epoch",
}
_SIGNALS = ("SIGTERM", "SIGHUP")  # Ctrl-C is Python's own KeyboardInterrupt
_began = 0.0  # when the command started


class Stopped(BaseException):
    """A signal asked the process to end. It is no Exception, so that no `except` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


def listen() -> dict[int, Any]:
    """Let signals that ask this process to end raise `Stopped`, so that it cleans up first.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored. Nothing changes outside the
    main thread, because only that may set handlers.

    Returns:
        the handlers before, for `forget`.
    """
    global _began
    _began = time.time()
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {}
    for name in _SIGNALS:
        signum = getattr(signal, name, None)  # Windows lacks some
        if signum is not None and signal.getsignal(signum) == signal.SIG_DFL:
            before[signum] = signal.signal(signum, _raise)
    return before


def forget(before: dict[int, Any]) -> None:
    """Restore the handlers before `listen`: the program that called the command goes on."""
    for signum, handler in before.items():
        signal.signal(signum, handler)


def _raise(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, _end)
    raise Stopped(signum)


def _end(signum: int, frame: FrameType | None) -> None:
    """End at once: a second signal came, or a model's own code swallowed `Stopped`."""
    kill_children()
    os._exit(128 + signum)


def print_stopped() -> None:
    """Print that the command was stopped, and how to go on."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    advice = _NEXT.get(command)
    print(f"robustbench_med: stopped{'; ' + advice if advice else ''}", file=sys.stderr)


def kill_children() -> None:
    """Kill the processes that this command has started."""
    if "torch" in sys.modules:
        from robustbench_med.bench import workers

        workers.kill_children(since=_began)
