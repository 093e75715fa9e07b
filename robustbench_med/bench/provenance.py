"""Provenance: the time, machine and software with which a record was made, and its peak memory."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from robustbench_med import registry
from robustbench_med.bench.record import Provenance
from robustbench_med.devices import processor
from robustbench_med.version import __version__

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@cache
def git_state() -> tuple[str, bool]:
    """Return the commit of the checkout and whether it has changes; ("", False) outside one."""
    if not (registry.CORE.parent / ".git").exists():
        return "", False

    def git(*words: str) -> str:
        result = subprocess.run(  # noqa: S603 - fixed words
            ["git", *words],  # noqa: S607 - the user's own git
            cwd=registry.CORE.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return result.stdout.strip()

    try:
        # changes of records do not count, since they are not code
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "", False


def now() -> str:
    """Return the time as UTC, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(*, started: str, command: str, device: str) -> Provenance:
    """Return the provenance of a case that began at `started`."""
    commit, dirty = git_state()
    return Provenance(
        version=__version__,
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(),
        cpu=processor(),
        device=device,
        threads=torch.get_num_threads(),
        started=started,
        command=command,
    )


def reset_peak(device: torch.device) -> None:
    """Reset the peak of memory; on systems that cannot, the peak of the whole process counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: 5 resets the "high water mark" of resident memory
        with contextlib.suppress(OSError):
            _REFERENCES.write_text("5")


def peak_mib(device: torch.device) -> float:
    """Return the peak memory since `reset_peak` in MiB: of tensors on CUDA, else of the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    line = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text() if _STATUS.is_file() else "")
    if line:
        return round(int(line[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
