"""Kernel density: reject images whose penultimate features are rare in their predicted class."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustbench_med.declarations import defense
from robustbench_med.defense import Defended, Fitting, guarded
from robustbench_med.errors import SpecError
from robustbench_med.types import Images, Logits, PerSample
from robustbench_med.victim import Victim

from .examples import draw_training_images, predicted_class
from .features import Features, read_all, reader
from .fits import numbers, squared

_GRID = np.geomspace(0.25, 4.0, 9)  # bandwidths to try, in nearest-neighbour distances


@defense(
    title="Kernel density",
    summary="Rejects images whose penultimate features are rare in their predicted class.",
    source="Feinman, Curtin, Shintre, Gardner, 2017, section 4.1",
    version=1,
    aliases=("kde", "kd"),
    kind="detector",
    tasks=("single_label", "multi_label"),
    positive=("fpr", "fit"),
)
def kernel_density(
    victim: Victim,
    *,
    fitting: Fitting,
    fpr: float = 0.05,
    bandwidth: float = 0.0,
    fit: int = 512,
) -> Defended:
    """Return the victim behind a Gaussian kernel density of the predicted class.

    Args:
        victim: the undefended victim.
        fitting: its training images are the centres of the kernels.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        bandwidth: standard deviation of a kernel in units of features, >= 0; 0 = the likeliest.
        fit: largest number of training images, >= 1.

    Raises:
        SpecError: the bandwidth is negative.
        DataError: a class has too few training images.

    Source: Feinman, Curtin, Shintre, Gardner, "Detecting adversarial samples from artifacts", 2017,
        section 4.1: density of the last hidden layer's features under the training images of the
        predicted class. The bandwidth is the likeliest under 3-fold cross-validation, as in the
        paper.
    Deviations: There is one bandwidth for all classes, from a grid of nearest-neighbour distances.
        The density is the only score. The paper combines it with a Bayesian uncertainty by a
        regression; that uncertainty needs dropout, which few of these networks have. Findings have
        no predicted class, so all training images form one class.
    """
    if bandwidth < 0:
        raise SpecError(f"expected bandwidth >= 0, got {bandwidth}")
    read = reader(victim, stages=False)
    batch, y = draw_training_images(fitting, fit, detector="kernel_density")
    bank = read_all(victim, read, batch.x)[-1]
    width = bandwidth or likeliest_bandwidth(bank, y)

    def score(x: Images, logits: Logits) -> PerSample:
        return -log_density(read(x)[-1], predicted_class(logits, fitting), bank, y, width)

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def log_density(
    features: Features,
    predicted: Int[Tensor, " b"],
    bank: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    width: float,
) -> PerSample:
    """Return the log density under the kernels on the bank's features of the predicted class."""
    same_class = predicted[:, None] == y
    exponent = (-squared(features, bank) / (2 * width**2)).masked_fill(~same_class, -torch.inf)
    count = same_class.sum(1).to(features)
    norm = features.shape[1] / 2 * math.log(2 * math.pi * width**2)
    return exponent.logsumexp(1) - count.log() - norm


def likeliest_bandwidth(bank: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
    """Return the bandwidth that gives held-out images of the same class the highest likelihood."""
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.neighbors import KernelDensity

    nearest = squared(bank, bank).fill_diagonal_(torch.inf).amin(1).sqrt()
    grid = _GRID * max(float(nearest.median()), 1e-6)
    folds = KFold(3, shuffle=True, random_state=0)
    totals = np.zeros(len(grid))
    for k in y.unique():
        rows = numbers(bank[y == k])
        search = GridSearchCV(KernelDensity(), {"bandwidth": grid}, cv=folds, refit=False)
        totals += search.fit(rows).cv_results_["mean_test_score"]
    return float(grid[int(np.nan_to_num(totals, nan=-np.inf).argmax())])
