"""Fits: fit parameters with scikit-learn, and score with them in torch, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from robustbench_med.types import PerSample

from .features import Features

Score = Callable[[Features], PerSample]


def numbers(values: Tensor) -> NDArray[np.float64]:
    """Return features as the array that scikit-learn expects."""
    return np.asarray(values.detach().double().cpu().numpy())


def labelled(
    clean: list[Features], attacked: Features
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rows and labels of a two-class fit: 0 = clean or noisy, 1 = attacked."""
    negatives = np.concatenate([numbers(features) for features in clean])
    positives = numbers(attacked)
    truth = np.repeat(np.array([0, 1]), [len(negatives), len(positives)])
    return np.concatenate([negatives, positives]), truth


def fit_logistic(clean: list[Features], attacked: Features) -> Score:
    """Return the log-odds of "attacked" by a logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, truth = labelled(clean, attacked)
    scale = StandardScaler().fit(rows)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(scale.transform(rows), truth)
    mean, deviation = attacked.new_tensor(scale.mean_), attacked.new_tensor(scale.scale_)
    weight, bias = attacked.new_tensor(model.coef_[0]), float(model.intercept_[0])
    return lambda features: ((features - mean) / deviation) @ weight + bias


def svm(model: Any, like: Tensor) -> Score:  # noqa: ANN401 - scikit-learn has no types
    """Return the decision function of a fitted binary `SVC` with an RBF kernel."""
    support = like.new_tensor(model.support_vectors_)
    weight, bias = like.new_tensor(model.dual_coef_[0]), float(model.intercept_[0])
    gamma = float(model._gamma)

    def score(features: Features) -> PerSample:
        return torch.exp(-gamma * squared(features, support)) @ weight + bias

    return score


def squared(a: Float[Tensor, "b d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
    """Return squared Euclidean distances; with expanded products, small ones would be inexact."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def fit_imitation(
    rows: Float[Tensor, "n d"], scores: PerSample, *, seed: int, steps: int = 250, width: int = 64
) -> Score:
    """Return a small network that imitates the scores of a detector without gradients.

    Args:
        rows: features on which the network is fitted.
        scores: `(n,)` scores of the detector on these rows.
        seed: seed of the network's weights.
        steps: steps of Adam, each on all rows at once.
        width: width of the two hidden layers.

    Source: Papernot et al., "Practical black-box attacks against machine learning", AsiaCCS 2017,
        section 4: a substitute trained on the outputs of a model that cannot be differentiated.
    """
    mean, deviation = rows.mean(0), rows.std(0).clamp_min(1e-6)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(rows.shape[1], width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 1),
        ).to(rows.device)
        optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
        standardised = (rows - mean) / deviation
        for _ in range(steps):
            optimiser.zero_grad()
            loss = torch.nn.functional.huber_loss(net(standardised)[:, 0], scores)
            loss.backward()
            optimiser.step()
    net.requires_grad_(False)
    return lambda features: net((features - mean) / deviation)[:, 0]
