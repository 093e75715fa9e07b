"""Rounding: how much the arithmetic of another machine may change the results of a rerun.

Other versions of torch, instruction sets and numbers of threads add the same float32 numbers in
another order. The scores of a clean image change by a millionth; an iterative attack may take
another path altogether (docs/statistics.md has the figures). `verify` measures the effect: it runs
the case once more with the output of every layer rounded differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from robustbench_med.bench.record import Provenance
from robustbench_med.devices import processor

_STEP = 1 + 2**-23  # the next float32 after 1


@contextmanager
def rounded_otherwise() -> Iterator[None]:
    """Multiply the output of every innermost module by the smallest float32 above 1."""

    def nudge(module: nn.Module, inputs: object, output: object) -> Tensor | None:
        innermost = next(module.children(), None) is None
        if innermost and isinstance(output, Tensor) and output.dtype == torch.float32:
            return output * _STEP
        return None

    handle = register_module_forward_hook(nudge)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def threads_of(recorded: Provenance) -> Iterator[None]:
    """Compute with as many threads as a record was made with, if there are enough cores."""
    before = torch.get_num_threads()
    if 1 <= recorded.threads <= before:
        torch.set_num_threads(recorded.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_machine(recorded: Provenance, device: str) -> bool:
    """Return whether a rerun on this machine should equal the record to the last digit.

    This is never so on an accelerator, where the order of additions changes from run to run.
    """
    machine = (torch.__version__, processor(), torch.get_num_threads(), "cpu")
    return machine == (recorded.torch, recorded.cpu, recorded.threads, recorded.device) and (
        device == "cpu"
    )


def machines(recorded: Provenance, device: str) -> str:
    """Return a line that names the machine of a record and the machine of the rerun."""
    cpu = recorded.cpu or f"a processor it does not name ({recorded.platform})"
    then = f"torch {recorded.torch} on {_where(recorded.device, cpu)}"
    now = f"torch {torch.__version__} on {_where(device, processor())}"
    threads = f"{recorded.threads} and {torch.get_num_threads()} threads"
    return f"recorded with {then}; you run {now} ({threads})"


def _where(device: str, cpu: str) -> str:
    return cpu if device == "cpu" else f"{device} beside {cpu}"
