"""Eight victims of 2, 3, 6 and 10 classes for `benchmarks.worst_case`, half of them hardened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.conftest import gratings
from robustbench_med import registry
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.load import load_victim
from robustbench_med.victim import InputContract, Victim, frozen

DATA = Path("../shared/data")  # of pneumoniamnist
_TRAINED = 1500  # training images of a small network
_EPOCHS = 12
Pair = tuple[Tensor, Tensor]  # images and their classes
_STANDING = 0.4  # share of images that PGD leaves standing at the radius of a victim

# how each victim is made: a name of the zoo, or data and the radius of its training
VICTIMS: dict[str, tuple[str, float]] = {
    "pneumonia_resnet": ("zoo", 0.0),
    "pneumonia_resnet_pgd_at": ("zoo", 0.0),
    "fundus_small": ("fundus", 0.0),
    "fundus_small_pgd_at": ("fundus", 0.002),
    "gratings6_small": ("gratings 6", 0.0),
    "gratings6_small_pgd_at": ("gratings 6", 0.01),
    "gratings10_small": ("gratings 10", 0.0),
    "gratings10_small_pgd_at": ("gratings 10", 0.008),
}


class Posed(NamedTuple):
    """A frozen victim, images that it calls right, their classes, and the radius in L-inf."""

    victim: Victim
    x: Tensor
    y: Tensor
    classes: int
    eps: float


@contextmanager
def posed(name: str, n: int) -> Iterator[Posed]:
    """Hold a victim frozen with `n` test images that it calls right, at its radius."""
    source, radius = VICTIMS[name]
    victim, (x, y) = _shipped(name) if source == "zoo" else _small(source, radius)
    with frozen(victim.module):
        logits = victim.logits(x)
        right = (logits.argmax(1) == y).nonzero()[:n, 0]
        x, y = x[right], y[right]
        yield Posed(victim, x, y, logits.shape[1], _radius(victim, x, y))


def _shipped(name: str) -> tuple[Victim, Pair]:
    data = load_dataset(registry.find("models", name).dataset, data=DATA)
    batch = data.batch("test", n=300)
    return load_victim(name, data.card).victim, (batch.x, batch.y)


def _small(source: str, radius: float) -> tuple[Victim, Pair]:
    """Return a network of three convolutions, trained for some seconds, and test images."""
    (x, y), (test_x, test_y) = _images(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _network(x.shape[1], int(y.max()) + 1)
        optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
        for _ in range(_EPOCHS):
            for rows in torch.randperm(len(x)).split(50):
                shown = _pgd(module, x[rows], y[rows], radius, steps=5) if radius else x[rows]
                optimizer.zero_grad()
                functional.cross_entropy(module(shown), y[rows]).backward()
                optimizer.step()
    module.eval()
    size = (x.shape[2], x.shape[3])
    victim = Victim(module, InputContract(channels=x.shape[1], size=size), chunk=250)
    return victim, (test_x, test_y)


def _network(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(channels, affine=False),
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )


def _images(source: str) -> tuple[Pair, Pair]:
    """Return training and test images, `(n, c, 32, 32)` in [0,1], and their classes."""
    name, _, classes = source.partition(" ")
    if name == "gratings":
        return gratings(_TRAINED, 0, int(classes)), gratings(300, 1, int(classes))
    data = load_dataset("phantom_fundus")
    train, test = data.batch("train"), data.batch("test")
    small = [(functional.avg_pool2d(batch.x, 2), batch.y) for batch in (train, test)]
    return small[0], small[1]


def _pgd(module: nn.Module, x: Tensor, y: Tensor, radius: float, *, steps: int) -> Tensor:
    """Return plain PGD in L-inf, for training and for the choice of a radius."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_(True)
        loss = functional.cross_entropy(module(x + delta), y, reduction="sum")
        (g,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + 2.5 * radius / steps * g.sign()).clamp(-radius, radius)
        delta = (x + delta).clamp(0, 1) - x
    return x + delta


def _radius(victim: Victim, x: Tensor, y: Tensor) -> float:
    """Return the radius at which 20 steps of PGD leave 40 % standing, by bisection."""
    low, high = 0.0, 0.2

    class Logits(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return victim(z).logits

    for _ in range(8):
        middle = (low + high) / 2
        z = _pgd(Logits(), x, y, middle, steps=20)
        standing = float((victim.logits(z).argmax(1) == y).float().mean())
        low, high = (middle, high) if standing > _STANDING else (low, middle)
    return high
