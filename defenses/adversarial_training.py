"""Adversarial training: the loss to descend on one batch, by PGD-AT, TRADES, MART and others.

`robustbench_med/training/fit.py` calls every function with the same arguments: the victim in train
mode (normal gradients), the batch, the loss of the recipe, of logits and truth, and an `attack` to
craft with. It returns a scalar to descend.
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

from .crafting import Attack, crafted
from .losses import boost, divergence, doubt, label_divergence
from .weight_perturbation import perturbed

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
    """Return the loss on images crafted to raise it.

    Args:
        victim: in train mode.
        x: images of a batch.
        y: their truth.
        loss: of logits and truth.
        attack: registry name of the attack that finds the adversarial examples; here its function.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed`; 0 = off.

    Source: Madry et al., ICLR 2018, equation 2.1; 7 steps of 2/255 at 8/255, section 5. All steps
        are taken, on the loss, by every image, even if it is already misclassified.
    """
    z = crafted(
        victim,
        x,
        y,
        lambda o: loss(o, y),
        attack,
        Ball(norm, eps),
        steps=steps,
        total_step=steps * rel_stepsize,
    )
    return perturbed(victim, lambda v: loss(v(z).logits, y), _unit(awp=awp))


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
    """Return the loss on images crafted in one long step from a uniformly random start.

    Args:
        victim: in train mode.
        x: images of a batch.
        y: their truth.
        loss: of logits and truth.
        attack: registry name of the attack that finds the adversarial examples; here its function.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed`; 0 = off.

    Source: Wong, Rice, Kolter, ICLR 2020, algorithm 3, alpha = 1.25 eps (section 4.1). Its
        catastrophic overfitting shows in the robust validation: give the recipe a patience.
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
    """Return the clean loss plus beta times the divergence of the answers in the ball.

    Args:
        victim: in train mode.
        x: images of a batch.
        y: their truth.
        loss: of logits and truth.
        attack: registry name of the attack that finds the adversarial examples; here its function.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        beta: weight of the divergence (1 / lambda of the paper), > 0.
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed`; 0 = off.

    Source: Zhang et al., ICML 2019, equation 5 and algorithm 1, with KL(clean || perturbed) as in
        the authors' code; 10 steps, beta 6. Deviation: the ascent starts uniformly in the ball, not
        from a normal draw of deviation 0.001.
    """
    with frozen(victim.module), torch.no_grad():
        clean = victim(x).logits
    z = crafted(
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

    return perturbed(victim, descended, _unit(awp=awp))


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
    """Return the boosted loss on crafted images plus beta times a weighted divergence.

    Args:
        victim: in train mode.
        x: images of a batch.
        y: their truth, one label an image.
        loss: of logits and truth.
        attack: registry name of the attack that finds the adversarial examples; here its function.
        eps: radius in [0,1] units, > 0.
        steps: gradient steps of the attack, >= 1.
        rel_stepsize: length of one step in units of eps, > 0.
        norm: "linf" or "l2".
        beta: weight of the divergence (lambda of the paper), > 0.
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed`; 0 = off.

    Source: Wang et al., ICLR 2020, equation 11; lambda 5 (section 4). The cross-entropy of its
        first term is the recipe's own `loss`, so that classes are balanced as in every other
        recipe; an unlabelled image does not count.
    """
    z = crafted(
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
        each = boost(logits, truth) + beta * label_divergence(clean_logits, logits) * doubt(
            clean_logits, truth
        )
        return loss(logits, y) + (each * labelled).sum() / labelled.sum().clamp_min(1)

    return perturbed(victim, descended, _unit(awp=awp))


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
    """Return the loss on a batch of which a drawn share carries a universal perturbation.

    Args:
        victim: in train mode.
        x: images of a batch.
        y: their truth.
        loss: of logits and truth.
        attack: registry name of the universal attack; here a function that adds the perturbation
            fitted last.
        eps: radius in [0,1] units, > 0.
        norm: "linf" or "l2".
        fraction: part of the images that carry the perturbation, in [0, 1].
        awp: size of the adversarial weight perturbation, in [0, 1], see
            `weight_perturbation.perturbed`; 0 = off.
        every: epochs from one fit of the perturbation to the next, >= 1; the training loop's.
        images: training images that it is fitted on, >= 1; the training loop's.

    Source: Hirano, Minagi, Takemoto, BMC Medical Imaging 21:9, 2021, methods (from memory):
        perturbations fitted on half of the training images, added to a random half, refitted
        after every few epochs. Deviation: only the last perturbation fitted is added.
    """
    z = crafted(victim, x, y, lambda o: loss(o, y), attack, Ball(norm, eps))
    carries = torch.rand(len(x), device=x.device) < _unit(fraction=fraction)
    z = torch.where(carries.view(-1, *[1] * (x.ndim - 1)), z, x)
    return perturbed(victim, lambda v: loss(v(z).logits, y), _unit(awp=awp))


def _unit(**parameter: float) -> float:
    ((name, value),) = parameter.items()
    if not 0 <= value <= 1:
        raise SpecError(f"expected {name} in [0, 1], got {value}")
    return value
