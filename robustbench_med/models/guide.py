"""Guides: what an attack climbs in the judge's place: bfloat16, or straight through a transform."""

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

from robustbench_med.problem import Model
from robustbench_med.types import Images, Output
from robustbench_med.victim import InputContract, Transform, Victim


class _Half(nn.Module):
    """A network that computes in bfloat16, channels last, and answers in float32 where it can."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the network returns
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        raw = self.module(x.to(torch.bfloat16, memory_format=layout))
        return raw.float() if isinstance(raw, Tensor) else raw


def bfloat16(victim: Victim) -> Victim:
    """Return a copy of the victim that computes in bfloat16, batch norms folded where possible.

    Its gradients are a guide only: a sample it calls done is confirmed by the judge before it is
    dropped (robustbench_med/search.py), and every candidate is judged in full precision at the end.
    It is faster where the processor multiplies bfloat16 in hardware (AMX, CUDA), slower elsewhere.
    """
    module = _fused(copy.deepcopy(victim.module).eval(), victim.contract)
    layout = torch.channels_last if len(victim.contract.size) == 2 else torch.contiguous_format
    half = _Half(module.to(torch.bfloat16).to(memory_format=layout))
    return replace(victim, module=half.requires_grad_(False))


def _fused(module: nn.Module, contract: InputContract) -> nn.Module:
    """Return the module with its batch norms folded; itself where that is not the same network.

    Control flow that fx cannot trace raises, or it is followed as for no tensor at all: MONAI's
    BasicUNet loses its skip connections in silence. So the answers are compared.
    """
    shape = (2, contract.channels, *contract.size)
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    parameter = next(module.parameters(), None)
    x = x if parameter is None else x.to(parameter)
    with (
        contextlib.suppress(TraceError, TypeError, RuntimeError, AttributeError),
        torch.no_grad(),
    ):
        fused = fuse(module)
        if torch.allclose(fused(x), module(x), rtol=1e-3, atol=1e-3):
            return fused
    return module


def straight_through(transform: Transform, model: Model) -> Model:
    """Return a guide that transforms on the way forward and is the identity on the way back.

    For victims that transform their input in a way without useful gradients: rounding, median
    filters, JPEG. The attack climbs the model behind the transform; the judge stays what is
    deployed.

    Args:
        transform: what the victim does to `(b, c, *s)` images in [0,1] first.
        model: the victim behind it.

    Source: BPDA with the identity for the backward pass, Athalye, Carlini, Wagner, ICML 2018,
        section 4.1.
    """
    view = through(transform)

    def guide(x: Images) -> Output:
        return model(view(x))

    return guide


def through(transform: Transform) -> Transform:
    """Return a transform that is itself on the way forward, the identity on the way back.

    Source: as of `straight_through`.
    """

    def view(x: Images) -> Images:
        with torch.no_grad():
            moved = transform(x) - x
        return x + moved

    return view
