"""AWP: the loss of a victim whose weights have been moved where it is worst."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from robustbench_med.types import Images
from robustbench_med.victim import Victim

_TINY = 1e-20


class _WithTensors(nn.Module):
    """A module that computes with other tensors instead of some of its own."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.tensors = module, dict(tensors)

    def forward(self, x: Images) -> Tensor:
        output: Tensor = functional_call(self.module, self.tensors, (x,))
        return output


def perturbed(
    victim: Victim, descended: Callable[[Victim], Float[Tensor, ""]], gamma: float
) -> Float[Tensor, ""]:
    """Return a loss at the victim's weights moved up that loss; its gradient is of the weights.

    The weights themselves never change: the victim computes with sums in their place, so there is
    nothing to restore, not even after an error. A victim in train mode updates its batch norm
    statistics once, in the pass whose loss is returned.

    Args:
        victim: whose weights are moved.
        descended: the loss of a victim.
        gamma: length of the move of each layer as a fraction of its weights' norm, >= 0; 0 = none.

    Source: Wu, Xia, Wang, NeurIPS 2020, equations 8 to 10, K2 = 1 step. As in the authors' code
        (from memory), only weights of two axes or more move, not biases and norms. Deviation: the
        weights are back where they were before the optimizer's step, not after it; the two differ
        in the weight decay alone.
    """
    if not gamma:
        return descended(victim)
    module = victim.module
    layers = {
        name: layer
        for name, layer in module.named_parameters()
        if layer.ndim > 1 and layer.requires_grad
    }
    copies = {name: buffer.clone() for name, buffer in module.named_buffers()}
    aside = replace(victim, module=_WithTensors(module, copies))
    slopes = torch.autograd.grad(descended(aside), list(layers.values()), allow_unused=True)
    moved = {
        name: layer + gamma * layer.detach().norm() / (g.norm() + _TINY) * g
        for (name, layer), g in zip(layers.items(), slopes, strict=True)
        if g is not None
    }
    return descended(replace(victim, module=_WithTensors(module, moved)))
