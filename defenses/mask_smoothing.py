"""Smoothing for masks: every pixel is voted on under Gaussian noise, and the mask is certified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int, Int16
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import ABSTAIN, CertifiedMasks, Defended
from robustbench_med.errors import SpecError
from robustbench_med.objectives.decide import answer_of
from robustbench_med.rng import Draws
from robustbench_med.types import Images
from robustbench_med.victim import Victim, frozen

from .wrap import check_above, check_whole, wrapped


@defense(
    title="Mask smoothing",
    summary="Votes on every pixel under Gaussian noise, and certifies the mask against L2 changes.",
    source="Fischer, Baader, Vechev, ICML 2021 (SegCertify)",
    version=1,
    aliases=("seg_certify", "segcertify"),
    kind="smoothing",
    tasks=("segmentation",),
)
def mask_smoothing(
    victim: Victim,
    *,
    sigma: float = 0.25,
    tau: float = 0.75,
    votes: int = 32,
    draws: int = 4,
    n0: int = 10,
    n: int = 100,
    alpha: float = 0.001,
) -> Defended:
    """Return the victim whose mask is voted on, pixel by pixel, under Gaussian noise.

    The deployed model, which judges attacks, is the vote. It has no gradient: an attacker climbs
    the mean of the logits under the same noise.

    Args:
        victim: the undefended victim, best trained on such noise or behind a denoiser.
        sigma: standard deviation of the noise in [0,1] image units, > 0; noisy images are not
            clipped to [0,1].
        tau: a pixel is certified if its class has more than this fraction of all votes, in
            [0.5, 1); the radius is sigma times the normal quantile of tau.
        votes: number of noisy copies that the deployed model votes on, >= 1. The certificate is
            of the vote over all noise, which few copies may contradict at the edge of the radius.
        draws: number of noisy copies whose logits an attacker averages, >= 1.
        n0: number of noisy copies that choose the class of each pixel in the certificate, >= 1.
        n: number of noisy copies that test it, >= 1.
        alpha: probability that any pixel of an image is certified wrongly, in (0,1).

    Returns:
        The voting victim, the guide for attackers, and the certificate of `certify_masks`.

    Raises:
        SpecError: a parameter is out of range, or `n` is so small that nothing can be certified.

    Source: Fischer, Baader, Vechev, "Scalable certified segmentation via randomized smoothing",
        ICML 2021; the attack in expectation is SmoothAdv (Salman et al., NeurIPS 2019, section
        2.2).
    Deviation: The guide averages logits, Salman et al. probabilities.
    """
    check_whole("votes", votes, 1)
    check_whole("draws", draws, 1)
    _check(sigma=sigma, tau=tau, n0=n0, n=n, alpha=alpha)
    _check_enough(n, pixels=math.prod(victim.contract.size), tau=tau, alpha=alpha)

    def noisy(x: Images) -> Images:
        return x + sigma * torch.randn_like(x)

    def certificates(undefended: Victim, images: Images, rng: Draws) -> CertifiedMasks:
        return certify_masks(
            undefended, images, rng=rng, sigma=sigma, tau=tau, n0=n0, n=n, alpha=alpha
        )

    judge, guide = (wrapped(victim, noisy, draws=count).judge for count in (votes, draws))
    return Defended(replace(judge, vote=True), guide, certificates)


def certify_masks(
    victim: Victim,
    x: Images,
    *,
    rng: Draws,
    sigma: float,
    tau: float = 0.75,
    n0: int = 10,
    n: int = 100,
    alpha: float = 0.001,
) -> CertifiedMasks:
    """Return the class of each pixel that no change within the radius can alter.

    With probability 1 - alpha over the noise, this holds for all certified pixels of an image
    together: the vote over all noise has their class for every image within the L2 radius.

    Args:
        victim: the undefended victim; it predicts masks.
        x: images.
        rng: one random stream per sample.
        sigma: standard deviation of the noise in [0,1] image units, > 0.
        tau: the fraction of the votes that is tested, in [0.5, 1).
        n0: number of noisy copies that choose the class, >= 1.
        n: number of noisy copies that test it, >= 1.
        alpha: probability that any pixel of an image is certified wrongly, in (0,1).

    Raises:
        SpecError: a parameter is out of range, the victim predicts no masks, or not even `n` equal
            votes certify a pixel.
        InvalidOutputError: a logit is NaN or infinite.

    Source: Fischer, Baader, Vechev, ICML 2021, algorithm 2, SegCertify: a binomial test of every
        pixel, corrected by Holm over the pixels of the image.
    """
    from scipy.stats import norm

    _check(sigma=sigma, tau=tau, n0=n0, n=n, alpha=alpha)
    _check_enough(n, pixels=math.prod(x.shape[2:]), tau=tau, alpha=alpha)
    labels = []
    rows = torch.arange(len(x), device=x.device)
    with frozen(victim.module):
        for chunk in rows.split(max(1, victim.chunk)):
            streams, clean = rng.select(chunk), x[chunk]
            label = _leading(victim, clean, rng=streams.fork("choose"), sigma=sigma, n=n0)
            counts = torch.zeros_like(label, dtype=torch.int32)
            for voted in _voted(victim, clean, rng=streams.fork("bound"), sigma=sigma, n=n):
                counts += voted == label
            certain = certain_pixels(counts.cpu().numpy(), n=n, tau=tau, alpha=alpha)
            labels.append(torch.where(torch.from_numpy(certain).to(x.device), label, ABSTAIN))
    return CertifiedMasks(torch.cat(labels), float(sigma * norm.ppf(tau)), alpha)


def p_values(n: int, tau: float) -> Float64[np.ndarray, " m"]:
    """Return the p value of each number of votes 0..n against "at most `tau` of all votes".

    >>> p_values(2, 0.5).tolist()
    [1.0, 0.75, 0.25]
    """
    from scipy.stats import binom

    p: NDArray[np.float64] = binom.sf(np.arange(n + 1) - 1, n, tau)
    return p


def certain_pixels(
    counts: NDArray[np.int32], *, n: int, tau: float, alpha: float
) -> NDArray[np.bool_]:
    """Return the pixels whose class has more than `tau` of all votes, by Holm's step-down.

    Pixels of equal counts have equal p values and stand or fall together, so the steps are over the
    n + 1 possible counts instead of the pixels.

    Args:
        counts: `(b, *s)` votes for the tested class of each pixel, out of `n`.
        n: number of votes.
        tau: the fraction that is tested.
        alpha: family-wise error over the pixels of an image.
    """
    p = p_values(n, tau)
    least = np.full(len(counts), n + 1)  # the lowest count that is certified
    for i, image in enumerate(counts.reshape(len(counts), -1)):
        pixels_of = np.bincount(image, minlength=n + 1)
        left = image.size  # pixels that are not yet certified
        for count in range(n, -1, -1):
            if pixels_of[count] == 0:
                continue
            if p[count] > alpha / left:
                break
            least[i] = count
            left -= int(pixels_of[count])
    certain: NDArray[np.bool_] = counts >= least.reshape(-1, *[1] * (counts.ndim - 1))
    return certain


def _leading(
    victim: Victim, x: Images, *, rng: Draws, sigma: float, n: int
) -> Int16[Tensor, "b *s"]:
    """Return the class that most of `n` noisy copies give each pixel; the first on a tie."""
    counts: list[Tensor] = []
    for voted in _voted(victim, x, rng=rng, sigma=sigma, n=n):
        while len(counts) <= int(voted.max()):
            counts.append(torch.zeros_like(voted, dtype=torch.int32))
        for label, count in enumerate(counts):
            count += voted == label
    return torch.stack(counts).argmax(0).short()


def _voted(
    victim: Victim, x: Images, *, rng: Draws, sigma: float, n: int
) -> Iterator[Int[Tensor, "b *s"]]:
    """Yield the masks of `n` noisy copies, one copy of each image at a time."""
    for copy in range(n):
        logits = victim.logits(x + sigma * rng.fork(copy).normal(*x.shape[1:]))
        if logits.ndim != x.ndim:
            raise SpecError("expected masks for mask_smoothing, got one label per image")
        yield answer_of(logits)


def _check(*, sigma: float, tau: float, n0: int, n: int, alpha: float) -> None:
    check_above("sigma", sigma)
    if not 0.5 <= tau < 1:
        raise SpecError(f"expected tau in [0.5, 1), got {tau}")
    if not 0 < alpha < 1:
        raise SpecError(f"expected alpha in (0,1), got {alpha}")
    check_whole("n0", n0, 1)
    check_whole("n", n, 1)


def _check_enough(n: int, *, pixels: int, tau: float, alpha: float) -> None:
    """Raise SpecError if not even `n` equal votes certify a pixel."""
    needed = math.ceil((math.log(alpha) - math.log(pixels)) / math.log(tau))
    if n < needed:
        raise SpecError(
            f"expected n >= {needed}, got {n}: with fewer votes no pixel of an image of {pixels} "
            f"pixels can be certified at tau {tau} and alpha {alpha}"
        )
