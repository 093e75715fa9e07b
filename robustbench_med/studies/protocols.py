"""Protocols: attacks exactly as published, faults included.

They serve `as_published` measurements alone; the attacks of this bench are in `attacks/`. They run
all their steps on all images, also on those that are wrong when clean, and return the last image,
as the papers' code does. Radii are in units of [0,1]: half of what a paper states that scales its
inputs to [-1,1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med import spec
from robustbench_med.errors import SpecError, UnknownNameError
from robustbench_med.objectives.classification import log_odds_against
from robustbench_med.studies.mask_protocols import dag, mask_pgd, random_masks, universal_masks
from robustbench_med.studies.patch_protocols import adversarial_patch, natural_patch
from robustbench_med.studies.target import Loss, Target, loss_gradient
from robustbench_med.types import Images, Logits

VERSION = 2  # raised when a protocol changes its results


def run_protocol(text: str, target: Target) -> Images:
    """Return the images attacked by the protocol that a spec names; they may leave [0,1].

    Raises:
        UnknownNameError: there is no such protocol.
        SpecError: the text is no spec, or a parameter is wrong.
    """
    name, parameters = spec.parse(text)
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, list(PROTOCOLS))
    try:
        return PROTOCOLS[name](target, **parameters)
    except TypeError as error:
        raise SpecError(f"{text}: {error}") from None


def _cross_entropy(logits: Logits, y: Int[Tensor, " b"]) -> Tensor:
    return functional.cross_entropy(logits, y, reduction="sum")


def _log_odds(logits: Logits, y: Int[Tensor, " b"]) -> Tensor:
    """Return a loss whose gradient has the sign of `_cross_entropy`'s, and does not underflow."""
    return log_odds_against(logits, y).sum()


def _margin(logits: Logits, y: Int[Tensor, " b"]) -> Tensor:
    """Return the highest other logit less that of class `y`.

    For two classes the sign of its gradient is that of `_cross_entropy`'s, also where a probability
    of 1 leaves that 0.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return (others - logits.gather(1, y[:, None])[:, 0]).sum()


LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "margin": _margin}


def fgsm(target: Target, *, eps: float) -> Images:
    """One step along the sign of the gradient of the true class's cross-entropy.

    Args:
        target: what is attacked.
        eps: radius.

    Source: Goodfellow, Shlens, Szegedy, ICLR 2015, section 4.
    """
    step = eps * loss_gradient(target.victim, target.x, target.y, _cross_entropy).sign()
    return (target.x + step).clamp(0, 1)


def pgd(
    target: Target,
    *,
    eps: float,
    step_size: float,
    steps: int = 20,
    flipped: bool = False,
    random_start: bool = False,
    loss: str = "cross_entropy",
) -> Images:
    """Signed gradient steps inside the L-infinity ball; the last image counts.

    From the clean image this is BIM, from a random start PGD, and with the margin as its loss the
    attack of Carlini and Wagner in L-infinity.

    Args:
        target: what is attacked.
        eps: radius.
        step_size: length of a step.
        steps: number of steps.
        flipped: lower the loss of the other one of two classes, in place of raising that of the
            true class.
        random_start: start at a point drawn uniformly in the ball, not at the clean image.
        loss: "cross_entropy" or "margin", the highest other logit less that of the class.

    Source: Finlayson et al. 2018 (code of sgfin/adversarial-medicine: `flipped`); Bortsova et al.
        2021 (code of Gerda92/adversarial_transfer_factors); Madry et al., ICLR 2018, section 2.1
        (`random_start`) and 5 (the margin), as Ma et al. 2021 use them, from memory.
    """
    if loss not in LOSSES:
        raise SpecError(f"expected loss {' or '.join(LOSSES)}, got {loss!r}")
    x, z = target.x, target.x
    if random_start:
        drawn = torch.rand(x.shape, generator=target.rng).to(x)
        z = (x + eps * (2 * drawn - 1)).clamp(0, 1)
    aim, direction = (1 - target.y, -1) if flipped else (target.y, 1)
    for _ in range(steps):
        z = z + direction * step_size * loss_gradient(target.victim, z, aim, LOSSES[loss]).sign()
        z = (x + (z - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def i_fgsm(
    target: Target, *, aim: int, step_size: float, steps: int, eps: float | None = None
) -> Images:
    """Signed gradient steps that lower the cross-entropy of one class; the last image counts.

    Images of that class are left as they are.

    Args:
        target: what is attacked.
        aim: class id that the other images shall get.
        step_size: length of a step.
        steps: number of steps.
        eps: radius; None = the valid range [0,1] alone bounds the change.

    Source: Shah et al. 2018, 450 steps of 0.001 toward the normal class.
    Deviations: The gradient is that of the log-odds, whose sign is that of the cross-entropy and
        which does not underflow once the class is certain. What could be read states neither the
        scale of the step nor whether a ball or the valid range bounds the change: here [0,1] is the
        scale and the bound.
    """
    away = target.y != aim
    x = z = target.x[away]
    goal = torch.full_like(target.y[away], aim)
    for _ in range(steps if len(x) else 0):
        z = z - step_size * loss_gradient(target.victim, z, goal, _log_odds).sign()
        z = (z if eps is None else x + (z - x).clamp(-eps, eps)).clamp(0, 1)
    result = target.x.clone()
    result[away] = z
    return result


def shuffled(target: Target, *, attack: str, **parameters: Any) -> Images:  # noqa: ANN401
    """Return the images with the pixels of another protocol's perturbation in random order.

    Args:
        target: what is attacked.
        attack: name of that protocol.
        parameters: its parameters.

    Source: Bortsova et al. 2021, the control. The order is one for each image and the same for all
        its channels.
    """
    x = target.x
    change = (run_protocol(str(spec.Spec(attack, parameters)), target) - x).flatten(2)
    order = torch.rand(len(x), change.shape[2], generator=target.rng).argsort(1).to(x.device)
    moved = change.gather(2, order[:, None].expand_as(change))
    return (x + moved.view_as(x)).clamp(0, 1)


def mean_norm(x: Images, norm: str, *, first_channel: bool = False) -> float:
    """Return the mean norm of images on the scale of 0 to 255 divided by 255.

    Args:
        x: images `(b, c, *s)`.
        norm: "l2" or "linf".
        first_channel: the norm of channel 0 alone. In L2 that is sqrt(3) too low for a grey image
            stored in three channels (Hirano, Minagi, Takemoto 2021, code).
    """
    values = (x[:, :1] if first_channel else x).flatten(1)
    each = values.norm(dim=1) if norm == "l2" else values.abs().amax(1)
    return float(each.mean())


def universal(
    target: Target,
    *,
    zeta: float,
    norm: str = "linf",
    inner_eps: float = 0.0024,
    max_iter: int = 15,
    n_fit: int = 100,
    delta: float = 1e-6,
    aim: int | None = None,
    first_channel: bool = False,
    crossing: bool = True,
    clip: bool = False,
) -> Images:
    """Add one perturbation to all images; by default nothing keeps the sum inside [0,1].

    In every pass over the fitting images, in random order, each image that is not fooled yet is
    moved by one signed gradient step. The perturbation takes the step over only if that step alone
    fools the image, and is then projected on the ball.

    Args:
        target: what is attacked.
        zeta: radius as a ratio of the mean norm of the fitting images.
        norm: "linf" or "l2".
        inner_eps: length of the inner step, on the inputs of the paper's network.
        max_iter: largest number of passes.
        n_fit: number of fitting images.
        delta: it stops when at most this share of the fitting images is not fooled.
        aim: class id that all images shall get; None = any but that of the clean image.
        first_channel: whether the mean norm is that of channel 0 alone.
        crossing: False takes every step over, also one that does not fool the image by itself.
        clip: True keeps the sums in [0,1], while fitting and after.

    Source: Moosavi-Dezfooli et al., CVPR 2017, algorithm 1, with FGSM inside, as Hirano, Koga,
        Takemoto 2020 (code of hkthirano/UAP-COVID-Net) and Hirano, Minagi, Takemoto 2021 (code of
        hkthirano/MedicalAI-UAP) run it. Which images count as fooled, and which steps are taken
        over, is read in ART's UniversalPerturbation and TargetedUniversalPerturbation, which their
        code calls.
    Deviation: It also stops after a pass in which no step was taken over; all later ones would be
        the same.
    """
    victim, batch = target.victim, target.train(n_fit)
    eps = zeta * mean_norm(batch.x, norm, first_channel=first_channel)

    def shown(images: Images) -> Images:
        return images.clamp(0, 1) if clip else images

    def fools(logits: Logits, label: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
        return (logits.argmax(1) == label) == (aim is not None)

    goal = victim.logits(batch.x).argmax(1) if aim is None else torch.full_like(batch.y, aim)
    step_size = inner_eps if aim is None else -inner_eps
    noise = torch.zeros_like(batch.x[:1])
    for _ in range(max_iter):
        moved, start, size = False, 0, 1
        order = torch.randperm(len(batch.x), generator=target.rng).to(goal.device)
        while start < len(order):
            # images before the first that moves it meet the same perturbation: one forward pass
            rows = order[start : start + size]
            fooled = fools(victim.logits(shown(batch.x[rows] + noise)), goal[rows])
            places = (~fooled).nonzero()[:, 0][: None if crossing else 1]
            x, label = batch.x[rows[places]] + noise, goal[rows[places]]
            slope = loss_gradient(victim, shown(x), label, _cross_entropy) if len(x) else x
            steps = step_size * slope.sign()
            if crossing and len(x):
                crosses = fools(victim.logits(shown(x + steps)), label)
                places, steps = places[crosses], steps[crosses]
            if len(places):
                noise, moved = project(noise + steps[:1], eps, norm), True
                size = int(places[0]) + 1
                start += size
            else:
                start += len(rows)
                size *= 2
        fooled = fools(victim.logits(shown(batch.x + noise)), goal)
        if not moved or float(fooled.float().mean()) >= 1 - delta:
            break
    return shown(target.x + noise)


def random_direction(
    target: Target,
    *,
    zeta: float,
    norm: str = "linf",
    n_fit: int = 100,
    first_channel: bool = False,
    corner: bool = False,
) -> Images:
    """Add one random perturbation of the radius of `universal` to all images: the papers' control.

    Args:
        target: what is attacked.
        zeta: radius as a ratio of the mean norm of the fitting images.
        norm: "linf": every value is drawn uniformly up to the radius, so that its L2 norm is about
            1 / sqrt(3) of the largest one in the ball; "l2": a point drawn uniformly on the sphere.
        n_fit: number of fitting images.
        first_channel: as `universal`.
        corner: for "linf": every value is +-radius, as a fitted perturbation may be.

    Source: Hirano, Koga, Takemoto 2020; Hirano, Minagi, Takemoto 2021; the draw is that of ART's
        random_sphere, which their code calls.
    Deviation: In L2 that function draws inside the ball, for images within 0.1 % of its radius.
    """
    batch = target.train(n_fit)
    eps = zeta * mean_norm(batch.x, norm, first_channel=first_channel)
    shape = target.x[:1].shape
    if norm == "linf":
        drawn = (2 * torch.rand(shape, generator=target.rng) - 1).to(target.x)
        return target.x + eps * (drawn.sign() if corner else drawn)
    drawn = torch.randn(shape, generator=target.rng).to(target.x)
    size = float(drawn.norm())
    return target.x + eps / size * drawn


def project(noise: Float[Tensor, "1 c *s"], eps: float, norm: str) -> Float[Tensor, "1 c *s"]:
    """Return the nearest perturbation in the ball; it has one radius for the whole image."""
    if norm == "linf":
        return noise.clamp(-eps, eps)
    size = float(noise.norm())
    return noise * min(1.0, eps / size) if size > 0 and math.isfinite(size) else noise


PROTOCOLS: dict[str, Callable[..., Images]] = {
    protocol.__name__: protocol
    for protocol in (
        fgsm,
        pgd,
        i_fgsm,
        shuffled,
        universal,
        random_direction,
        mask_pgd,
        dag,
        universal_masks,
        random_masks,
        adversarial_patch,
        natural_patch,
    )
}
