"""Randomised smoothing: average over Gaussian noise, and certify the vote under that noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import ABSTAIN, Certified, Defended
from robustbench_med.errors import SpecError
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Logits, Truth
from robustbench_med.victim import Victim, frozen

from .wrap import check_above, check_whole, wrapped

_COPIES_AT_ONCE = 8  # noisy copies drawn at a time; fixed, so that results do not depend on batches


@defense(
    title="Randomised smoothing",
    summary="Averages logits over Gaussian noise; the vote under that noise can be certified.",
    source="Cohen, Rosenfeld, Kolter, ICML 2019",
    version=1,
    aliases=("randomised_smoothing", "randomized_smoothing"),
    kind="smoothing",
    tasks=("single_label",),
)
def smoothing(
    victim: Victim, *, sigma: float = 0.25, draws: int = 16, n: int = 1000, alpha: float = 0.001
) -> Defended:
    """Return the victim averaged over Gaussian noise on the image.

    The deployed model is the mean of the logits. It is attacked and judged in expectation, with
    fresh noise in every pass. The certificate of `certify` is about the vote of the undefended
    victim under noise, not about this mean.

    Args:
        victim: the undefended victim, best trained on such noise (`gaussian_noise`).
        sigma: standard deviation of the noise in [0,1] image units, > 0; noisy images are not
            clipped to [0,1].
        draws: number of passes whose logits are averaged, >= 1.
        n: number of noisy copies that bound a class's fraction of the votes in the certificate,
            >= 1; see `certify`.
        alpha: probability that the certificate of an image is wrong, in (0,1).

    Returns:
        The smoothed victim. The guide is the judge, and its gradient is that of the mean.

    Raises:
        SpecError: a parameter is out of range.

    Source: Cohen, Rosenfeld, Kolter, ICML 2019, section 3; the attack in expectation is SmoothAdv
        (Salman et al., NeurIPS 2019, section 2.2).
    Deviation: The logits are averaged. Cohen et al. take the vote, which has no gradient, and
        Salman et al. the mean of the probabilities.
    """
    check_above("sigma", sigma)
    check_whole("draws", draws, 1)
    _check(sigma=sigma, alpha=alpha, n=n)

    def noisy(x: Images) -> Images:
        return x + sigma * torch.randn_like(x)

    def certificates(undefended: Victim, images: Images, rng: Draws) -> Certified:
        return certify(undefended, images, rng=rng, sigma=sigma, n=n, alpha=alpha)

    return replace(wrapped(victim, noisy, draws=draws), certify=certificates)


@defense(
    title="Gaussian noise training",
    summary="Trains on images with Gaussian noise, which smoothing needs.",
    source="Cohen, Rosenfeld, Kolter, ICML 2019, section 3.3",
    version=1,
    kind="training",
)
def gaussian_noise(
    victim: Victim,
    x: Images,
    y: Truth,
    *,
    loss: Callable[[Logits, Truth], Tensor],
    attack: Callable[..., Images] | None = None,
    sigma: float = 0.25,
) -> Tensor:
    """Return the loss on images with Gaussian noise, to train a victim that will be smoothed.

    Args:
        victim: the victim, in train mode.
        x: images.
        y: truth of the images.
        loss: the loss of the recipe, a function of logits and truth.
        attack: unused; every training defense has the same arguments.
        sigma: standard deviation of the noise in [0,1] image units, > 0; the same as for smoothing.

    Raises:
        SpecError: sigma is not positive.

    Source: Cohen, Rosenfeld, Kolter, ICML 2019, section 3.3.
    """
    check_above("sigma", sigma)
    return loss(victim(x + sigma * torch.randn_like(x)).logits, y)


def certify(
    victim: Victim,
    x: Images,
    *,
    rng: Draws,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
) -> Certified:
    """Return the class of the vote under noise, and the radius in which it cannot change.

    Args:
        victim: the undefended victim at its operating point, with one label per image.
        x: images.
        rng: one random stream per sample.
        sigma: standard deviation of the noise in [0,1] image units, > 0.
        n0: number of noisy copies that choose the class, >= 1.
        n: number of noisy copies that bound the fraction of its votes, >= 1.
        alpha: probability that the certificate of an image is wrong, in (0,1).

    Raises:
        SpecError: a parameter is out of range, or the victim predicts masks.
        InvalidOutputError: a logit is NaN or infinite.

    Source: Cohen, Rosenfeld, Kolter, ICML 2019, section 3.2.2, CERTIFY; the bound is that of
        Clopper and Pearson 1934, as computed by statsmodels.
    """
    from scipy.stats import norm
    from statsmodels.stats.proportion import proportion_confint

    _check(sigma=sigma, alpha=alpha, n0=n0, n=n)
    label = votes(victim, x, rng=rng.fork("choose"), sigma=sigma, n=n0).argmax(1)
    counts = votes(victim, x, rng=rng.fork("bound"), sigma=sigma, n=n)
    successes = np.take_along_axis(counts, label[:, None], 1)[:, 0]
    # the one-sided bound at alpha is the lower end of the two-sided interval at 2 alpha
    lower_bound = proportion_confint(successes, n, alpha=2 * alpha, method="beta")[0]
    certain = lower_bound > 0.5
    radius = np.where(certain, sigma * norm.ppf(np.where(certain, lower_bound, 0.5)), 0.0)
    return Certified(
        torch.from_numpy(np.where(certain, label, ABSTAIN)).to(x.device),
        torch.from_numpy(radius).to(x),
    )


def predict(
    victim: Victim, x: Images, *, rng: Draws, sigma: float, n: int = 1000, alpha: float = 0.001
) -> Int[Tensor, " b"]:
    """Return the class of the vote under noise, `(b,)`; -1 where it is too close to call.

    Args:
        victim: the undefended victim at its operating point, with one label per image.
        x: images.
        rng: one random stream per sample.
        sigma: standard deviation of the noise in [0,1] image units, > 0.
        n: number of noisy copies, >= 1.
        alpha: probability that a returned class is not that of the vote over all noise, in (0,1).

    Raises:
        SpecError: a parameter is out of range, or the victim predicts masks.
        InvalidOutputError: a logit is NaN or infinite.

    Source: Cohen, Rosenfeld, Kolter, ICML 2019, section 3.2.1, PREDICT (two-sided binomial test of
        the two leading classes; Hung and Fithian 2019).
    """
    from scipy.stats import binom

    _check(sigma=sigma, alpha=alpha, n=n)
    counts = votes(victim, x, rng=rng, sigma=sigma, n=n)
    second, first = np.sort(counts, 1)[:, -2:].T
    p = np.minimum(1.0, 2 * binom.sf(first - 1, first + second, 0.5))
    return torch.from_numpy(np.where(p <= alpha, counts.argmax(1), ABSTAIN)).to(x.device)


def votes(victim: Victim, x: Images, *, rng: Draws, sigma: float, n: int) -> NDArray[np.int64]:
    """Return how often each class is predicted for `n` noisy copies of each image, `(b, k)`."""
    totals: list[Tensor] = []
    rows = torch.arange(len(x), device=x.device)
    with frozen(victim.module):
        for chunk in rows.split(max(1, victim.chunk // _COPIES_AT_ONCE)):
            draws, clean = rng.select(chunk), x[chunk][:, None]
            total: Tensor | int = 0
            for start in range(0, n, _COPIES_AT_ONCE):
                noise = draws.fork(start).normal(_COPIES_AT_ONCE, *x.shape[1:])
                noisy = clean + sigma * noise[:, : n - start]
                predicted = _one_hot(victim.logits(noisy.flatten(0, 1)))
                total = total + predicted.view(*noisy.shape[:2], -1).sum(1)
            totals.append(torch.as_tensor(total))
    counted: NDArray[np.int64] = torch.cat(totals).cpu().numpy()
    return counted


def _one_hot(logits: Tensor) -> Int[Tensor, "b k"]:
    """Return 1 for the predicted class of each image, 0 for the others."""
    if logits.ndim != 2:
        raise SpecError("expected one label per image for smoothing, got masks")
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])


def certified_accuracy(
    certified: Certified, y: Int[Tensor, " b"], radii: list[float]
) -> Float[Tensor, " r"]:
    """Return the fraction of labelled images certified as correct at each radius; NaN if none.

    >>> certified = Certified(torch.tensor([1, -1, 0]), torch.tensor([0.5, 0.0, 0.2]))
    >>> certified_accuracy(certified, torch.tensor([1, 1, 1]), [0.0, 0.5, 1.0]).tolist()
    [0.3333333432674408, 0.3333333432674408, 0.0]
    """
    labelled = y >= 0
    right = (certified.label == y)[labelled]
    reached = certified.radius[labelled, None] >= torch.as_tensor(radii).to(certified.radius)
    return (reached & right[:, None]).float().mean(0)


def _check(*, sigma: float, alpha: float, **counts: int) -> None:
    check_above("sigma", sigma)
    if not 0 < alpha < 1:
        raise SpecError(f"expected alpha in (0,1), got {alpha}")
    for name, value in counts.items():
        check_whole(name, value, 1)
