"""Claims: which cases of a results folder a run computes, so that another run leaves them alone.

A claim is a lock on a file in the results folder, which the system releases when its process ends,
however that ends. So several runs may share a folder, on one machine or on several with a shared
disk.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


class Claims:
    """The cases of a results folder that this run has claimed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[str, BaseFileLock | None] = {}

    def take(self, case_id: str) -> bool:
        """Claim a case; return whether this run has it now, and no other one.

        Where the folder's disk knows no locks, every case is this run's: records are written in one
        step, so a case that two runs compute costs time, and no record.
        """
        if case_id in self._locks:
            return True
        lock = FileLock(self._path(case_id), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            self._locks[case_id] = None
            return True
        self._locks[case_id] = lock
        return True

    def release(self, case_id: str) -> None:
        """Give a case back, whose record is written or which failed."""
        lock = self._locks.pop(case_id, None)
        if lock is None:
            return
        # the file goes first: whoever has opened it since finds the record that was written
        with contextlib.suppress(OSError):
            self._path(case_id).unlink()
        lock.release()

    def left(self, case_id: str) -> bool:
        """Whether the file of a claim is there, perhaps of a run that was killed."""
        return self._path(case_id).exists()

    def release_all(self) -> None:
        """Give all cases back."""
        for case_id in list(self._locks):
            self.release(case_id)

    def _path(self, case_id: str) -> Path:
        return self._folder / f".{case_id}.lock"
