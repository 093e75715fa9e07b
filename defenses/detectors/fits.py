"""Fits: scikit-learn finds the parameters, torch scores with them in batches, with gradients."""

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
    """Return features as scikit-learn takes them."""
    return np.asarray(values.detach().double().cpu().numpy())


def labelled(
    clean: list[Features], attacked: Features
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rows of a two-class fit: 0 = clean or noisy, 1 = attacked."""
    good = np.concatenate([numbers(features) for features in clean])
    bad = numbers(attacked)
    truth = np.repeat(np.array([0, 1]), [len(good), len(bad)])
    return np.concatenate([good, bad]), truth


def logistic(clean: list[Features], attacked: Features) -> Score:
    """Return the log-odds of "attacked", a logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, truth = labelled(clean, attacked)
    scale = StandardScaler().fit(rows)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(scale.transform(rows), truth)
    mean, spread = attacked.new_tensor(scale.mean_), attacked.new_tensor(scale.scale_)
    weight, bias = attacked.new_tensor(model.coef_[0]), float(model.intercept_[0])
    return lambda features: ((features - mean) / spread) @ weight + bias


def svm(model: Any, like: Tensor) -> Score:  # noqa: ANN401 - scikit-learn has no types
    """Return the decision function of a fitted binary `SVC` with an RBF kernel."""
    support = like.new_tensor(model.support_vectors_)
    weight, bias = like.new_tensor(model.dual_coef_[0]), float(model.intercept_[0])
    gamma = float(model._gamma)

    def score(features: Features) -> PerSample:
        return torch.exp(-gamma * squared(features, support)) @ weight + bias

    return score


def squared(a: Float[Tensor, "b d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
    """Return squared Euclidean distances; expanded products would lose the small ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def surrogate(
    rows: Float[Tensor, "n d"], answers: PerSample, *, seed: int, steps: int = 250, width: int = 64
) -> Score:
    """Return a small network that answers nearly as a detector without gradients does.

    Args:
        rows: features to imitate it on.
        answers: `(n,)` its scores there.
        seed: of the network's weights.
        steps: of Adam on all rows at once.
        width: of the two hidden layers.

    Source: Papernot et al., "Practical black-box attacks against machine learning", AsiaCCS 2017,
        section 4: a substitute trained on the answers of what cannot be differentiated.
    """
    mean, spread = rows.mean(0), rows.std(0).clamp_min(1e-6)
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
        shown = (rows - mean) / spread
        for _ in range(steps):
            optimiser.zero_grad()
            loss = torch.nn.functional.huber_loss(net(shown)[:, 0], answers)
            loss.backward()
            optimiser.step()
    net.requires_grad_(False)
    return lambda features: net((features - mean) / spread)[:, 0]
