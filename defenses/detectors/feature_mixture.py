"""Feature mixture: reject images whose features are unlikely under mixtures of clean features."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim

from .examples import draw_training_images, predicted_class
from .features import Features, read_all, reader
from .fits import numbers


class Mixture(NamedTuple):
    """Gaussian mixtures of one layer, one per class, with one variance per feature."""

    weights: Float[Tensor, "k m"]
    means: Float[Tensor, "k m d"]
    variances: Float[Tensor, "k m d"]


@defense(
    title="Feature mixture",
    summary="Rejects images whose features are unlikely under mixtures fitted to clean images.",
    source="Yao, He, Lin, Ma, Zheng, Zhou, MICCAI 2021, section 2 (HFC)",
    version=1,
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "components", "fit"),
)
def feature_mixture(
    victim: Victim, *, fitting: Fitting, fpr: float = 0.05, components: int = 2, fit: int = 512
) -> Defended:
    """Return the victim behind mixtures of the clean features of all layers.

    With `knowledge = "feature_mixture"`, the attacker evades this detector instead of the deployed
    one, which need not be known. This is the attack of the hierarchical feature constraint.

    Args:
        victim: the undefended victim.
        fitting: the mixtures are fitted on its training images.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        components: number of Gaussians per class and layer, >= 1.
        fit: largest number of training images, >= 1.

    Raises:
        DataError: a class has too few training images.

    Source: Yao, He, Lin, Ma, Zheng, Zhou, "A hierarchical feature constraint to camouflage medical
        adversarial attacks", MICCAI 2021, section 2: log-likelihood under Gaussian mixtures of the
        target class's clean features, summed over layers (cited from memory).
    Deviations: The class is the one that the victim predicts for the candidate, so that untargeted
        goals work too. The log-likelihood of a layer is divided by its number of features;
        otherwise the widest layer would decide alone. Covariances are diagonal.
    """
    read = reader(victim)
    batch, y = draw_training_images(fitting, fit, detector="feature_mixture")
    features = read_all(victim, read, batch.x)
    layers = [
        mixtures(layer_features, y, components=components, seed=fitting.seed)
        for layer_features in features
    ]

    def score(x: Images, logits: Logits) -> PerSample:
        predicted = predicted_class(logits, fitting)
        likelihoods = [
            log_likelihood(layer_features, predicted, layer) / layer_features.shape[1]
            for layer_features, layer in zip(read(x), layers, strict=True)
        ]
        return -torch.stack(likelihoods).sum(0)

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def mixtures(features: Features, y: Int[Tensor, " b"], *, components: int, seed: int) -> Mixture:
    """Fit the mixtures of the classes 0..K-1 on one layer."""
    from sklearn.mixture import GaussianMixture

    floor = 1e-3 * float(features.var(0).mean()) + 1e-12
    fits: list[tuple[Tensor, ...]] = []
    for k in range(int(y.max()) + 1):
        rows = numbers(features[y == k])
        fitted = GaussianMixture(
            min(components, len(rows)), covariance_type="diag", reg_covar=floor, random_state=seed
        ).fit(rows)
        values = (fitted.weights_, fitted.means_, fitted.covariances_)
        fits.append(tuple(features.new_tensor(value) for value in values))
    return Mixture(*(torch.stack(values) for values in zip(*fits, strict=True)))


def log_likelihood(features: Features, y: Int[Tensor, " b"], layer: Mixture) -> PerSample:
    """Return the log-likelihood under the mixture of each image's class `y`, in nats."""
    weights, means, variances = (value[y] for value in layer)
    distance = ((features[:, None] - means).square() / variances).sum(2)
    norm = variances.log().sum(2) + features.shape[1] * math.log(2 * math.pi)
    return (weights.log() - (distance + norm) / 2).logsumexp(1)
