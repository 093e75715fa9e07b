"""Peak memory of a case: of the accelerator where one is used, else of the process."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

import torch

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far. Where the system cannot, the process's own peak goes on counting."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: 5 resets the "high water mark" of resident memory
        with contextlib.suppress(OSError):
            _REFERENCES.write_text("5")


def peak_mib(device: torch.device) -> float:
    """Return the most memory held since `reset_peak`, in MiB: tensors on CUDA, else the process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text() if _STATUS.is_file() else "")
    if found:
        return round(int(found[1]) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
