"""The training loss and the validation Dice of segmenters."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from robustbench_med.cards import DatasetCard
from robustbench_med.objectives.classification import two_sided
from robustbench_med.objectives.segmentation import Damage, confusion, dice
from robustbench_med.types import Batch, Logits, Output
from robustbench_med.victim import Victim

SMOOTH = 1.0  # pixels added to both counts of the soft Dice, which defines it for absent classes


def loss(logits: Logits, y: Int[Tensor, "b *s"]) -> Float[Tensor, ""]:
    """Return cross-entropy plus one minus the soft Dice, without ignored pixels.

    Args:
        logits: `(b, k, *s)`; a single logit l stands for the pair (0, l).
        y: class ids; -1 = ignored.

    Source: Isensee et al., Nature Methods 18:203 (2021), methods: the sum with equal weights, and
        the Dice of the whole batch. Here the Dice is the mean over all classes except the
        background.
    """
    logits = two_sided(logits).flatten(2)
    y = y.flatten(1)
    counted = (y >= 0).to(logits)[:, None]
    log_p = logits.log_softmax(1)
    truth = functional.one_hot(y.clamp_min(0), logits.shape[1]).movedim(-1, 1) * counted
    p = log_p.exp() * counted
    cross = -(truth * log_p).sum() / counted.sum().clamp_min(1)
    both, sizes = (p * truth).sum((0, 2)), (p + truth).sum((0, 2))
    soft = (2 * both + SMOOTH) / (sizes + SMOOTH)
    return cross + 1 - soft[1:].mean()


def mean_dice(victim: Victim, batch: Batch, card: DatasetCard) -> float:
    """Return the mean over images of the mean Dice over the card's regions."""
    objective = Damage(card)
    dices = [
        dice(confusion(counts), counts.regions).mean(1)
        for x, y in zip(batch.x.split(victim.chunk), batch.y.split(victim.chunk), strict=True)
        for counts in [objective.pixels(Output(victim.logits(x)), y.to(x.device))]
    ]
    return float(torch.cat(dices).mean())
