"""Mahalanobis: reject images whose features are far from the nearest class, layer by layer."""

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
from .fits import fit_logistic, numbers


class Gaussians(NamedTuple):
    """Gaussians of one layer, one per class, with a common covariance.

    Attributes:
        means: the mean of each class.
        root: the Cholesky factor of the precision, which is root @ root.T.
    """

    means: Float[Tensor, "k d"]
    root: Float[Tensor, "d d"]


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
        victim: the undefended victim.
        fitting: the Gaussians are fitted on half of its training images, the regression on the
            other half: clean, noisy and attacked. No patient is in both halves.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        fit: largest number of training images, both halves together, >= 1.

    Raises:
        DataError: a class has too few training images.

    Source: Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution
        samples and adversarial attacks", NeurIPS 2018, eq. 1, 2 and algorithm 1 (feature ensemble).
    Deviations: There is no input preprocessing (the paper's magnitude 0), because it would cost a
        backward pass. The covariance is shrunk (Ledoit and Wolf), because some layers have more
        features than there are images. Gaussians and regression are fitted on different patients.
        Findings have no class, so all images form one class.
    """
    read = reader(victim)
    batch, y = draw_training_images(fitting, fit, detector="mahalanobis")
    bank, rows, classes = bank_and_rows(batch, y, fitting)
    layers = [gaussians(features, classes) for features in read_all(victim, read, bank.x)]
    distances = [_distances(features, layers) for features in examples(victim, read, rows, fitting)]
    odds = fit_logistic(distances[:2], distances[2])

    def score(x: Images, logits: Logits) -> PerSample:  # noqa: ARG001 - a guard's signature
        return odds(_distances(read(x), layers))

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def gaussians(features: Features, y: Int[Tensor, " b"]) -> Gaussians:
    """Fit the Gaussians of the classes that occur."""
    from sklearn.covariance import LedoitWolf

    classes, member = y.unique(return_inverse=True)
    means = torch.stack([features[member == k].mean(0) for k in range(len(classes))])
    fitted = LedoitWolf(assume_centered=True).fit(numbers(features - means[member]))
    precision = torch.from_numpy(fitted.precision_)
    root = torch.linalg.cholesky((precision + precision.T) / 2)
    return Gaussians(means, root.to(features))


def distance(features: Features, layer: Gaussians) -> PerSample:
    """Return the squared Mahalanobis distance to the nearest class, `(b,)`."""
    whitened = (features[:, None] - layer.means) @ layer.root
    return whitened.square().sum(2).amin(1)


def _distances(features: list[Features], layers: list[Gaussians]) -> Float[Tensor, "b l"]:
    return torch.stack([distance(a, b) for a, b in zip(features, layers, strict=True)], 1)
