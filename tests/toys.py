"""Victims whose optimal perturbation is known, and small ones that are quick to attack."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from robustbench_med.ball import Ball
from robustbench_med.cards import DatasetCard, Norm
from robustbench_med.objective import Objective
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.victim import InputContract, Victim

# parameters of attacks whose defaults take long, enough for toys
LIGHT: dict[str, dict[str, float]] = {
    "apgd": {"steps": 30},
    "apgd_l1": {"steps": 30},
    "apgd_targeted": {"steps": 20, "targets": 3},
    "square": {"queries": 100},
    "fab": {"steps": 12},
    "pdpgd": {"steps": 150},
    "minimum_norm": {"steps": 200},
    "sigma_zero": {"steps": 100},
    "rays": {"queries": 300},
    "hop_skip_jump": {"queries": 250, "directions": 50},
    "cgba": {"queries": 220, "frequencies": 1.0},
    "ensemble": {"steps": 10, "queries": 20, "targets": 2},
    "segpgd": {"steps": 20},
    "cospgd": {"steps": 20},
    "segmentation_ensemble": {"steps": 20},
    "dag": {"steps": 60, "gamma": 2.0},
}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


class Linear(nn.Module):
    """Logits `w x + b` on flattened images."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T + self.b


class Small(nn.Module):
    """A convolutional network with batch norm and dropout, for any number of axes."""

    def __init__(self, channels: int, outputs: int, axes: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[axes - 2]
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[axes - 2]
        self.features = nn.Sequential(
            conv(channels, 8, 3, padding=1), norm(8), nn.SiLU(), conv(8, 8, 3, stride=2), nn.SiLU()
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(2).mean(2))
        return logits


class Pointwise(nn.Module):
    """Logits `w x + b` at every pixel: each pixel is a linear victim of its own."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("kc,bc...->bk...", self.w, x) + self.b.view(-1, *[1] * (x.ndim - 2))


class SmallMasks(nn.Module):
    """A convolutional network that answers at every pixel, for any number of axes."""

    def __init__(self, channels: int, outputs: int, axes: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[axes - 2]
        self.layers = nn.Sequential(
            conv(channels, 8, 3, padding=1), nn.SiLU(), conv(8, outputs, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def victim_of(module: nn.Module, *, channels: int = 1, size: tuple[int, ...] = (8, 8)) -> Victim:
    return Victim(module.eval(), InputContract(channels=channels, size=size))


def linear_victim(k: int = 2, *, scale: float = 30.0) -> Victim:
    """Return a linear victim of `k` classes on 8 x 8 images.

    Its rows are those of a Hadamard matrix: any two differ by the same norm, so the class with the
    next largest logit is the nearest, in every norm. At scale 30 it is so sure that the
    cross-entropy has no gradient in float32.
    """
    w = scale * torch.from_numpy(hadamard(64)[1 : k + 1]).float()
    return victim_of(Linear(w, torch.zeros(k)))


def generic_victim(k: int, *, scale: float = 1.0) -> Victim:
    """Return a linear victim in general position: no gradient entry cancels."""
    w = torch.randn(k, 64, generator=torch.Generator().manual_seed(0))
    return victim_of(Linear(scale * w, torch.zeros(k)))


def clear_images(victim: Victim, n: int) -> Tensor:
    """Return images whose second largest logit stands well apart from the third."""
    x = grey_images(40 * n)
    top = victim(x).logits.topk(min(3, victim(x[:1]).logits.shape[1])).values
    lead = (top[:, 0] - top[:, 1]) / (top[:, 0] - top[:, -1])
    return x[lead.argsort()[n : 2 * n]] if top.shape[1] == 3 else x[:n]


def small_victim(k: int, *, channels: int = 1, side: int = 8, axes: int = 2) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(k)
        module = Small(channels, k, axes)
    return victim_of(module, channels=channels, size=(side,) * axes)


def grey_images(n: int, *, channels: int = 1, side: int = 8, seed: int = 1) -> Tensor:
    """Return images well inside [0,1], so that small balls do not touch the box."""
    generator = torch.Generator().manual_seed(seed)
    return 0.4 + 0.2 * torch.rand(n, channels, side, side, generator=generator)


def distance(victim: Victim, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Return each image's exact distance to the nearest decision boundary of a linear victim.

    L0: the least number of values that, moved to 0 or 1, reach it.
    """
    module = victim.module
    assert isinstance(module, Linear)
    logits = victim(x).logits.detach()
    w = module.w.detach()
    nearest = torch.full((len(x),), torch.inf)
    for j in range(len(w)):
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, j]
        away = w[j] - w[y]
        if norm == "l0":
            flat = x.flatten(1)
            gain = torch.maximum(away * (1 - flat), -away * flat).sort(1, descending=True).values
            distance = (gain.cumsum(1) <= gap[:, None]).sum(1) + 1.0
        else:
            distance = gap / away.norm(p=DUAL[norm], dim=1)
        nearest = torch.where(y == j, nearest, torch.minimum(nearest, distance))
    return nearest


def problem_of(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    norm: Norm = "linf",
    objective: Objective | None = None,
) -> Problem:
    return Problem(x, y, Ball(norm, eps), objective or Untargeted(), victim)


def draws(n: int | Iterable[str], seed: int = 0) -> Draws:
    return Draws.of(seed, [f"s{i}" for i in range(n)] if isinstance(n, int) else n)


# --- masks ---------------------------------------------------------------------------------------


def mask_card(
    k: int = 2,
    *,
    channels: int = 1,
    size: tuple[int, ...] = (8, 8),
    regions: dict[str, tuple[int, ...]] | None = None,
) -> DatasetCard:
    """Return the card of masks of `k` classes; class 0 is the background."""
    return DatasetCard(
        name="toy_masks",
        title="Toy masks",
        modality="toy",
        task="segmentation",
        classes=("background", *(f"organ_{i}" for i in range(1, k))),
        regions=regions or {},
        channels=channels,
        size=size,
    )


def pixel_victim(k: int = 2, *, size: tuple[int, ...] = (8, 8), scale: float = 10.0) -> Victim:
    """Return a victim of masks that sees each pixel alone.

    One output or two: of one channel, foreground where it is above 0.5. More: of `k` channels, the
    class of the brightest.
    """
    if k > 2:
        return victim_of(Pointwise(scale * torch.eye(k), torch.zeros(k)), channels=k, size=size)
    w, b = torch.tensor([[-scale], [scale]]), torch.tensor([scale / 2, -scale / 2])
    return victim_of(Pointwise(w[-k:] * (3 - k), b[-k:] * (3 - k)), size=size)


def pixel_distances(victim: Victim, x: Tensor) -> Tensor:
    """Return the L-inf distance at which each pixel of a pixel victim takes each class, exactly.

    `(b, k, *s)`; 0 for the class it is called.
    """
    module = victim.module
    assert isinstance(module, Pointwise)
    w = module.w.detach()
    logits = victim(x).logits.detach()
    if len(w) == 1:
        w, logits = torch.cat([0 * w, w]), torch.cat([0 * logits, logits], 1)
    called = logits.argmax(1)
    gap = logits.gather(1, called[:, None]) - logits
    away = (w[None] - w[:, None]).abs().sum(2)[called].movedim(-1, 1)
    return torch.where(gap == 0, 0.0, gap / away.clamp_min(1e-9))


def small_mask_victim(k: int, *, channels: int = 1, side: int = 8, axes: int = 2) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(k)
        module = SmallMasks(channels, k, axes)
    return victim_of(module, channels=channels, size=(side,) * axes)


def masks_called(victim: Victim, x: Tensor) -> Tensor:
    """Return the masks a victim calls, `(b, *s)`."""
    logits = victim(x).logits.detach()
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
