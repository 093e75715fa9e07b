"""Denoised smoothing: a small denoiser in front of a victim that was not trained on noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med.declarations import defense
from robustbench_med.defense import Certified, CertifiedMasks, Defended, Fitting
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import two_sided
from robustbench_med.rng import Draws, seeded
from robustbench_med.stored_images import by_size, select_images
from robustbench_med.types import AnyImages, Images
from robustbench_med.victim import Transform, Victim, frozen

from .mask_smoothing import mask_smoothing
from .smoothing import smoothing
from .wrap import check_above, check_whole, wrapped

_BATCH = 16
_RATE = 2e-3


@defense(
    title="Denoised smoothing",
    summary="Removes the noise of smoothing by a small network before an unchanged victim sees it.",
    source="Salman, Sun, Yang, Kapoor, Kolter, NeurIPS 2020",
    version=1,
    kind="smoothing",
    tasks=("single_label",),
)
def denoised_smoothing(
    victim: Victim,
    *,
    fitting: Fitting,
    sigma: float = 0.25,
    draws: int = 16,
    n: int = 1000,
    alpha: float = 0.001,
    filters: int = 16,
    steps: int = 400,
    stability: float = 0.1,
) -> Defended:
    """Return the victim behind a denoiser, averaged over Gaussian noise; see `smoothing`.

    The denoiser is trained on the training images at hand, without their labels. It belongs to the
    deployed model: attacks and certificates go through it.

    Args:
        victim: the undefended victim, which need not be trained on noise.
        fitting: holds the training images.
        sigma: standard deviation of the noise in [0,1] image units, > 0.
        draws: number of passes whose logits are averaged, >= 1.
        n: number of noisy copies that bound a class's fraction of the votes, >= 1.
        alpha: probability that the certificate of an image is wrong, in (0,1).
        filters: width of the denoiser's first layer, >= 1.
        steps: number of training steps of 16 images, >= 1.
        stability: weight of the cross-entropy with the class that the victim gives the clean image,
            beside the squared error of the image, >= 0.

    Raises:
        SpecError: a parameter is out of range.

    Source: Salman et al., "Denoised smoothing: a provable defense for pretrained classifiers",
        NeurIPS 2020, equations 4 and 5.
    Deviation: The denoiser is a U-Net of three scales with 0.1 million weights, trained on both
        objectives at once; Salman et al. use a DnCNN of 17 layers and one after the other.
    """
    remove = _trained(victim, fitting, sigma, filters, steps, stability)
    return _behind(remove, victim, partial(smoothing, sigma=sigma, draws=draws, n=n, alpha=alpha))


@defense(
    title="Denoised mask smoothing",
    summary="Removes the noise of mask smoothing by a small network before the victim sees it.",
    source="Salman, Sun, Yang, Kapoor, Kolter, NeurIPS 2020; Fischer, Baader, Vechev, ICML 2021",
    version=1,
    kind="smoothing",
    tasks=("segmentation",),
)
def denoised_mask_smoothing(
    victim: Victim,
    *,
    fitting: Fitting,
    sigma: float = 0.25,
    tau: float = 0.75,
    votes: int = 32,
    draws: int = 4,
    n0: int = 10,
    n: int = 100,
    alpha: float = 0.001,
    filters: int = 16,
    steps: int = 400,
    stability: float = 0.1,
) -> Defended:
    """Return the victim behind a denoiser, whose mask is voted on; see `mask_smoothing`.

    Args:
        victim: the undefended victim, which need not be trained on noise.
        fitting: holds the training images, whose masks are not used.
        sigma: standard deviation of the noise in [0,1] image units, > 0.
        tau: a pixel is certified if its class has more than this fraction of all votes, in
            [0.5, 1).
        votes: number of noisy copies that the deployed model votes on, >= 1.
        draws: number of noisy copies whose logits an attacker averages, >= 1.
        n0: number of noisy copies that choose the class of each pixel, >= 1.
        n: number of noisy copies that test it, >= 1.
        alpha: probability that any pixel of an image is certified wrongly, in (0,1).
        filters: width of the denoiser's first layer, >= 1.
        steps: number of training steps of 16 images, >= 1.
        stability: weight of the cross-entropy with the mask that the victim gives the clean image,
            beside the squared error of the image, >= 0.

    Raises:
        SpecError: a parameter is out of range, or `n` is so small that nothing can be certified.

    Source: as `denoised_smoothing` and `mask_smoothing`.
    """
    masks = partial(
        mask_smoothing, sigma=sigma, tau=tau, votes=votes, draws=draws, n0=n0, n=n, alpha=alpha
    )
    masks(victim)  # parameters are refused before anything is trained
    remove = _trained(victim, fitting, sigma, filters, steps, stability)
    return _behind(remove, victim, masks)


class Denoiser(nn.Module):
    """A U-Net of three scales that returns the image without the noise that it estimates.

    Args:
        channels: of the images.
        axes: 2 for images, 3 for volumes.
        filters: width of the first scale; it doubles at each further one.
    """

    def __init__(self, channels: int, axes: int, filters: int) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[axes - 2]
        self.head = conv(channels, filters, 3, padding=1)
        self.down = conv(filters, 2 * filters, 3, stride=2, padding=1)
        self.middle = conv(2 * filters, 2 * filters, 3, padding=1)
        self.lower = conv(2 * filters, 4 * filters, 3, stride=2, padding=1)
        self.bottom = conv(4 * filters, 4 * filters, 3, padding=1)
        self.raised = conv(4 * filters, 2 * filters, 3, padding=1)
        self.up = conv(2 * filters, filters, 3, padding=1)
        self.tail = conv(filters, channels, 3, padding=1)

    def forward(self, x: Images) -> Images:
        """Return `(b, c, *s)` images in [0,1] units; they are not clipped."""
        first = functional.relu(self.head(x))
        second = functional.relu(self.middle(functional.relu(self.down(first))))
        third = functional.relu(self.bottom(functional.relu(self.lower(second))))
        second = functional.relu(second + _larger(self.raised(third), second))
        first = functional.relu(first + _larger(self.up(second), first))
        clean: Tensor = x - self.tail(first)
        return clean


def _larger(small: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(small, size=like.shape[2:], mode="nearest")


def train_denoiser(
    victim: Victim,
    x: AnyImages,
    *,
    seed: int,
    sigma: float,
    filters: int = 16,
    steps: int = 400,
    stability: float = 0.1,
) -> Denoiser:
    """Return a denoiser trained on noisy copies of images; the victim does not change.

    Args:
        victim: the victim whose own answers to clean images the denoised ones should keep.
        x: training images.
        seed: of weights, order and noise.
        sigma: standard deviation of the noise in [0,1] image units.
        filters: width of the first layer.
        steps: number of training steps of 16 images.
        stability: weight of the cross-entropy with the victim's class of the clean image.
    """
    groups = [positions for positions, _ in by_size(torch.arange(len(x)), x)]
    device = select_images(x, groups[0][:1]).device
    with seeded(seed, "denoiser"), torch.enable_grad(), frozen(victim.module):
        network = Denoiser(int(x.shape[1]), len(x.shape) - 2, filters).to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps + 1)
        sizes = torch.tensor([float(len(group)) for group in groups])
        for _ in range(steps):
            group = groups[int(sizes.multinomial(1))]
            rows = group[torch.randperm(len(group))[:_BATCH]]
            clean = select_images(x, rows)[torch.arange(len(rows))]
            denoised = network(clean + sigma * torch.randn_like(clean))
            loss = (denoised - clean).square().mean() / sigma**2
            if stability > 0:
                loss = loss + stability * _disagreement(victim, denoised, clean)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def _disagreement(victim: Victim, denoised: Images, clean: Images) -> Tensor:
    """Return the mean cross-entropy of denoised images with the victim's classes of clean ones."""
    with torch.no_grad():
        called = two_sided(victim(clean).logits).argmax(1)
    return functional.cross_entropy(two_sided(victim(denoised).logits), called)


def _trained(
    victim: Victim, fitting: Fitting, sigma: float, filters: int, steps: int, stability: float
) -> Transform:
    check_above("sigma", sigma)
    check_whole("filters", filters, 1)
    check_whole("steps", steps, 1)
    if not 0 <= stability < float("inf"):
        raise SpecError(f"expected stability >= 0, got {stability}")
    return train_denoiser(
        replace(victim, draws=1),
        fitting.train.x,
        seed=fitting.seed,
        sigma=sigma,
        filters=filters,
        steps=steps,
        stability=stability,
    )


def _behind(remove: Transform, victim: Victim, smooth: Callable[[Victim], Defended]) -> Defended:
    """Return the smoothed victim behind a denoiser; its certificate goes through the denoiser."""
    defended = smooth(wrapped(victim, remove).judge)
    certify = defended.certify

    def certificates(undefended: Victim, images: Images, rng: Draws) -> Certified | CertifiedMasks:
        assert certify is not None  # noqa: S101 - smoothing always has one
        return certify(wrapped(undefended, remove).judge, images, rng)

    return replace(defended, certify=certificates)
