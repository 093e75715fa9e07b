"""Defense: what a wrapped victim consists of, and what a defense may be fitted on."""

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
    """What is proved of each image.

    Attributes:
        label: `(b,)` the class called, -1 where it abstains.
        radius: `(b,)` L2, in [0,1] image units: no image nearer has another class; 0 where it
            abstains.
    """

    label: Int[Tensor, " b"]
    radius: PerSample


@dataclass(frozen=True)
class Defended:
    """A victim behind a defense.

    Attributes:
        judge: what is deployed; it alone decides success.
        guide: the differentiable view that an adaptive attacker climbs; None = the judge itself.
        certify: proves what it can of images, where the defense can; one stream of draws a sample.
            Of the victim that was handed in, at its operating point there.
    """

    judge: Victim
    guide: Victim | None = None
    certify: Callable[[Victim, Images, Draws], Certified] | None = None


@dataclass(frozen=True)
class Fitting:
    """What a defense may be fitted on: never an image of the test split.

    Attributes:
        train: labelled training images, on the victim's device.
        val: labelled validation images: for thresholds, nothing else is fitted on them.
        card: of the data.
        seed: of everything random.
        attacked: returns the images of a batch as a plain attack leaves them, `(b, c, *s)`; for
            detectors that learn from examples. Made on the undefended victim.
    """

    train: Batch
    val: Batch
    card: DatasetCard
    seed: int
    attacked: Callable[[Batch], Images]


def guarded(
    victim: Victim, score: Guard, *, fitting: Fitting, fpr: float, guide: Guard | None = None
) -> Defended:
    """Return the victim with a detector that rejects a share `fpr` of the clean validation images.

    The threshold is the quantile of the scores on validation, and is folded into the suspicion, as
    an operating point is into the logits: rejected where it is above 0, in units of the scores'
    spread on validation.

    Args:
        victim: undefended.
        score: how suspicious images look, higher = more; may be without gradients.
        fitting: holds the validation images.
        fpr: share of them that is rejected, in (0,1).
        guide: a differentiable view of the score, in its units; None = the score itself.
    """
    with torch.no_grad(), frozen(victim.module):
        parts = [part for part in fitting.val.x.split(victim.chunk)]
        scores = torch.cat([score(part, victim(part).logits) for part in parts])
    threshold, spread = threshold_of(scores, fpr=fpr)

    def folded(raw: Guard) -> Guard:
        def suspicion(x: Images, logits: Logits) -> PerSample:
            return (raw(x, logits) - threshold) / spread

        return suspicion

    judge = replace(victim, guard=folded(score))
    return Defended(judge, None if guide is None else replace(victim, guard=folded(guide)))


def threshold_of(scores: Float[Tensor, " n"], *, fpr: float) -> tuple[float, float]:
    """Return the threshold that a share `fpr` of the scores exceeds, at most, and their spread.

    The smallest such score: where scores are tied, fewer are rejected than asked for.

    >>> threshold_of(torch.arange(100.0), fpr=0.05)[0]
    94.0
    """
    ranked = scores.sort().values
    most = int(fpr * len(ranked) + 1e-9)
    threshold = float(ranked[len(ranked) - 1 - most])
    return threshold, max(float(scores.std(correction=0)), 1e-6)
