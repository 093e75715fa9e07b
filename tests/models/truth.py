"""A linear model with known correct predictions, behind every kind of output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_med.datasets.dataset import Dataset
from tests.bench.toys import dataset_of

SIDE, N = 16, 40
_GENERATOR = torch.Generator().manual_seed(0)
X = 0.35 + 0.3 * torch.rand(N, 1, SIDE, SIDE, generator=_GENERATOR)
W = torch.randn(SIDE * SIDE, generator=_GENERATOR)
SCORES = (X.flatten(1) - 0.5) @ W
Y = (SCORES > 0).long()
Y[::10] = 1 - Y[::10]  # a tenth of the labels is wrong
FINDINGS = torch.stack([Y, 1 - Y, Y], 1)
CLEAN = 0.9
PIXELS = 10 * (X[:8] - 0.5)  # the logit of a mask at every pixel
MASKS = (PIXELS[:, 0] > 0).long()


class Truth(nn.Module):
    """One score, or the scores of two classes or three findings, through a function."""

    def __init__(self, k: int = 1, last: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.w, self.k, self.last = nn.Parameter(W.clone()), k, last

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401 - whatever the function makes
        z = ((x.flatten(1) - 0.5) @ self.w)[:, None]
        z = {1: z, 2: torch.cat([-z / 2, z / 2], 1), 3: torch.cat([z, -z, z], 1)}[self.k]
        return z if self.last is None else self.last(z)


class Pixelwise(nn.Module):
    """The score of each pixel, one or of two classes, through a function."""

    def __init__(self, k: int = 1, last: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.w, self.k, self.last = nn.Parameter(torch.tensor(10.0)), k, last

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401
        z = self.w * (x - 0.5)
        z = z if self.k == 1 else torch.cat([-z / 2, z / 2], 1)
        return z if self.last is None else self.last(z)


def labels() -> Dataset:
    return dataset_of(X, Y, 2)


def findings() -> Dataset:
    return dataset_of(X, FINDINGS, 3, task="multi_label")


def masks() -> Dataset:
    return dataset_of(X[:8], MASKS.to(torch.int16), 2, task="segmentation")
