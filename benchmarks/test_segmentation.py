"""PGD-40 on masks against the same passes with torch's cross-entropy: the cost of the loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from attacks.pgd import pgd
from robustbench_med.ball import Ball
from robustbench_med.cards import DatasetCard
from robustbench_med.objective import Objective
from robustbench_med.objectives import make
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws
from robustbench_med.victim import InputContract, Victim, frozen

STEPS, BATCH, ROUNDS = 40, 16, 3
OBJECTIVES = ("untargeted", "region(name='organ_1')", "targeted(mask='heart', label=1)")


def card(classes: int, side: int) -> DatasetCard:
    names = ("background", *(f"organ_{i}" for i in range(1, classes)))
    return DatasetCard(
        name="masks",
        title="Masks",
        modality="toy",
        task="segmentation",
        classes=names,
        channels=1,
        size=(side, side),
    )


@pytest.fixture
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    """Return an untrained U-Net of 8 to 32 channels."""
    from monai.networks.nets.basic_unet import BasicUNet

    classes, side = request.param
    torch.manual_seed(0)
    module = BasicUNet(2, 1, classes, features=(8, 8, 16, 32, 32, 8))
    victim = Victim(module, InputContract(channels=1, size=(side, side)))
    with frozen(module):
        yield victim


@pytest.mark.parametrize("goal", OBJECTIVES)
@pytest.mark.parametrize("victim", [(2, 64), (4, 64), (2, 128)], indirect=True)
def test_pgd_on_masks(victim: Victim, goal: str) -> None:
    """Interleaved pairs at a radius where no image is ever done; the median of their ratios.

    Seconds of processor time, on one thread: OMP_NUM_THREADS=1.
    """
    side = victim.contract.size[0]
    x = torch.rand(BATCH, 1, side, side, generator=torch.Generator().manual_seed(0))
    logits = victim.logits(x)
    # by the operating point every class is called somewhere; a ring is ignored
    victim = victim.at(-logits.mean((0, 2, 3)))
    y = victim.logits(x).argmax(1)
    y[:, 0] = -1
    objective = make(goal, "segmentation", card=card(logits.shape[1], side))
    ours = attack(victim, x, y, objective)
    peer = passes(victim, x, y)
    pairs = [(timed(peer), timed(ours)) for _ in range(ROUNDS)]
    ratio = statistics.median(b / a for a, b in pairs)
    seconds = [statistics.median(times) for times in zip(*pairs, strict=True)]
    print(
        f"\n{logits.shape[1]} classes, {side} x {side}, {goal}: raw {seconds[0]:.2f} s, "
        f"PGD-40 {seconds[1]:.2f} s, {ratio:.3f} x"
    )


def attack(victim: Victim, x: Tensor, y: Tensor, objective: Objective) -> Callable[[], Tensor]:
    problem = Problem(x, y, Ball("linf", 1e-5), objective, victim).bind()  # as in a walk
    return lambda: pgd(problem, rng=Draws.of(0, map(str, range(len(x)))), steps=STEPS)


def passes(victim: Victim, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The same number of forward and backward passes and nothing else."""

    def raw() -> Tensor:
        for _ in range(STEPS):
            leaf = x.clone().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(victim(leaf).logits, y, ignore_index=-1)
            torch.autograd.grad(loss, leaf)
        return victim.logits(x)

    return raw


def timed(run: Callable[[], Tensor]) -> float:
    start = time.process_time()  # what others do on the machine does not count
    run()
    return time.process_time() - start
