"""LID: reject by the local dimension of an image's neighbourhood in a clean bank, in each layer."""

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
from .fits import fit_logistic

_SAME = 1e-5  # below this fraction of the farthest distance, a neighbour is the image itself


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
        victim: the undefended victim.
        fitting: half of its training images form the bank; the other half is compared with it:
            clean, noisy and attacked. No patient is in both halves.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        k: number of nearest neighbours, >= 1.
        fit: largest number of training images, both halves together, >= 1.

    Raises:
        DataError: there are too few training images for k neighbours, or in a class.

    Source: Ma et al., "Characterizing adversarial subspaces using local intrinsic dimensionality",
        ICLR 2018, eq. 4 and algorithm 1; logistic regression over layers, section 4.
    Deviations: The neighbours come from a held-out clean bank. The paper takes them from the batch,
        which shows the detector the clean version of the image that it judges. If the bank contains
        the image itself, that is not a neighbour.
    """
    read = reader(victim)
    batch, y = draw_training_images(fitting, fit, detector="lid")
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
    odds = fit_logistic(dimensions[:2], dimensions[2])

    def score(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        dimensions_by_layer = [dimension(a, b, k=k) for a, b in zip(read(x), bank, strict=True)]
        return odds(torch.stack(dimensions_by_layer, 1))

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def dimension(features: Features, bank: Float[Tensor, "n d"], *, k: int) -> PerSample:
    """Return the maximum-likelihood estimate of the local intrinsic dimensionality, `(b,)`.

    This is minus the inverse of the mean of log(r_i / r_k) over the k nearest images of the bank.
    It is always finite. An image of the bank at distance 0 is the image itself and is left out.
    """
    r = torch.cdist(features, bank, compute_mode="donot_use_mm_for_euclid_dist")
    same = r <= _SAME * r.detach().amax(1, keepdim=True)
    near = r.masked_fill(same, torch.inf).topk(k, largest=False, sorted=True).values
    finite = torch.isfinite(near)
    far = near.masked_fill(~finite, 0.0).amax(1, keepdim=True).clamp_min(1e-12)
    logs = torch.where(finite, near, far).clamp_min(1e-12).div(far).log()
    count = finite.sum(1).clamp_min(1).to(logs)
    return -1 / (logs.sum(1) / count).clamp_max(-1e-3)
