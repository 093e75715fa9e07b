"""LID: how many dimensions an image's neighbourhood has in each layer, against a clean bank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.errors import DataError
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim

from .examples import bank_and_rows, draw_training_images, examples
from .features import Features, read_all, reader
from .fits import logistic

_SAME = 1e-5  # of the farthest distance: nearer than this is the image itself


@defense(
    title="LID",
    summary="Rejects images by the local intrinsic dimensionality of their features in all layers.",
    source="Ma et al., ICLR 2018, eq. 4 and algorithm 1",
    version=2,
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "k", "fit"),
)
def lid(
    victim: Victim, *, fitting: Fitting, fpr: float = 0.05, k: int = 20, fit: int = 512
) -> Defended:
    """Return the victim behind a regression on the local intrinsic dimensionality of its layers.

    Args:
        victim: undefended.
        fitting: half of its training images is the bank, half is compared with it: clean, noisy and
            attacked. No patient is in both halves.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        k: number of nearest neighbours, >= 1.
        fit: training images used at most, both halves together, >= 1.

    Raises:
        DataError: too few training images for k neighbours, or of a class.

    Source: Ma et al., "Characterizing adversarial subspaces using local intrinsic dimensionality",
        ICLR 2018, eq. 4 and algorithm 1; logistic regression over layers, section 4. Deviation: the
        neighbours come from a held-out clean bank, not from the batch, which shows a detector the
        clean twin of what it judges; one of the bank that is the image itself is no neighbour.
    """
    read = reader(victim)
    batch, y = draw_training_images(fitting, fit, wanted_by="lid")
    bank_batch, rows, _ = bank_and_rows(batch, y, fitting)
    if len(bank_batch) <= k:
        raise DataError(
            f"lid: expected more than k = {k} training images in the bank, got {len(bank_batch)}: "
            "give more images, or a smaller k"
        )
    bank = read_all(victim, read, bank_batch.x)
    dimensions = [
        torch.stack([dimension(a, b, k=k) for a, b in zip(layers, bank, strict=True)], 1)
        for layers in examples(victim, read, rows, fitting)
    ]
    odds = logistic(dimensions[:2], dimensions[2])

    def score(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        each = [dimension(a, b, k=k) for a, b in zip(read(x), bank, strict=True)]
        return odds(torch.stack(each, 1))

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def dimension(features: Features, bank: Float[Tensor, "n d"], *, k: int) -> PerSample:
    """Return the maximum-likelihood estimate of the local intrinsic dimensionality, `(b,)`.

    Minus the inverse of the mean of log(r_i / r_k) over the k nearest of the bank; finite always.
    An image of the bank at no distance is the image itself and left out.
    """
    r = torch.cdist(features, bank, compute_mode="donot_use_mm_for_euclid_dist")
    same = r <= _SAME * r.detach().amax(1, keepdim=True)
    near = r.masked_fill(same, torch.inf).topk(k, largest=False, sorted=True).values
    there = torch.isfinite(near)
    far = near.masked_fill(~there, 0.0).amax(1, keepdim=True).clamp_min(1e-12)
    logs = torch.where(there, near, far).clamp_min(1e-12).div(far).log()
    count = there.sum(1).clamp_min(1).to(logs)
    return -1 / (logs.sum(1) / count).clamp_max(-1e-3)
