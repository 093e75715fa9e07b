"""One ResNet-18, one set of images and one budget for every contender of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from attacks.pgd import pgd
from robustbench_med import registry
from robustbench_med.ball import Ball
from robustbench_med.cards import ModelCard, Norm, Recipe
from robustbench_med.datasets.load import load_dataset
from robustbench_med.models.build import build
from robustbench_med.models.guide import bfloat16
from robustbench_med.models.load import load_victim, untrained
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.spec import parse
from robustbench_med.training.fit import fit
from robustbench_med.types import Batch
from robustbench_med.victim import InputContract, Victim, frozen

STEPS = 40
SHARE = 0.1  # step size as a share of eps, for every contender


class Row(NamedTuple):
    """One contender in one scenario; the median distance where it minimises one."""

    scenario: str
    name: str
    seconds: float
    robust: float
    distance: float


ROWS: list[Row] = []


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

    def problem(self, eps: float, *, guide: bool = False, norm: Norm = "linf") -> Problem:
        half = bfloat16(self.victim) if guide else None
        return Problem(self.x, self.y, Ball(norm, eps), Untargeted(), self.victim, half)

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


@pytest.fixture(scope="session")
def small_arena() -> Iterator[Arena]:
    """A small victim of the zoo, and images that nobody tuned an attack on."""
    yield from _shipped("dermoscopy_resnet", 24)


@pytest.fixture(scope="session")
def halves() -> Iterator[tuple[Arena, Arena]]:
    """Training and test images of a victim of the zoo, those it calls right."""
    card = registry.find("models", "fundus_resnet")
    data = load_dataset(card.dataset)
    victim = load_victim(card.name, data.card).victim
    with frozen(victim.module):
        train = _right(victim, data.batch("train"), 128)
        yield train, _right(victim, data.batch("test"), 96)


@pytest.fixture(scope="session")
def ten_classes() -> Iterator[Arena]:
    """A narrow ResNet on ten classes of faint gratings, 32 x 32, trained for a minute."""
    x, y = gratings(2000, seed=0)
    torch.manual_seed(0)
    builder = "timm:resnet10t(channels=[16, 32, 64, 128], stem_width=16)"
    module = build(parse(builder), channels=1, outputs=10, size=(32, 32))
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    for epoch in range(6):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(100):
            loss = torch.nn.functional.cross_entropy(module(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    victim = Victim(module, InputContract(channels=1, size=(32, 32)))
    with frozen(module):
        x, y = gratings(200, seed=1)
        right = (victim.logits(x).argmax(1) == y).nonzero()[:64, 0]
        yield Arena(victim, x[right], y[right])


def gratings(n: int, seed: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return stripes in some directions under noise, `(n, 1, 32, 32)`, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    angle = y * torch.pi / classes
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    along = rows * angle.cos().view(-1, 1, 1) + columns * angle.sin().view(-1, 1, 1)
    phase = 2 * torch.pi * torch.rand(n, 1, 1, generator=generator)
    noise = torch.randn(n, 32, 32, generator=generator)
    x = 0.5 + 0.1 * (along * 0.8 + phase).sin() + 0.08 * noise
    return x.clamp(0, 1).unsqueeze(1), y


def _shipped(name: str, n: int) -> Iterator[Arena]:
    card = registry.find("models", name)
    data = load_dataset(card.dataset)
    victim = load_victim(name, data.card).victim
    with frozen(victim.module):
        yield _right(victim, data.batch("test"), n)


def _right(victim: Victim, batch: Batch, n: int) -> Arena:
    right = (victim.logits(batch.x).argmax(1) == batch.y).nonzero()[:n, 0]
    return Arena(victim, batch.x[right], batch.y[right])


def classifier(arena: Arena) -> Any:  # noqa: ANN401 - ART has no types
    """Return the victim as ART wants it."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=Plain(arena.victim),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(arena.x.shape[1:]),
        nb_classes=int(arena.victim.logits(arena.x[:1]).shape[1]),
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


@pytest.fixture
def contest(
    benchmark: Callable[..., Tensor], request: pytest.FixtureRequest
) -> Callable[..., None]:
    """Time a contender and keep its better round for the table."""

    def run(
        scenario: str,
        name: str,
        attack: Callable[[], Tensor],
        *,
        arena: Arena | None = None,
        norm: Norm | None = None,
        rounds: int = 1,
    ) -> None:
        own = request.getfixturevalue("arena") if arena is None else arena
        z = benchmark.pedantic(attack, rounds=2 if arena is None else rounds)  # type: ignore[attr-defined]
        seconds = float(benchmark.stats.stats.min)  # type: ignore[attr-defined]
        distance = float("nan")
        if norm is not None:
            done = own.victim.logits(z).argmax(1) != own.y
            found = Ball(norm, 0.0).size(z, own.x).masked_fill(~done, torch.inf)
            distance = float(found.median())
        ROWS.append(Row(scenario, name, seconds, own.survivors(z), distance))

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every contender's time beside the first of its scenario, ours, as a ratio."""
    terminalreporter.section("ratios to ours, same victim, images and budget")
    first: dict[str, Row] = {}
    for row in ROWS:
        if row.name.startswith("ours"):
            first.setdefault(row.scenario, row)
    for row in ROWS:
        ours = first.get(row.scenario)
        ratio = row.seconds / ours.seconds if ours else float("nan")
        line = f"{row.scenario:20s} {row.name:22s} {row.seconds:8.2f} s {ratio:6.2f} x"
        line += f"  robust {row.robust:6.1%}"
        if ours and row.distance == row.distance:
            line += f"  median {row.distance:.4f} ({row.distance / ours.distance:.3f} x)"
        terminalreporter.write_line(line)
