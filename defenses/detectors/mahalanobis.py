"""Mahalanobis: how far an image's features are from the nearest class, layer by layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim

from .examples import bank_and_rows, draw_training_images, examples
from .features import Features, read_all, reader
from .fits import logistic, numbers


class Gaussians(NamedTuple):
    """Gaussians of one layer, one a class, that share a covariance."""

    means: Float[Tensor, "k d"]
    root: Float[Tensor, "d d"]  # of the precision: root @ root.T


@defense(
    title="Mahalanobis",
    summary="Rejects images whose features are far from the nearest class in all layers.",
    source="Lee, Lee, Lee, Shin, NeurIPS 2018, eq. 1 and 2",
    version=2,
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "fit"),
)
def mahalanobis(victim: Victim, *, fitting: Fitting, fpr: float = 0.05, fit: int = 512) -> Defended:
    """Return the victim behind a regression on the Mahalanobis distances of its layers.

    Args:
        victim: undefended.
        fitting: half of its training images gives the Gaussians, half the regression: clean, noisy
            and attacked. No patient is in both halves.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        fit: training images used at most, both halves together, >= 1.

    Raises:
        DataError: too few training images of a class.

    Source: Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution
        samples and adversarial attacks", NeurIPS 2018, eq. 1, 2 and algorithm 1 (feature ensemble).
        Deviations: no input preprocessing (their magnitude 0), which would cost a backward pass;
        the covariance is shrunk (Ledoit and Wolf), as some layers have more features than there are
        images; Gaussians and regression are fitted on different patients. Findings have no class:
        all images are one.
    """
    read = reader(victim)
    batch, y = draw_training_images(fitting, fit, wanted_by="mahalanobis")
    bank, rows, owner = bank_and_rows(batch, y, fitting)
    layers = [gaussians(features, owner) for features in read_all(victim, read, bank.x)]
    distances = [_distances(each, layers) for each in examples(victim, read, rows, fitting)]
    odds = logistic(distances[:2], distances[2])

    def score(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        return odds(_distances(read(x), layers))

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def gaussians(features: Features, y: Int[Tensor, " b"]) -> Gaussians:
    """Return the Gaussians of the classes that occur."""
    from sklearn.covariance import LedoitWolf

    classes, member = y.unique(return_inverse=True)
    means = torch.stack([features[member == k].mean(0) for k in range(len(classes))])
    fitted = LedoitWolf(assume_centered=True).fit(numbers(features - means[member]))
    precision = torch.from_numpy(fitted.precision_)
    root = torch.linalg.cholesky((precision + precision.T) / 2)
    return Gaussians(means, root.to(features))


def distance(features: Features, layer: Gaussians) -> PerSample:
    """Return the squared Mahalanobis distance to the nearest class, `(b,)`."""
    apart = (features[:, None] - layer.means) @ layer.root
    return apart.square().sum(2).amin(1)


def _distances(features: list[Features], layers: list[Gaussians]) -> Float[Tensor, "b l"]:
    return torch.stack([distance(a, b) for a, b in zip(features, layers, strict=True)], 1)
