"""Kernel density: how rare an image's penultimate features are among those of its class."""

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

from .examples import called, draw_training_images
from .features import Features, read_all, reader
from .fits import numbers, squared

_GRID = np.geomspace(0.25, 4.0, 9)  # of bandwidths, in nearest-neighbour distances


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
    """Return the victim behind a Gaussian kernel density of the class an image is called.

    Args:
        victim: undefended.
        fitting: its training images are the kernels' centres.
        fpr: fraction of clean validation images that are rejected, in (0,1).
        bandwidth: standard deviation of a kernel in units of features, >= 0; 0 = the likeliest.
        fit: training images used at most, >= 1.

    Raises:
        SpecError: the bandwidth is negative.
        DataError: too few training images of a class.

    Source: Feinman, Curtin, Shintre, Gardner, "Detecting adversarial samples from artifacts", 2017,
        section 4.1: density of the last hidden layer's features under the training images of the
        predicted class. Deviations: one bandwidth, the likeliest under 3-fold cross-validation as
        theirs, on a grid of nearest-neighbour distances; no regression over it and a second score:
        their Bayesian uncertainty needs dropout, which few of these networks have. Findings
        have no predicted class: all training images are one.
    """
    if bandwidth < 0:
        raise SpecError(f"expected bandwidth >= 0, got {bandwidth}")
    read = reader(victim, stages=False)
    batch, y = draw_training_images(fitting, fit, wanted_by="kernel_density")
    bank = read_all(victim, read, batch.x)[-1]
    width = bandwidth or likeliest(bank, y)

    def score(x: Images, logits: Logits) -> PerSample:
        return -log_density(read(x)[-1], called(logits, fitting), bank, y, width)

    return guarded(victim, score, fitting=fitting, fpr=fpr)


def log_density(
    features: Features,
    predicted: Int[Tensor, " b"],
    bank: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    width: float,
) -> PerSample:
    """Return the log density under the kernels on the bank's features of the predicted class."""
    mine = predicted[:, None] == y
    exponent = (-squared(features, bank) / (2 * width**2)).masked_fill(~mine, -torch.inf)
    count = mine.sum(1).to(features)
    norm = features.shape[1] / 2 * math.log(2 * math.pi * width**2)
    return exponent.logsumexp(1) - count.log() - norm


def likeliest(bank: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> float:
    """Return the bandwidth under which held-out images of the same class are likeliest."""
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.neighbors import KernelDensity

    apart = squared(bank, bank).fill_diagonal_(torch.inf).amin(1).sqrt()
    grid = _GRID * max(float(apart.median()), 1e-6)
    folds = KFold(3, shuffle=True, random_state=0)
    totals = np.zeros(len(grid))
    for k in y.unique():
        rows = numbers(bank[y == k])
        search = GridSearchCV(KernelDensity(), {"bandwidth": grid}, cv=folds, refit=False)
        totals += search.fit(rows).cv_results_["mean_test_score"]
    return float(grid[int(np.nan_to_num(totals, nan=-np.inf).argmax())])
