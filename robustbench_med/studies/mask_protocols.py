"""Protocols on masks: attacks on segmenters exactly as published, faults included.

They are registered in `protocols.py`, whose rules hold here too: all steps on all images, the last
image counts, and radii are in units of [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import two_sided
from robustbench_med.objectives.segmentation import classes
from robustbench_med.studies.target import Target, loss_gradient
from robustbench_med.types import Images, Logits
from robustbench_med.victim import Victim

MasksOf = Int[Tensor, "b *s"]


def mask_pgd(target: Target, *, eps: float, step_size: float, steps: int = 20) -> Images:
    """Signed gradient steps inside the L-infinity ball, on the mean cross-entropy of the pixels.

    The cross-entropy of the masks that the attacker wants falls; without a goal, that of the truth
    rises.

    Args:
        target: what is attacked.
        eps: radius.
        step_size: length of a step.
        steps: number of steps.

    Source: Bortsova, Dubost, Hogeweg, Katramados, de Bruijne 2021 (arXiv:2104.00139), abstract:
        projected gradient descent. Radius and steps of the paper are not known.
    """
    x, z = target.x, target.x
    direction = -1 if target.aimed else 1
    for _ in range(steps):
        z = z + direction * step_size * mask_gradient(target.victim, z, target.y).sign()
        z = (x + (z - x).clamp(-eps, eps)).clamp(0, 1)
    return z


def mask_gradient(victim: Victim, z: Images, y: MasksOf) -> Images:
    """Return the gradient of each image's mean cross-entropy over its labelled pixels."""
    return loss_gradient(victim, z, y, _pixel_cross_entropy)


def _pixel_cross_entropy(logits: Logits, y: MasksOf) -> Tensor:
    losses = functional.cross_entropy(two_sided(logits), y, ignore_index=-1, reduction="none")
    counted = (y >= 0).flatten(1).sum(1).clamp_min(1)
    return (losses.flatten(1).sum(1) / counted).sum()


def dag(
    target: Target,
    *,
    wanted: str = "dilate",
    label: int = 1,
    other: int = 2,
    by: int = 6,
    gamma: float = 0.07,
    steps: int = 20,
    batch: int = 4,
    each: bool = False,
    all_pixels: bool = False,
    keep: bool = False,
) -> Images:
    """Dense adversary generation as the authors of Paschali et al. run it; it has no ball.

    A step goes along the gradient of the adversarial class's logit minus that of the truth, summed
    over the active pairs of a pixel and a class. A pair is active if the class is no background, is
    the truth and is still predicted; and, for the background, if it is neither the truth nor
    predicted. So the true class's logit falls, that of the background rises where it is wanted, and
    that of any other adversarial class never rises.

    Args:
        target: what is attacked; its masks are the truth.
        wanted: the adversarial masks: "dilate": class `label` grows over its neighbours; "swap":
            classes `label` and `other` change places.
        label: class id.
        other: class id; unused to dilate.
        by: how often class `label` is dilated, in the four directions.
        gamma: L2 norm of a step.
        steps: largest number of steps.
        batch: images in one call; the paper's number is not known.
        each: divide the gradient of each image by its own L2 norm; as published, all are divided by
            the norm of the whole batch, so that an image's step depends on those beside it.
        all_pixels: sum over every pixel that shall change and is still predicted as the truth, the
            background included, with both logits, as Xie et al. do.
        keep: return the images when nothing is active any more; as published nothing is returned,
            which counts as the clean images here.

    Raises:
        SpecError: there are no such adversarial masks.

    Source: Xie et al., ICCV 2017, algorithm 1, in the form of IFL-CAMP/
        dense_adversarial_generation_pytorch, attack/dag.py and utils/util.py. There, class 13 is
        dilated, or two classes drawn at random are swapped.
    """
    y = target.y
    if wanted not in ("dilate", "swap"):
        raise SpecError(f"expected wanted 'dilate' or 'swap', got {wanted!r}")
    goal = dilated(y, label, by) if wanted == "dilate" else swapped(y, label, other)
    rules = _Rules(gamma, steps, each, all_pixels, keep)
    parts = zip(target.x.split(batch), y.split(batch), goal.split(batch), strict=True)
    return torch.cat([_dag(target.victim, *part, rules) for part in parts])


class _Rules(NamedTuple):
    """The parameters of `dag` that one batch needs."""

    gamma: float
    steps: int
    each: bool
    all_pixels: bool
    keep: bool


def _dag(victim: Victim, x: Images, y: MasksOf, goal: MasksOf, rules: _Rules) -> Images:
    """Return the attacked images of one batch."""
    z = x
    weights = _pixel_weights if rules.all_pixels else _pair_weights
    for _ in range(rules.steps):
        images = z.detach().requires_grad_()
        logits = two_sided(victim(images).logits)
        active, weight = weights(logits, y, goal)
        if not active:
            return z if rules.keep else x
        g = torch.autograd.grad((weight * logits).sum(), images)[0]
        if not bool(g.any()):
            break
        size = g.flatten(1).norm(dim=1).view(-1, *[1] * (g.ndim - 1)) if rules.each else g.norm()
        z = (z + rules.gamma * g / size.clamp_min(torch.finfo(g.dtype).tiny)).clamp(0, 1)
    return z


def _pair_weights(logits: Logits, y: MasksOf, goal: MasksOf) -> tuple[bool, Logits]:
    """Return whether any pair of pixel and class is active, and the weight of each logit."""
    truth, wanted, predicted = (
        _one_hot(masks, logits.shape[1]) for masks in (y, goal, classes(logits))
    )
    background = torch.zeros_like(truth)
    background[:, 0] = 1
    active = (predicted == truth) & (truth != background)
    return bool(active.any()), (wanted - truth) * active


def _pixel_weights(logits: Logits, y: MasksOf, goal: MasksOf) -> tuple[bool, Logits]:
    """Return whether any pixel is active, and the weight of each logit."""
    k = logits.shape[1]
    active = (goal != y) & (classes(logits) == y)
    return bool(active.any()), (_one_hot(goal, k) - _one_hot(y, k)) * active[:, None]


def _one_hot(masks: MasksOf, k: int) -> Float[Tensor, "b k *s"]:
    return functional.one_hot(masks.clamp_min(0).long(), k).movedim(-1, 1).float()


def dilated(y: MasksOf, label: int, by: int) -> MasksOf:
    """Return masks in which a class has grown by so many pixels in the four directions."""
    organ = (y == label)[:, None].float()
    cross = organ.new_tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    for _ in range(by):
        organ = (functional.conv2d(organ, cross, padding=1) > 0).float()
    return torch.where((organ[:, 0] > 0) & (y >= 0), label, y)


def swapped(y: MasksOf, label: int, other: int) -> MasksOf:
    """Return masks in which two classes have changed places."""
    return torch.where(y == label, other, torch.where(y == other, label, y))


def universal_masks(
    target: Target,
    *,
    eps: float,
    step_size: float,
    passes: int = 5,
    n_fit: int = 100,
    batch: int = 10,
    channels: Sequence[int] | None = None,
) -> Images:
    """Add one perturbation to all images, fitted by signed steps on the mean loss of a batch.

    Args:
        target: what is attacked; the masks are the truth.
        eps: L-infinity radius.
        step_size: length of a step.
        passes: passes over the fitting images, in random order.
        n_fit: number of fitting images.
        batch: images per step.
        channels: which channels may change; None = all.

    Source: Shafahi et al., AAAI 2020, algorithm 1, the plainest published fit, with the mean
        cross-entropy of the pixels. That of Cheng and Ji 2020 is not known.
    """
    victim, fitting = target.victim, target.train(n_fit)
    free = _free(target.x, channels)
    noise = torch.zeros_like(free)
    for _ in range(passes):
        order = torch.randperm(len(fitting.x), generator=target.rng)
        for rows in order.split(batch):
            z = (fitting.x[rows] + noise).clamp(0, 1)
            g = mask_gradient(victim, z, fitting.y[rows]).mean(0, keepdim=True)
            noise = (noise + step_size * free * g.sign()).clamp(-eps, eps)
    return (target.x + noise).clamp(0, 1)


def random_masks(target: Target, *, eps: float, channels: Sequence[int] | None = None) -> Images:
    """Add one pattern of random signs to all images: the control of `universal_masks`.

    Args:
        target: what is attacked.
        eps: every value changes by this much.
        channels: which channels change; None = all.
    """
    free = _free(target.x, channels)
    drawn = torch.randn(free.shape, generator=target.rng).to(free)
    return (target.x + eps * free * drawn.sign()).clamp(0, 1)


def _free(x: Images, channels: Sequence[int] | None) -> Float[Tensor, "1 c *s"]:
    """Return one image that is 1 in the channels that may change, and 0 elsewhere."""
    free = torch.zeros_like(x[:1])
    free[:, range(x.shape[1]) if channels is None else list(channels)] = 1
    return free
