"""Certificates: what a defense proves about the clean images, as entries of a record."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.bench.record import Certificate, MaskCertificate
from robustbench_med.bench.setup import AttackSetup
from robustbench_med.defense import Certified, CertifiedMasks
from robustbench_med.metrics.certified import certified_dice, certified_share
from robustbench_med.metrics.segmentation import overlap, score_masks
from robustbench_med.stats import intervals
from robustbench_med.stats.patients import resamples
from robustbench_med.stored_images import joined
from robustbench_med.types import images_at_once

CERTIFIED_DICE = "certified_dice"  # the column of the samples table
_RADII = 16  # radii above 0 of the certified curve, evenly spaced up to the largest radius


def certificate(setup: AttackSetup) -> Certificate | None:
    """Return the certified accuracy at each radius; None if the defense proves nothing."""
    if not isinstance(setup.certified, Certified):
        return None
    radius, patients = setup.certified.radius.cpu().numpy(), setup.batch.patients
    right = (setup.certified.label == setup.batch.y).cpu().numpy()
    radii = np.linspace(0.0, max(float(radius.max(initial=0.0)), 1e-6), _RADII + 1)
    correct = [
        intervals.cluster_mean((right & (radius >= r)).astype(float), patients) for r in radii
    ]
    abstained = (setup.certified.label < 0).cpu().numpy()
    return Certificate(
        radii=tuple(radii.tolist()),
        correct=tuple(correct),
        abstained=intervals.cluster_mean(abstained.astype(float), patients),
    )


def lowest_dice(setup: AttackSetup) -> NDArray[np.float64]:
    """Return the certified Dice of each image and region, `(n, r)`."""
    assert isinstance(setup.certified, CertifiedMasks)  # noqa: S101 - the callers ask first
    return _against_truth(setup, setup.certified.label, certified_dice)


def mean_dice(
    setup: AttackSetup, answer: Tensor, rows: Tensor | None = None
) -> NDArray[np.float64]:
    """Return the Dice of masks `(n, *s)`, as the mean over regions, `(n,)`.

    Args:
        setup: the setup, with the truth of all images.
        answer: masks of class ids.
        rows: the images that the masks belong to; None = all.
    """
    per_region = _against_truth(setup, answer, overlap, rows)
    return np.asarray(per_region.mean(1), dtype=np.float64)


def mask_certificate(setup: AttackSetup, seed: int) -> MaskCertificate | None:
    """Return the certified Dice and the share of certified pixels; None without such a proof."""
    if not isinstance(setup.certified, CertifiedMasks):
        return None
    regions = setup.data.card.parts
    weights = resamples(len(setup.batch), setup.batch.patients, seed=seed)
    dice = score_masks({"dice": lowest_dice(setup)}, regions=regions, weights=weights)
    shares = _against_truth(setup, setup.certified.label, certified_share)
    certified, inside = (
        score_masks({"share": column[:, None]}, regions={"all": ()}, weights=weights)["share"]
        for column in shares.T
    )
    return MaskCertificate(
        radius=setup.certified.radius,
        alpha=setup.certified.alpha,
        dice=dice["dice"],
        regions={region: dice[f"dice[{region}]"] for region in regions},
        certified=certified,
        inside=inside,
    )


def _against_truth(
    setup: AttackSetup,
    masks: Tensor,
    metric: Callable[..., NDArray[np.float64]],
    rows: Tensor | None = None,
) -> NDArray[np.float64]:
    """Return a metric of masks against the truth of their images, computed a few at a time."""
    y, regions = setup.batch.y, setup.data.card.parts
    rows = torch.arange(len(y), device=y.device) if rows is None else rows
    size = tuple(y.shape[1:])
    pieces = []
    for part in torch.arange(len(rows), device=y.device).split(images_at_once(size)):
        truth = y[rows[part]]
        mask = joined([masks[part]], size)  # images may keep their own sizes
        pieces.append(metric(mask.cpu().numpy(), truth.cpu().numpy(), regions=regions))
    return np.concatenate(pieces)
