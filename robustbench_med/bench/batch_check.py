"""Batch check: whether the answer to an image depends on the images it is asked with."""

from __future__ import annotations

import torch

from robustbench_med.types import Images, Logits
from robustbench_med.victim import Victim

ALONE = 4  # images asked alone
VOLUMES = 2  # of those that fill the memory a few at a time
APART = 0.02  # of the spread of the logits: rounding in another order moves them by 1e-6 of it


def depends_on_batch(victim: Victim, x: Images, together: Logits) -> float:
    """Return the share of a few images that are answered otherwise alone than among others.

    0 of a victim that answers at random: it differs for another reason.

    Args:
        victim: frozen by the caller.
        x: images.
        together: the logits of the first of them, asked `victim.chunk` at a time.
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
