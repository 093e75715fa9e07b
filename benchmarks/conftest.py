"""One ResNet-18, one set of images and one budget for every contender of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from attacks.pgd import pgd
from robustbench_med.ball import Ball
from robustbench_med.cards import ModelCard, Recipe
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.guide import bfloat16
from robustbench_med.models.load import untrained
from robustbench_med.models.train import fit
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.victim import Victim, frozen

STEPS = 40
SHARE = 0.1  # step size as a share of eps, for every contender
ROWS: list[tuple[str, str, float, float]] = []  # scenario, contender, seconds, robust accuracy


class Plain(nn.Module):
    """The victim as the peers want it: images in [0,1] in, logits out."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.victim, self.module = victim, victim.module

    def forward(self, x: Tensor) -> Tensor:
        return self.victim(x).logits


class Arena(NamedTuple):
    """A frozen ResNet-18 on 64 x 64 colour images, and images it calls right."""

    victim: Victim
    x: Tensor
    y: Tensor

    def problem(self, eps: float, *, guide: bool = False) -> Problem:
        half = bfloat16(self.victim) if guide else None
        return Problem(self.x, self.y, Ball("linf", eps), Untargeted(), self.victim, half)

    def survivors(self, z: Tensor) -> float:
        return float((self.victim.logits(z).argmax(1) == self.y).float().mean())


@pytest.fixture(scope="session")
def arena() -> Iterator[Arena]:
    data = load_dataset("phantom_dermoscopy")
    card = ModelCard(
        name="resnet18",
        title="ResNet-18",
        family="resnet",
        dataset=data.card.name,
        builder="timm:resnet18()",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    torch.manual_seed(0)
    victim = untrained(card, data.card)
    fit(victim, data.batch("train"), data.card, Recipe(epochs=4, batch=50))
    with frozen(victim.module):
        batch = data.batch("test")
        right = (victim.logits(batch.x).argmax(1) == batch.y).nonzero()[:64, 0]
        yield Arena(victim, batch.x[right], batch.y[right])


@pytest.fixture(scope="session")
def radii(arena: Arena) -> dict[str, float]:
    """Return the radius of each scenario; "30 % survive" is found by bisection."""
    low, high = 0.0, 8 / 255
    for _ in range(7):
        middle = (low + high) / 2
        z = pgd(arena.problem(middle, guide=True), rng=draws(arena), steps=10)
        low, high = (middle, high) if arena.survivors(z) > 0.3 else (low, middle)
    return {"all survive": 1e-5, "30 % survive": high, "large radius": 8 / 255}


def draws(arena: Arena) -> Draws:
    return Draws.of(0, map(str, range(len(arena.x))))


@pytest.fixture
def contest(benchmark: Callable[..., Tensor], arena: Arena) -> Callable[..., None]:
    """Time a contender twice and keep its better round for the table."""

    def run(scenario: str, name: str, attack: Callable[[], Tensor]) -> None:
        z = benchmark.pedantic(attack, rounds=2)  # type: ignore[attr-defined]
        seconds = float(benchmark.stats.stats.min)  # type: ignore[attr-defined]
        ROWS.append((scenario, name, seconds, arena.survivors(z)))

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every contender's time beside ours, as a ratio, with the robust accuracy reached."""
    ours = {scenario: seconds for scenario, name, seconds, _ in ROWS if name == "ours"}
    terminalreporter.section("ratios to ours, same victim, images and budget")
    for scenario, name, seconds, robust in ROWS:
        ratio = seconds / ours[scenario] if scenario in ours else float("nan")
        terminalreporter.write_line(
            f"{scenario:14s} {name:22s} {seconds:8.2f} s {ratio:6.2f} x  robust {robust:6.1%}"
        )
