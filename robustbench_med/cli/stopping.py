"""Stopping: what a command does when it is interrupted or asked to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

# what is left to do, by the command that was stopped
_NEXT = {
    "run": "finished cases are kept, run again to go on",
    "train": "run again to go on from its last epoch",
}
_SIGNALS = ("SIGTERM", "SIGHUP")  # Ctrl-C is Python's own KeyboardInterrupt
_began = 0.0  # when the command did


class Stopped(BaseException):
    """The process was asked to end by a signal; no handler of errors takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


def listen() -> dict[int, Any]:
    """Let signals that ask this process to end raise `Stopped`, so that it cleans up first.

    One that is ignored, as SIGHUP under nohup, stays so; so do those of a thread, which may not
    choose.

    Returns:
        what `forget` puts back.
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
    """Handle signals as before `listen`: the program that called the command goes on."""
    for signum, handler in before.items():
        signal.signal(signum, handler)


def _raise(signum: int, frame: FrameType | None) -> None:
    signal.signal(signum, _end)
    raise Stopped(signum)


def _end(signum: int, frame: FrameType | None) -> None:
    """End at once: asked twice, or what was raised was swallowed by a model's own code."""
    kill_children()
    os._exit(128 + signum)


def say() -> None:
    """Print that the command was stopped, and how to go on."""
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    left = _NEXT.get(command)
    print(f"robustbench_med: stopped{'; ' + left if left else ''}", file=sys.stderr)


def kill_children() -> None:
    """Kill what this command has started, if it can have started anything."""
    if "torch" in sys.modules:
        from robustbench_med.bench import workers

        workers.kill_children(since=_began)
