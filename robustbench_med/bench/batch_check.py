"""Batch check: whether the output for an image depends on the other images in its batch."""

from __future__ import annotations

import torch

from robustbench_med.types import AnyImages, Logits
from robustbench_med.victim import Victim

ALONE = 4  # images that are also passed alone
VOLUMES = 2  # the same for images so large that a batch holds only a few
APART = 0.02  # outputs differ above this share of the logits' spread; rounding moves them by 1e-6


def depends_on_batch(victim: Victim, x: AnyImages, together: Logits) -> float:
    """Return the share of a few images whose output alone differs from that in a batch.

    The share is 0 for a random victim, whose outputs differ for another reason.

    Args:
        victim: the victim, frozen by the caller.
        x: images.
        together: the logits of the first images, computed `victim.chunk` at a time.
    """
    n = len(together)
    if n < 2 or victim.chunk < 2:
        return 0.0
    count = ALONE if victim.chunk > ALONE else VOLUMES
    rows = sorted({round(i) for i in torch.linspace(0, n - 1, count).tolist()})
    alone, again = (torch.cat([victim.logits(x[row : row + 1]) for row in rows]) for _ in range(2))
    spread = max(float(together.max() - together.min()), float(alone.max() - alone.min()), 1e-6)
    if float((alone - again).abs().max()) > 1e-4 * spread:
        return 0.0
    apart = (alone - together[rows]).flatten(1).abs().amax(1)
    return float((apart > APART * spread).float().mean())
