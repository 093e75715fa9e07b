"""Orthogonal PGD: PGD without a detector, orthogonal steps with one, and past where PGD is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.apgd import apgd
from attacks.orthogonal import SPARE, orthogonal_part, orthogonal_pgd
from attacks.pgd import pgd
from robustbench_med.errors import SpecError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.evade_detector import EvadeDetector
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from tests.toys import Linear, draws, grey_images, problem_of, victim_of

N = 24


def guarded(*, overlap: float, eps: float = 0.05, bar: float = 0.1) -> Problem:
    """Return a linear victim behind a linear detector whose slope shares `overlap` with the goal's.

    Both are of unit slope, in the L2 norm.
    """
    generator = torch.Generator().manual_seed(0)
    base = torch.linalg.qr(torch.randn(64, 2, generator=generator))[0].T
    w = torch.stack([torch.zeros(64), base[0]])
    seen = overlap * base[0] + (1 - overlap**2) ** 0.5 * base[1]
    # every clean image is 0.1 short of the boundary, and passes until `bar` along the detector
    x = grey_images(N)
    x = x - ((x.flatten(1) @ base[0] + 0.1)[:, None] * base[0]).view_as(x)
    victim = victim_of(Linear(w, torch.zeros(2)))

    def guard(z: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG001
        own = torch.cdist(z.detach().flatten(1), x.flatten(1)).argmin(1)
        found: Tensor = (z - x[own]).flatten(1) @ seen - bar
        return found

    judge = replace(victim, guard=guard)
    y = torch.zeros(N, dtype=torch.long)
    objective = EvadeDetector(Untargeted())
    return problem_of(judge, x, y, eps=eps, norm="l2", objective=objective)


def oblivious(problem: Problem) -> Tensor:
    objective = problem.objective
    assert isinstance(objective, EvadeDetector)
    blind = replace(problem, objective=objective.base)
    return pgd(blind, rng=draws(len(problem)), random_start=False)


@pytest.mark.parametrize("spare", SPARE)
def test_without_a_detector_it_is_pgd(spare: str) -> None:
    problem = guarded(overlap=0.5)
    plain = replace(problem, objective=Untargeted())
    ours = orthogonal_pgd(plain, rng=draws(N), steps=5, restarts=2, spare=spare)
    assert torch.equal(ours, pgd(plain, rng=draws(N), steps=5, restarts=2))


def test_a_view_without_the_detector_is_attacked_as_by_pgd() -> None:
    problem = guarded(overlap=0.9, eps=0.05)  # out of reach: no sample leaves the batch
    blind = replace(problem, guide=lambda z: Output(problem.judge(z).logits))
    z = orthogonal_pgd(blind, rng=draws(N), steps=6, random_start=False)
    expected = pgd(blind, rng=draws(N), steps=6, random_start=False, loss="goal")
    torch.testing.assert_close(blind.judge(z).logits, blind.judge(expected).logits)


def test_selective_is_pgd_on_that_loss() -> None:
    problem = guarded(overlap=0.5, eps=0.15)
    ours = orthogonal_pgd(problem, rng=draws(N), steps=7, spare="neither")
    assert torch.equal(ours, pgd(problem, rng=draws(N), steps=7, loss="selective"))


@pytest.mark.parametrize("spare", SPARE)
def test_it_passes_a_detector_that_catches_an_oblivious_attack(spare: str) -> None:
    # 0.1 along the goal's slope is wanted, at most 0.02 along the detector's: the straight way has
    # 0.07 of it, a way of length 0.122 does both
    problem = guarded(overlap=0.7, eps=0.2, bar=0.02)
    straight = problem.objective
    assert isinstance(straight, EvadeDetector)
    assert not problem.probe(problem.x).is_final.any()
    blind = replace(problem, objective=straight.base)
    z = oblivious(problem)
    assert blind.probe(z).is_final.all()
    assert not problem.probe(z).is_final.any()
    found = orthogonal_pgd(problem, rng=draws(N), steps=100, spare=spare)
    assert problem.probe(found).is_final.float().mean() > 0.9
    assert (problem.ball.size(found, problem.x) <= 0.2 * (1 + 1e-5)).all()


def test_steps_are_orthogonal_to_the_other_gradient() -> None:
    problem = guarded(overlap=0.8, eps=0.05)
    path: list[Tensor] = []

    def watched(z: Tensor) -> Output:
        path.append(z.detach().clone())
        found: Output = problem.judge(z)
        return found

    orthogonal_pgd(
        replace(problem, guide=watched), rng=draws(N), steps=4, random_start=False, spare="both"
    )
    before, after = path[0], path[2]  # each step asks twice at the same place
    assert torch.equal(path[0], path[1])
    levels = [problem.judge(z).suspicion for z in (before, after)]
    assert levels[0] is not None
    torch.testing.assert_close(levels[0], levels[1], atol=1e-5, rtol=0)
    assert (problem.judge(after).logits[:, 1] > problem.judge(before).logits[:, 1] + 1e-3).all()


def test_apart_is_orthogonal_and_keeps_what_is_parallel() -> None:
    generator = torch.Generator().manual_seed(0)
    g, other = torch.randn(2, 5, 1, 4, 4, generator=generator)
    left = orthogonal_part(g, other)
    torch.testing.assert_close((left * other).flatten(1).sum(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthogonal_part(g, -3 * g), g)
    torch.testing.assert_close(orthogonal_part(g, torch.zeros_like(g)), g)
    along = (g * other).flatten(1).sum(1)
    kept = orthogonal_part(g, other, against=True)
    assert {bool(one) for one in along > 0} == {True, False}
    torch.testing.assert_close(kept[along > 0], g[along > 0])
    torch.testing.assert_close(kept[along < 0], left[along < 0])


def test_two_passes_a_step_are_counted() -> None:
    problem = guarded(overlap=0.9, eps=0.01)
    orthogonal_pgd(problem, rng=draws(N), steps=3)
    assert problem.counter.backward == 2 * 3 * N


def test_a_goal_with_all_steps_is_still_past_a_detector() -> None:
    problem = guarded(overlap=0.7, eps=0.2, bar=0.02)
    posed = replace(problem, objective=LossOverride(problem.objective, use_all_steps=True))
    z = orthogonal_pgd(posed, rng=draws(N), steps=100)
    assert problem.probe(z).is_final.float().mean() > 0.9


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"restarts": -1}, {"total_step": -0.1}])
def test_bad_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=f"expected {next(iter(wrong))} >=? 0, got"):
        orthogonal_pgd(guarded(overlap=0.5), rng=draws(N), **wrong)  # type: ignore[arg-type]


def test_an_unknown_word_for_what_is_spared_is_refused() -> None:
    with pytest.raises(SpecError, match="expected spare in goal, both, neither, got 'all'"):
        orthogonal_pgd(guarded(overlap=0.5), rng=draws(N), spare="all")


@pytest.mark.parametrize("loss", ["joint", "selective"])
def test_pgd_and_apgd_maximise_the_losses_past_a_detector(loss: str) -> None:
    problem = guarded(overlap=0.7, eps=0.2, bar=0.02)
    for z in (pgd(problem, rng=draws(N), loss=loss), apgd(problem, rng=draws(N), loss=loss)):
        assert problem.probe(z).is_final.float().mean() > 0.9
