"""Protocols of patches: a disc pasted on every image, exactly as published, faults included.

They are registered in `protocols.py`, whose rules hold here too: all images are attacked, and
values are in units of [0,1].
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.studies.target import Target
from robustbench_med.types import Images
from robustbench_med.victim import Victim

ROTATION = 22.5  # largest angle to either side, degrees
SHARPNESS = 40  # exponent of the disc's edge

Pattern = Float[Tensor, "1 c h w"]


def adversarial_patch(
    target: Target,
    *,
    n_fit: int,
    lr: float = 1.25,
    epochs: int = 7,
    batch: int = 8,
    scale: float = 0.4,
) -> Images:
    """Paste on each image of one of two classes the disc that was fitted toward the other one.

    Each disc is fitted by gradient descent on the mean cross-entropy of its class, over all fitting
    images and random places, angles and diameters of 10 to 100 % of the image.

    Args:
        target: what is attacked; two classes, images of two axes.
        n_fit: number of fitting images.
        lr: learning rate. The paper's 5 on [-1,1] is a quarter of that on [0,1], because the
            gradient doubles and the range halves.
        epochs: passes over the fitting images.
        batch: images a step; a last batch with fewer is left out.
        scale: diameter of the pasted disc as a fraction of the image.

    Source: Finlayson et al. 2018 (code of sgfin/adversarial-medicine, after Brown et al. 2017). The
        values of the disc are not bounded while it is fitted; those of the image are.
    """
    fitted = target.train(n_fit)
    patches = []
    for label in (0, 1):
        patch = torch.full_like(fitted.x[:1], 0.5)
        goal = torch.full((batch,), label, device=patch.device)
        for _ in range(epochs):
            order = torch.randperm(len(fitted.x), generator=target.rng).to(patch.device)
            for rows in order.split(batch):
                if len(rows) == batch:
                    slope = _slope(target.victim, fitted.x[rows], patch, goal, target.rng)
                    patch = patch - lr * slope
        patches.append(patch.clamp(0, 1))
    return _of_other_class(target, patches, scale)


def natural_patch(target: Target, *, n_fit: int, scale: float = 0.4) -> Images:
    """Paste on each image of one of two classes a disc cut from a training image of the other one.

    It is the image of which the attacked model is most certain. This is the papers' control: a disc
    of the same size that nobody optimised.

    Args:
        target: what is attacked; two classes, images of two axes.
        n_fit: number of training images to choose from.
        scale: diameter of the pasted disc as a fraction of the image.

    Source: Finlayson et al. 2018 (code of sgfin/adversarial-medicine). For dermoscopy its discs are
        lesions cut by hand from such images; here the disc holds the middle of the whole image.
    """
    fitted = target.train(n_fit)
    logits = target.victim.logits(fitted.x)
    sure = logits[:, 1] - logits[:, 0]
    patches = []
    for label, sign in ((0, -1), (1, 1)):
        of_class = (fitted.y == label).nonzero()[:, 0]
        best = of_class[(sign * sure[of_class]).argmax()]
        patches.append(fitted.x[best : best + 1])
    return _of_other_class(target, patches, scale)


def _of_other_class(target: Target, patches: list[Pattern], scale: float) -> Images:
    own = torch.cat(patches)[1 - target.y]
    return pasted(target.x, own, (scale, scale), target.rng)


def _slope(
    victim: Victim, x: Images, patch: Pattern, goal: Int[Tensor, " b"], rng: torch.Generator
) -> Pattern:
    """Return the gradient of the mean cross-entropy of `goal` by the patch."""
    leaf = patch.detach().requires_grad_()
    logits = victim(pasted(x, leaf.expand_as(x), (0.1, 1.0), rng)).logits
    slope: Tensor = torch.autograd.grad(functional.cross_entropy(logits, goal), leaf)[0]
    return slope


def pasted(
    x: Images,
    patches: Float[Tensor, "b c h w"],
    scale: tuple[float, float],
    rng: torch.Generator,
) -> Images:
    """Return images with a disc pasted at a random place and angle, in [0,1].

    Args:
        x: images `(b, c, h, w)`.
        patches: one for each image, of its size; the disc inside it is pasted.
        scale: smallest and largest diameter as a fraction of the image.
        rng: for diameter, angle and place; the whole disc lies inside the image.
    """
    drawn = torch.rand(len(x), 4, generator=rng).to(x)
    size = scale[0] + (scale[1] - scale[0]) * drawn[:, 0]
    angle = math.radians(ROTATION) * (2 * drawn[:, 1] - 1)
    shift = (1 - size[:, None]) * (2 * drawn[:, 2:] - 1)
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    turn = turn / size[:, None, None]
    where = torch.cat([turn, -turn @ shift[:, :, None]], 2)
    grid = functional.affine_grid(where, list(x.shape), align_corners=False)
    disc = _disc(x).expand(len(x), 1, *x.shape[2:])
    layers = functional.grid_sample(torch.cat([patches, disc], 1), grid, align_corners=False)
    inside = layers[:, -1:]
    return (x * (1 - inside) + layers[:, :-1] * inside).clamp(0, 1)


def _disc(x: Images) -> Float[Tensor, "1 1 h w"]:
    """Return 1 inside the disc that touches the edges of an image, falling steeply to 0."""
    down, right = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    radius = down[:, None] ** 2 + right[None] ** 2
    return (1 - (radius**SHARPNESS).clamp(max=1))[None, None]
