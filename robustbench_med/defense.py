"""Defense: the victim behind a defense, and the data that a defense may be fitted on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.cards import DatasetCard
from robustbench_med.rng import Draws
from robustbench_med.types import Batch, Images, Logits, PerSample
from robustbench_med.victim import Guard, Victim, frozen

ABSTAIN = -1


class Certified(NamedTuple):
    """The certificate of each image.

    Attributes:
        label: `(b,)` the predicted class, -1 where the classifier abstains.
        radius: `(b,)` L2, in [0,1] image units: all images within it have the same class; 0 where
            the classifier abstains.
    """

    label: Int[Tensor, " b"]
    radius: PerSample


class CertifiedMasks(NamedTuple):
    """The certificate of each mask.

    Attributes:
        label: `(b, *s)` the class of each pixel, -1 where the certificate abstains.
        radius: L2, in [0,1] image units: all images within it have these classes.
        alpha: probability that a class of an image is certified wrongly anywhere.
    """

    label: Int[Tensor, "b *s"]
    radius: float
    alpha: float


@dataclass(frozen=True)
class Defended:
    """A victim behind a defense.

    Attributes:
        judge: the deployed model; it alone decides success.
        guide: the differentiable model whose gradients an adaptive attacker uses; None = the judge.
        certify: returns certificates of images, if the defense can; one stream of draws per sample.
            Its argument is the undefended victim at the operating point.
    """

    judge: Victim
    guide: Victim | None = None
    certify: Callable[[Victim, Images, Draws], Certified | CertifiedMasks] | None = None


@dataclass(frozen=True)
class Fitting:
    """The data that a defense may be fitted on: never an image of the test split.

    Attributes:
        train: labelled training images, on the victim's device.
        val: labelled validation images, only for thresholds.
        card: the card of the data.
        seed: seed of everything random.
        attacked: returns the images of a batch after a plain attack on the undefended victim,
            `(b, c, *s)`; for detectors that learn from examples.
    """

    train: Batch
    val: Batch
    card: DatasetCard
    seed: int
    attacked: Callable[[Batch], Images]


def guarded(
    victim: Victim, score: Guard, *, fitting: Fitting, fpr: float, guide: Guard | None = None
) -> Defended:
    """Return the victim with a detector that rejects a fraction `fpr` of clean validation images.

    The threshold is the quantile of the scores on validation. It is folded into the suspicion, as
    an operating point is into the logits: images are rejected above 0, in units of the standard
    deviation of the scores on validation.

    Args:
        victim: the undefended victim.
        score: returns how suspicious images are, higher = more; may have no gradients.
        fitting: holds the validation images.
        fpr: the fraction of them that is rejected, in (0,1).
        guide: a differentiable version of the score, in its units; None = the score itself.
    """
    with torch.no_grad(), frozen(victim.module):
        x = fitting.val.x
        scores = torch.cat(
            victim.in_chunks(lambda rows: score(x[rows], victim(x[rows]).logits), len(x))
        )
    threshold, deviation = threshold_of(scores, fpr=fpr)

    def folded(raw: Guard) -> Guard:
        def suspicion(x: Images, logits: Logits) -> PerSample:
            return (raw(x, logits) - threshold) / deviation

        return suspicion

    judge = replace(victim, guard=folded(score))
    return Defended(judge, None if guide is None else replace(victim, guard=folded(guide)))


def threshold_of(scores: Float[Tensor, " n"], *, fpr: float) -> tuple[float, float]:
    """Return the threshold that at most a fraction `fpr` of scores exceeds, and their deviation.

    The threshold is the smallest such score; where scores are tied, fewer are rejected.

    >>> threshold_of(torch.arange(100.0), fpr=0.05)[0]
    94.0
    """
    ranked = scores.sort().values
    most = int(fpr * len(ranked) + 1e-9)
    threshold = float(ranked[len(ranked) - 1 - most])
    return threshold, max(float(scores.std(correction=0)), 1e-6)
