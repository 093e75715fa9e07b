"""PGD-40 against torchattacks, foolbox and ART; the cost of the loop itself, and of a ladder."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks.pgd import pgd
from benchmarks.conftest import SHARE, STEPS, Arena, Plain, classifier, draws
from robustbench_med.bench.eps_search import check_inferred, descend
from robustbench_med.problem import Problem
from robustbench_med.rng import Draws

SCENARIOS = ("30 % survive", "large radius", "all survive")


def ours(arena: Arena, eps: float, *, guide: bool = False) -> Callable[[], Tensor]:
    problem = arena.problem(eps, guide=guide)
    return lambda: pgd(problem, rng=draws(arena), steps=STEPS, total_step=STEPS * SHARE)


def torchattacks(arena: Arena, eps: float) -> Callable[[], Tensor]:
    import torchattacks as peer

    attack = peer.PGD(Plain(arena.victim), eps=eps, alpha=eps * SHARE, steps=STEPS)
    return lambda: attack(arena.x, arena.y)


def foolbox(arena: Arena, eps: float) -> Callable[[], Tensor]:
    import foolbox as peer

    model = peer.PyTorchModel(Plain(arena.victim).eval(), bounds=(0, 1), device="cpu")
    attack = peer.attacks.LinfPGD(rel_stepsize=SHARE, steps=STEPS)
    return lambda: attack(model, arena.x, arena.y, epsilons=eps)[1]


def art(arena: Arena, eps: float) -> Callable[[], Tensor]:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch as Peer

    attack = Peer(
        classifier(arena),
        eps=eps,
        eps_step=eps * SHARE,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=len(arena.x),
        verbose=False,
    )
    x, y = arena.x.numpy(), arena.y.numpy()
    return lambda: torch.from_numpy(attack.generate(x, y))


def ours_bfloat16(arena: Arena, eps: float) -> Callable[[], Tensor]:
    return ours(arena, eps, guide=True)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("contender", [ours, ours_bfloat16, torchattacks, foolbox, art])
def test_pgd(
    contender: Callable[[Arena, float], Callable[[], Tensor]],
    scenario: str,
    arena: Arena,
    radii: dict[str, float],
    contest: Callable[..., None],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        contest(scenario, contender.__name__, contender(arena, radii[scenario]))


def test_raw_passes(arena: Arena, contest: Callable[..., None]) -> None:
    """The same number of forward and backward passes and nothing else."""
    chunk = arena.problem(0.1).chunk

    def raw() -> Tensor:
        for _ in range(STEPS):
            for x, y in zip(arena.x.split(chunk), arena.y.split(chunk), strict=True):
                leaf = x.clone().requires_grad_(True)
                loss = torch.nn.functional.cross_entropy(arena.victim(leaf).logits, y)
                torch.autograd.grad(loss, leaf)
        arena.victim.logits(arena.x)
        return arena.x

    contest("all survive", "raw forward + backward", raw)


@pytest.mark.parametrize("rungs", [1, 5])
def test_ladder(
    rungs: int, arena: Arena, radii: dict[str, float], contest: Callable[..., None]
) -> None:
    """Five rungs against the hardest of them alone, the smallest radius."""
    middle = radii["30 % survive"]
    ladder = [middle / 4, middle / 2, middle, 2 * middle, 4 * middle][:rungs]

    def attack(problem: Problem, rng: Draws) -> Tensor:
        return pgd(problem, rng=rng, steps=STEPS, total_step=STEPS * SHARE)

    def walked() -> Tensor:
        problem, rng = arena.problem(middle), draws(arena)
        columns, inferred = descend(problem, attack, rng, ladder, 8)
        check_inferred(problem, attack, rng, ladder, 8, columns, inferred)
        return arena.x

    contest("ladder", "ours" if rungs == 1 else "five rungs", walked)
