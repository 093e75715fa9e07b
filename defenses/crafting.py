"""Craft adversarial examples for a victim in training, with an attack that is passed in.

While images are crafted, the network is in eval mode and its parameters need no gradients: batch
norm keeps its statistics and dropout is off, so that the attacked network is the deployed one. The
authors of TRADES and MART do so in their code. Madry et al. and Wong et al. crafted in train mode;
here `pgd_at` and `fast_at` deviate from them (Pang et al., ICLR 2021, section 3.4, find eval mode
better or equal; cited from memory).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Logits, Output, Rows, Truth, Verdict
from robustbench_med.victim import Victim, frozen

Attack = Callable[..., Images]


class TrainingLoss:
    """The objective of crafting: to raise the loss of the batch; no sample is ever final.

    The loss is a mean over the batch. The gradient of each image is still independent of the other
    images, except for the Dice of masks, which is computed over the batch.
    """

    def __init__(self, loss: Callable[[Logits], Tensor]) -> None:
        self.loss = loss

    def __call__(self, output: Output, y: Truth) -> Verdict:
        """Return the verdict; loss and harm of an image are the batch's loss over its size."""
        value = self.loss(output.logits)
        per_image = (value / len(y)).expand(len(y))
        return Verdict(per_image, per_image, torch.zeros_like(per_image, dtype=torch.bool))

    def margins(self, output: Output, y: Truth) -> Float[Tensor, "b m"]:
        """Return the loss as the only margin."""
        return self(output, y).harm[:, None]

    def dlr_scale(self, output: Output, *, towards: bool = False) -> Float[Tensor, " b"]:  # noqa: ARG002
        """Return 1, because a training loss has no scale to divide by."""
        return output.logits.new_ones(len(output.logits))

    def applies(self, y: Truth) -> Tensor:
        """Return True for every image: all can be attacked."""
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def select(self, rows: Rows) -> TrainingLoss:  # noqa: ARG002 - a batch is one loss
        """Return the objective itself."""
        return self

    def bind(self, y: Truth) -> TrainingLoss:  # noqa: ARG002 - bound to its truths already
        """Return the objective itself."""
        return self


def craft(
    victim: Victim,
    x: Images,
    y: Truth,
    maximised: Callable[[Logits], Tensor],
    attack: Attack,
    ball: Ball,
    **effort: Any,  # noqa: ANN401 - of any attack
) -> Images:
    """Return adversarial examples in the ball, crafted against the network in eval mode.

    They carry no gradient.

    Args:
        victim: the victim; its train mode and its parameters' gradients are restored afterwards.
        x: images of a batch.
        y: truth of the images.
        maximised: the loss that the attack maximises, a function of logits.
        attack: the attack; it takes a problem, `rng` and the effort.
        ball: the allowed perturbation.
        effort: parameters of the attack.
    """
    rng = Draws(torch.randint(-(2**62), 2**62, (len(x),)).to(x.device))
    with frozen(victim.module):
        problem = Problem(x, y, ball, TrainingLoss(maximised), victim, chunk=len(x))
        return attack(problem, rng=rng, **effort).detach()
