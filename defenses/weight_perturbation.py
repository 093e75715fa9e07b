"""AWP: compute the loss of a victim whose weights are perturbed to raise it."""

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
    """A module that computes with given tensors instead of some of its own."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.tensors = module, dict(tensors)

    def forward(self, x: Images) -> Tensor:
        output: Tensor = functional_call(self.module, self.tensors, (x,))
        return output


def perturbed_loss(
    victim: Victim, descended: Callable[[Victim], Float[Tensor, ""]], gamma: float
) -> Float[Tensor, ""]:
    """Return the loss at weights moved along its gradient; it can be differentiated by the weights.

    The weights themselves never change. The victim computes with the sums of weights and moves, so
    there is nothing to restore, even after an error. A victim in train mode updates its batch norm
    statistics once, in the pass whose loss is returned.

    Args:
        victim: the victim whose weights are moved.
        descended: the loss as a function of the victim.
        gamma: length of each layer's move as a fraction of the norm of its weights, >= 0; 0 = none.

    Source: Wu, Xia, Wang, NeurIPS 2020, equations 8 to 10, with K2 = 1 step. As in the authors'
        code (from memory), only weights with at least two axes move; biases and norms do not.
    Deviation: The weights are unperturbed during the optimizer's step; the authors restore them
        after it. The two differ only in the weight decay.
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
