"""Guides: differentiable models that an attack ascends in place of the judge."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from robustbench_med.errors import VictimError
from robustbench_med.problem import Model
from robustbench_med.types import Images, Output
from robustbench_med.victim import InputContract, Transform, Victim


class _Half(nn.Module):
    """A network that computes in bfloat16, channels last, and returns float32 tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the network returns
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        raw = self.module(x.to(torch.bfloat16, memory_format=layout))
        return raw.float() if isinstance(raw, Tensor) else raw


def bfloat16(victim: Victim) -> Victim:
    """Return a copy of the victim that computes in bfloat16, batch norms folded where possible.

    It gives gradients only: the judge confirms each sample that the guide reports as successful
    (robustbench_med/search.py), and every candidate is judged in full precision at the end. It is
    faster if the processor multiplies bfloat16 in hardware (AMX, CUDA), and slower elsewhere.

    Raises:
        VictimError: the victim is a TorchScript archive, whose weights keep their type.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in victim.module.modules()):
        raise VictimError("expected --guide float32 with a TorchScript archive, got bfloat16")
    module = _fused(copy.deepcopy(victim.module).eval(), victim.contract.network)
    layout = torch.channels_last if len(victim.contract.size) == 2 else torch.contiguous_format
    half = _Half(module.to(torch.bfloat16).to(memory_format=layout))
    return replace(victim, module=half.requires_grad_(False))


def _fused(module: nn.Module, contract: InputContract) -> nn.Module:
    """Return the module with its batch norms folded, or the module itself if that changes it.

    fx raises for control flow that it cannot trace, or follows it wrongly: MONAI's BasicUNet
    silently loses its skip connections. The outputs are therefore compared.
    """
    shape = (2, contract.channels, *contract.size)
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    parameter = next(module.parameters(), None)
    x = x if parameter is None else x.to(parameter)
    with (
        contextlib.suppress(TraceError, TypeError, RuntimeError, AttributeError, AssertionError),
        torch.no_grad(),
    ):
        fused = fuse(module)
        if torch.allclose(fused(x), module(x), rtol=1e-3, atol=1e-3):
            return fused
    return module


def straight_through(transform: Transform, model: Model) -> Model:
    """Return a guide that applies a transform in the forward pass, and the identity backwards.

    It serves victims whose input transform has no useful gradients, such as rounding, median
    filters and JPEG. The attack ascends the model behind the transform; the judge is the deployed
    model.

    Args:
        transform: first step of the victim, on `(b, c, *s)` images in [0,1].
        model: the victim behind the transform.

    Source: BPDA with the identity for the backward pass, Athalye, Carlini, Wagner, ICML 2018,
        section 4.1.
    """
    view = through(transform)

    def guide(x: Images) -> Output:
        return model(view(x))

    return guide


def through(transform: Transform) -> Transform:
    """Return a transform whose backward pass is the identity.

    Source: as for `straight_through`.
    """

    def view(x: Images) -> Images:
        with torch.no_grad():
            moved = transform(x) - x
        return x + moved

    return view
