"""Devices: from the name that a person gives to the device of torch."""

from __future__ import annotations

import torch

from robustbench_med.errors import SpecError


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
