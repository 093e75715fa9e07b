"""Adversarial training: the training loss of one batch, by PGD-AT, TRADES, MART and others.

`robustbench_med/training/fit.py` calls every function with the same arguments: the victim in train
mode, the batch, the loss of the recipe (a function of logits and truth), and the attack that crafts
adversarial examples. Each function returns a scalar to minimise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.declarations import defense
from robustbench_med.errors import SpecError
from robustbench_med.types import Images, Logits, Truth
from robustbench_med.victim import Victim, frozen

from .crafting import Attack, craft
from .losses import divergence, label_divergence, margin_term, wrong_probability
from .weight_perturbation import perturbed_loss

Loss = Callable[[Logits, Truth], Tensor]


@defense(
    title="PGD-AT",
    summary="Trains on the adversarial examples that PGD finds for each batch.",
    source="Madry et al., ICLR 2018, equation 2.1",
    version=1,
    aliases=("madry",),
    kind="training",
    positive=("eps", "steps", "rel_stepsize"),
    training={"attack": "pgd_last"},
)
def pgd_at(
    victim: Victim,
    x: Images,
    y: Truth,
    *,
    loss: Loss,
    attack: Attack,
    eps: float = 4 / 255,
    steps: int = 7,
    rel_stepsize: float = 0.25,
    norm: Norm = "linf",
    awp: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the loss on adversarial examples that maximise it.

    Args:
        victim: the victim, in train mode.
        x: images of a batch.
        y: truth of the images.
        loss: the loss of the recipe, a function of logits and truth.
        attack: the attack that finds the adversarial examples; a recipe gives its registry name.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed_loss`; 0 = off.

    Source: Madry et al., ICLR 2018, equation 2.1; 7 steps of 2/255 at 8/255, section 5. Every image
        takes all steps to raise the loss, even if it is already misclassified.
    """
    z = craft(
        victim,
        x,
        y,
        lambda o: loss(o, y),
        attack,
        Ball(norm, eps),
        steps=steps,
        total_step=steps * rel_stepsize,
    )
    return perturbed_loss(victim, lambda v: loss(v(z).logits, y), _unit(awp=awp))


@defense(
    title="Fast AT",
    summary="Trains on adversarial examples of one long step from a random start.",
    source="Wong, Rice, Kolter, ICLR 2020, algorithm 3",
    version=1,
    aliases=("fgsm_rs",),
    kind="training",
    positive=("eps", "rel_stepsize"),
    training={"attack": "pgd_last"},
)
def fast_at(
    victim: Victim,
    x: Images,
    y: Truth,
    *,
    loss: Loss,
    attack: Attack,
    eps: float = 4 / 255,
    steps: int = 1,
    rel_stepsize: float = 1.25,
    norm: Norm = "linf",
    awp: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the loss on adversarial examples of one long step from a uniformly random start.

    Args:
        victim: the victim, in train mode.
        x: images of a batch.
        y: truth of the images.
        loss: the loss of the recipe, a function of logits and truth.
        attack: the attack that finds the adversarial examples; a recipe gives its registry name.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed_loss`; 0 = off.

    Source: Wong, Rice, Kolter, ICLR 2020, algorithm 3, alpha = 1.25 eps (section 4.1). Its
        catastrophic overfitting shows in the robust validation; a patience in the recipe stops
        training then.
    """
    return pgd_at(
        victim,
        x,
        y,
        loss=loss,
        attack=attack,
        eps=eps,
        steps=steps,
        rel_stepsize=rel_stepsize,
        norm=norm,
        awp=awp,
    )


@defense(
    title="TRADES",
    summary="Trains on clean images and on how far the answers around them diverge.",
    source="Zhang et al., ICML 2019, equation 5",
    version=1,
    kind="training",
    positive=("eps", "steps", "rel_stepsize", "beta"),
    training={"attack": "pgd_last"},
)
def trades(
    victim: Victim,
    x: Images,
    y: Truth,
    *,
    loss: Loss,
    attack: Attack,
    eps: float = 4 / 255,
    steps: int = 10,
    rel_stepsize: float = 0.25,
    norm: Norm = "linf",
    beta: float = 6.0,
    awp: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the clean loss plus beta times the divergence of the outputs in the ball.

    Args:
        victim: the victim, in train mode.
        x: images of a batch.
        y: truth of the images.
        loss: the loss of the recipe, a function of logits and truth.
        attack: the attack that finds the adversarial examples; a recipe gives its registry name.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        beta: weight of the divergence (1 / lambda in the paper), > 0.
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed_loss`; 0 = off.

    Source: Zhang et al., ICML 2019, equation 5 and algorithm 1, with KL(clean || perturbed) as in
        the authors' code; 10 steps, beta 6.
    Deviation: The ascent starts uniformly in the ball, not at a normal draw with standard deviation
        0.001.
    """
    with frozen(victim.module), torch.no_grad():
        clean = victim(x).logits
    z = craft(
        victim,
        x,
        y,
        lambda o: divergence(clean, o, y),
        attack,
        Ball(norm, eps),
        steps=steps,
        total_step=steps * rel_stepsize,
    )

    def descended(v: Victim) -> Tensor:
        logits = v(x).logits
        return loss(logits, y) + beta * divergence(logits, v(z).logits, y)

    return perturbed_loss(victim, descended, _unit(awp=awp))


@defense(
    title="MART",
    summary="Trains on PGD images with a boosted loss; misclassified clean images weigh more.",
    source="Wang et al., ICLR 2020, equation 11",
    version=1,
    kind="training",
    tasks=("single_label",),
    positive=("eps", "steps", "rel_stepsize", "beta"),
    training={"attack": "pgd_last"},
)
def mart(
    victim: Victim,
    x: Images,
    y: Truth,
    *,
    loss: Loss,
    attack: Attack,
    eps: float = 4 / 255,
    steps: int = 10,
    rel_stepsize: float = 0.25,
    norm: Norm = "linf",
    beta: float = 5.0,
    awp: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the boosted loss on adversarial examples plus beta times a weighted divergence.

    Args:
        victim: the victim, in train mode.
        x: images of a batch.
        y: truth of the images, one label per image.
        loss: the loss of the recipe, a function of logits and truth.
        attack: the attack that finds the adversarial examples; a recipe gives its registry name.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        beta: weight of the divergence (lambda in the paper), > 0.
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed_loss`; 0 = off.

    Source: Wang et al., ICLR 2020, equation 11; lambda 5 (section 4). The cross-entropy in its
        first term is the `loss` of the recipe, so that classes are balanced as in every other
        recipe. Unlabelled images do not count.
    """
    z = craft(
        victim,
        x,
        y,
        lambda o: loss(o, y),
        attack,
        Ball(norm, eps),
        steps=steps,
        total_step=steps * rel_stepsize,
    )
    labelled = (y >= 0).float()
    truth = y.clamp_min(0)

    def descended(v: Victim) -> Tensor:
        clean_logits, logits = v(x).logits, v(z).logits
        losses = margin_term(logits, truth) + beta * label_divergence(
            clean_logits, logits
        ) * wrong_probability(clean_logits, truth)
        return loss(logits, y) + (losses * labelled).sum() / labelled.sum().clamp_min(1)

    return perturbed_loss(victim, descended, _unit(awp=awp))


@defense(
    title="Universal AT",
    summary="Trains on images with a universal perturbation, fitted again every few epochs.",
    source="Hirano, Minagi, Takemoto, BMC Medical Imaging 21:9, 2021, methods",
    version=1,
    kind="training",
    positive=("eps", "every", "images"),
    training={"attack": "uap_gradient", "every": 2, "images": 256},
)
def universal_at(
    victim: Victim,
    x: Images,
    y: Truth,
    *,
    loss: Loss,
    attack: Attack,
    eps: float = 4 / 255,
    norm: Norm = "linf",
    fraction: float = 0.5,
    awp: float = 0.0,
) -> Float[Tensor, ""]:
    """Return the loss on a batch in which a random part of the images is perturbed universally.

    Args:
        victim: the victim, in train mode.
        x: images of a batch.
        y: truth of the images.
        loss: the loss of the recipe, a function of logits and truth.
        attack: a function that adds the universal perturbation fitted last; a recipe gives the
            registry name of the universal attack.
        eps: radius in [0,1] units, > 0.
        norm: "linf" or "l2".
        fraction: fraction of the images that are perturbed, in [0, 1].
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed_loss`; 0 = off.
        every: epochs from one fit of the perturbation to the next, >= 1; the training loop uses it.
        images: number of training images that the perturbation is fitted on, >= 1; the training
            loop uses it.

    Source: Hirano, Minagi, Takemoto, BMC Medical Imaging 21:9, 2021, methods (from memory):
        perturbations are fitted on half of the training images, added to a random half, and fitted
        again every few epochs.
    Deviation: Only the perturbation fitted last is added.
    """
    z = craft(victim, x, y, lambda o: loss(o, y), attack, Ball(norm, eps))
    perturbed = torch.rand(len(x), device=x.device) < _unit(fraction=fraction)
    z = torch.where(perturbed.view(-1, *[1] * (x.ndim - 1)), z, x)
    return perturbed_loss(victim, lambda v: loss(v(z).logits, y), _unit(awp=awp))


def _unit(**parameter: float) -> float:
    ((name, value),) = parameter.items()
    if not 0 <= value <= 1:
        raise SpecError(f"expected {name} in [0, 1], got {value}")
    return value
