"""Target: what a published protocol is run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from robustbench_med.types import Batch, Images, Logits
from robustbench_med.victim import Victim


class Target(NamedTuple):
    """What a protocol is run on.

    Attributes:
        victim: the model whose gradients it follows.
        x: images `(b, c, *s)` in [0,1].
        y: class ids `(b,)`, or masks of class ids `(b, *s)`, -1 = unlabelled.
        rng: for every random draw.
        train: returns so many training images, for a perturbation that is fitted on them.
        aimed: whether `y` are the masks that the attacker wants, in place of the truth.
    """

    victim: Victim
    x: Images
    y: Int[Tensor, "b *s"]
    rng: torch.Generator
    train: Callable[[int], Batch]
    aimed: bool = False


Loss = Callable[[Logits, Tensor], Tensor]  # logits and truth to the sum over images


def loss_gradient(victim: Victim, z: Images, y: Int[Tensor, "b *s"], loss: Loss) -> Images:
    """Return the gradient of a loss at each image, computed a chunk of images at a time."""
    pieces = []
    for images, truth in zip(z.split(victim.chunk), y.split(victim.chunk), strict=True):
        images = images.detach().requires_grad_()
        pieces.append(torch.autograd.grad(loss(victim(images).logits, truth), images)[0])
    return torch.cat(pieces)
