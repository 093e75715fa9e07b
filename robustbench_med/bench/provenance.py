"""Provenance: with what, where and when a record was made."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache

import torch

from robustbench_med import __version__, registry
from robustbench_med.bench.record import Provenance
from robustbench_med.bench.verify.rounding import processor


@cache
def git_state() -> tuple[str, bool]:
    """Return the commit of the checkout and whether it has changes; ("", False) outside one."""
    if not (registry.CORE.parent / ".git").exists():
        return "", False

    def git(*words: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed words
            ["git", *words],  # noqa: S607 - the user's own git
            cwd=registry.CORE.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return done.stdout.strip()

    try:
        # records are no code
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
