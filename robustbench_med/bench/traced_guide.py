"""Traced guide: differentiate the operations of a module's forward pass.

If a module has wrong gradients, its forward pass is recorded without gradients as a graph of ATen
operations. The graph contains no autograd functions, hooks, branches on the grad mode or detached
tensors, so its gradient is the derivative of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from robustbench_med.bench.gradient_check import MOVED, compare
from robustbench_med.bench.gradient_recorder import GradientSample
from robustbench_med.types import Images
from robustbench_med.victim import Victim

# operations that return their input but stop its gradient
_STOPS = ("aten::detach", "aten::detach_", "aten::alias")


class TracedModule(nn.Module):
    """A module as graphs of ATen operations, one for each batch size that is a power of two.

    A graph has a fixed batch size. A batch is filled up to the next power of two with copies of its
    last image, and the outputs for these copies are dropped.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._source = (module,)  # a tuple, so that torch does not register it as a submodule
        self._graphs: dict[tuple[int, ...], Callable[[Images], Any]] = {}

    def forward(self, x: Images) -> Any:  # noqa: ANN401 - what the module returns
        """Return what the module returns for `x`."""
        size = 1 << (len(x) - 1).bit_length()
        filled = torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) if size > len(x) else x
        shape = tuple(filled.shape)
        if shape not in self._graphs:
            self._graphs[shape] = _trace(self._source[0], filled.detach().clone())
        output = self._graphs[shape](filled)
        return pytree.tree_map_only(Tensor, lambda part: part[: len(x)], output)


def _trace(module: nn.Module, x: Images) -> Callable[[Images], Any]:
    def answer(x: Images) -> Any:  # noqa: ANN401
        return module(x)

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation has no derivative
    try:
        with torch.no_grad():
            graph = make_fx(answer)(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and _name(node) in _STOPS:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return graph


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "_schema", "")).split("(")[0].split(".")[0]


def traced_guide(victim: Victim, samples: Sequence[GradientSample], *, seed: int) -> Victim | None:
    """Return the victim with the gradients of its own forward operations; None if impossible.

    It is impossible if the output depends on values outside tensors (Python branches on pixels,
    NumPy), if an operation has no derivative, or if the derivative is useless (rounding).

    Args:
        victim: a victim whose gradients disagree with its outputs, frozen by the caller.
        samples: gradients of an attack; the guide is tested on their images.
        seed: seed of the directions of the finite differences.
    """
    guide = replace(victim, module=TracedModule(victim.module), recorder=None)
    shown = torch.stack([sample.shown for sample in samples])
    cotangent = torch.stack([sample.cotangent for sample in samples])
    try:
        fresh = _fresh(guide, shown, cotangent)
        # the graph was traced on these images: test on others whether it stored their values
        moved_images = shown.flip(-1).roll(1, 0)
        with torch.no_grad():
            apart = (guide.answer(moved_images) - victim.answer(moved_images)).abs().max()
            known = victim.answer(shown)
    except Exception:  # noqa: BLE001 - torch traces foreign code by an experimental interface
        return None
    if float(apart) > MOVED * float(known.max() - known.min()):
        return None
    comparison = compare(victim, fresh, seed=seed)
    good = comparison.judged & ~comparison.disagree & (comparison.moved <= MOVED)
    return guide if bool(good.all()) else None


def _fresh(guide: Victim, shown: Images, cotangent: Tensor) -> list[GradientSample]:
    leaf = shown.clone().requires_grad_(True)
    with torch.enable_grad():
        logits = guide.answer(leaf)
        (g,) = torch.autograd.grad((logits * cotangent).sum(), leaf)
    fields = zip(shown, logits.detach(), cotangent, g, strict=True)
    return [GradientSample(*values) for values in fields]
