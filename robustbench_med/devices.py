"""The device of torch that a name stands for, and the processor of this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import nn

from robustbench_med.errors import SpecError

_CPU = Path("/proc/cpuinfo")


def device_of(name: str) -> torch.device:
    """Return the device that a name stands for; "auto" is CUDA where the machine has it.

    Raises:
        SpecError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise SpecError(
            f"expected a device of this machine (cpu), got {name!r}: {first_line}"
        ) from None
    return device


def processor() -> str:
    """Return the processor and the instructions that torch uses of it."""
    fields: dict[str, str] = {}
    if _CPU.is_file():
        for line in _CPU.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    which = f" ({'/'.join(numbers)})" if numbers else ""
    return f"{name}{which}, {torch.backends.cpu.get_cpu_capability()}"


def device_of_module(module: nn.Module) -> torch.device:
    """Return the device of a module's weights; the CPU if it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
