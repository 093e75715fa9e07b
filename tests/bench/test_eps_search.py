"""The ladder finds what running each rung alone finds, and its audit catches what it would miss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attacks.fgsm import fgsm
from attacks.pgd import bim, pgd
from robustbench_med.ball import Ball
from robustbench_med.bench.eps_search import Attack, ascend, at_rung, check_inferred, descend
from robustbench_med.bench.measurements import Measurements, measure
from robustbench_med.bench.record import LadderAudit
from robustbench_med.cards import Norm
from robustbench_med.errors import InvalidOutputError, VictimError
from robustbench_med.objectives.multilabel import AnyFinding
from robustbench_med.problem import Counter, Problem
from robustbench_med.rng import Draws
from robustbench_med.types import Images, Output
from tests.toys import (
    distance,
    draws,
    generic_victim,
    grey_images,
    linear_victim,
    problem_of,
    small_victim,
)

N = 48
ATTACKS: dict[str, Attack] = {
    "fgsm": lambda problem, rng: fgsm(problem, rng=rng),
    "bim": lambda problem, rng: bim(problem, rng=rng, steps=8),
    "pgd": lambda problem, rng: pgd(problem, rng=rng, steps=20),
}


def posed(k: int, norm: Norm) -> tuple[Problem, Tensor]:
    """Return a linear problem and each image's exact distance to its boundary."""
    victim = linear_victim(k)
    x = grey_images(N)
    y = victim(x).logits.argmax(1)
    return problem_of(victim, x, y, eps=0.0, norm=norm), distance(victim, x, y, norm)


def rungs_between(nearest: Tensor, shares: Sequence[float]) -> tuple[float, ...]:
    """Return radii at quantiles of the distances, none of them close to any."""
    ordered = nearest.sort().values
    radii = []
    for share in shares:
        i = min(int(share * len(ordered)), len(ordered) - 2)
        window = ordered[max(i - 3, 0) : i + 4]
        gap = int((window[1:] - window[:-1]).argmax())
        radii.append(float((window[gap] + window[gap + 1]) / 2))
    return tuple(sorted(set(radii)))


def fresh(problem: Problem) -> Problem:
    return replace(problem, counter=Counter())


def alone(problem: Problem, attack: Attack, ladder: Sequence[float]) -> Tensor:
    """Return the lowest rung each sample breaks at, every rung run on every sample."""
    lowest = torch.full((len(problem),), len(ladder))
    for i in reversed(range(len(ladder))):
        here = problem.at(ladder[i])
        z = attack(here, at_rung(draws(len(problem)), ladder[i]))
        lowest[here.probe(z).is_final] = i
    return lowest


def lowest_of(columns: Measurements) -> Tensor:
    broken = columns["success"]
    return (~broken).long().cumprod(0).sum(0)


def searched(
    problem: Problem, attack: Attack, ladder: Sequence[float], *, guess: bool = True
) -> tuple[Measurements, LadderAudit]:
    """Return all rungs by descending, after the inferred pairs were checked."""
    rng = draws(len(problem))
    columns, inferred = descend(problem, attack, rng, ladder, 255, guess=guess)
    return check_inferred(problem, attack, rng, ladder, 8, columns, inferred)


def walked(problem: Problem, attack: Attack, ladder: Sequence[float], way: str) -> Measurements:
    rng = draws(len(problem))
    if way == "ascend":
        return ascend(problem, attack, rng, ladder, 255)
    return searched(problem, attack, ladder)[0]


@pytest.mark.parametrize("way", ["ascend", "descend"])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("norm", "k"), [("linf", 2), ("linf", 3), ("l2", 2), ("l2", 10)])
def test_the_lowest_broken_rung_is_that_of_every_rung_alone(
    way: str, name: str, norm: Norm, k: int
) -> None:
    problem, nearest = posed(k, norm)
    ladder = rungs_between(nearest, (0.1, 0.3, 0.5, 0.7, 0.9))
    assert len(ladder) >= 4
    expected = alone(problem, ATTACKS[name], ladder)
    assert len(expected.unique()) >= 4  # or the test would say little
    columns = walked(problem, ATTACKS[name], ladder, way)
    assert torch.equal(lowest_of(columns), expected)


@pytest.mark.parametrize("way", ["ascend", "descend"])
@pytest.mark.parametrize(
    "shares", [(1e-4, 1e-2, 1.0, 30.0), (0.5,), (1.0,), (0.2, 0.21), (20.0, 30.0), (1e-5, 1e-4)]
)
def test_rungs_far_apart_alone_or_all_on_one_side(way: str, shares: tuple[float, ...]) -> None:
    problem, nearest = posed(3, "linf")
    ladder = tuple(share * float(nearest.median()) * 1.0007 for share in shares)
    expected = alone(problem, ATTACKS["pgd"], ladder)
    columns = walked(problem, ATTACKS["pgd"], ladder, way)
    assert torch.equal(lowest_of(columns), expected)
    assert columns["success"].shape == (len(ladder), N)


@pytest.mark.parametrize("way", ["ascend", "descend"])
def test_what_is_measured_is_of_the_image_that_broke(way: str) -> None:
    problem, nearest = posed(2, "linf")
    ladder = rungs_between(nearest, (0.2, 0.5, 0.8))
    columns = walked(problem, ATTACKS["pgd"], ladder, way)
    broken, lowest = columns["success"], lowest_of(columns)
    for below, above in pairwise(broken):
        assert (above | ~below).all()  # once broken, broken above
    radii = torch.tensor(ladder)[:, None]
    assert (columns["size"] <= radii * (1 + 1e-5) + 1e-6).all()
    for j in range(N):
        first = int(lowest[j])
        if first < len(ladder):  # carried up: the very image of the lowest rung
            for name in ("size", "l2", "answer", "psnr", "ssim"):
                values = columns[name][first:, j]
                torch.testing.assert_close(values, values[:1].expand_as(values), equal_nan=True)
            assert columns["size"][first, j] <= ladder[first] * (1 + 1e-5)
            assert columns["size"][first, j] >= nearest[j] * (1 - 1e-4)
    called = columns["answer"].argmax(2)
    assert torch.equal(called != problem.y, broken)


def test_a_ladder_may_have_nobody_to_attack() -> None:
    problem, _ = posed(2, "linf")
    nobody = problem.select(torch.zeros(0, dtype=torch.long))
    for way in ("ascend", "descend"):
        columns = walked(nobody, ATTACKS["pgd"], (0.01, 0.02), way)
        assert columns["success"].shape == (2, 0)


def test_findings_walk_the_ladder_too() -> None:
    victim = generic_victim(4, scale=0.2)
    x = grey_images(N)
    y = (victim(x).logits > 0).long()
    y[:, 1] = -1
    problem = problem_of(victim, x, y, eps=0.0, objective=AnyFinding())
    ladder = (0.037, 0.043, 0.05)  # the exact distances are 0.030 to 0.055
    expected = alone(problem, ATTACKS["bim"], ladder)
    assert len(expected.unique()) >= 3
    for way in ("ascend", "descend"):
        assert torch.equal(lowest_of(walked(problem, ATTACKS["bim"], ladder, way)), expected)


def test_a_victim_without_any_gradient_walks_to_the_end() -> None:
    def flat(x: Images) -> Output:
        return Output(
            torch.tensor([[1.0, 0.0]]).expand(len(x), 2) + 0 * x.flatten(1).sum(1)[:, None]
        )

    problem, _ = posed(2, "linf")
    flat_problem = replace(problem, judge=flat, y=torch.zeros(N, dtype=torch.long))
    columns, audit = searched(flat_problem, ATTACKS["bim"], (0.01, 0.02, 0.04))
    assert not columns["success"].any()
    assert audit.inferred == 2 * N


def test_without_a_gradient_every_sample_starts_at_the_top_and_fails_once() -> None:
    """A victim that hides its gradients, as one behind queries does."""
    problem, nearest = posed(3, "linf")
    ladder = rungs_between(nearest, (0.1, 0.3, 0.5, 0.7, 0.9))
    ran: list[Tensor] = []

    def perfect(p: Problem, rng: Draws) -> Images:
        here = problem.select((problem.x[None] == p.x[:, None]).flatten(2).all(2).long().argmax(1))
        ran.append(torch.as_tensor(p.ball.eps).expand(len(p)))
        return fgsm(here.at(p.ball.eps), rng=rng)

    def hidden(x: Images) -> Output:
        return Output(problem.judge(x).logits.detach())

    closed = replace(problem, judge=hidden, counter=Counter())
    with pytest.raises(VictimError, match="expected a victim with gradients"):
        searched(closed, perfect, ladder)
    columns, audit = searched(closed, perfect, ladder, guess=False)
    expected = alone(problem, perfect, ladder)
    assert len(expected.unique()) >= 4
    assert torch.equal(lowest_of(columns), expected)
    assert ran[0].eq(ladder[-1]).all()
    # one rung failed, all below were not run
    assert audit.inferred == int((expected - 1).clamp_min(0).sum())


# --- the audit -----------------------------------------------------------------------------------


def far(problem: Problem) -> Problem:
    """Return the problem with a guide that thinks every boundary far: the top rung goes first."""

    def guide(x: Images) -> Output:
        logits = problem.judge(x).logits
        return Output(logits + 1e4 * torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]))

    return replace(problem, guide=guide)


def only_below(limit: float) -> Attack:
    """Return an attack that takes the perfect step at radii below `limit` and none above."""

    def planted(problem: Problem, rng: Draws) -> Images:
        z = fgsm(problem, rng=rng)
        eps = torch.as_tensor(problem.ball.eps).expand(len(problem))
        return torch.where((eps < limit).view(-1, 1, 1, 1), z, problem.x)

    return planted


def test_an_attack_that_works_at_small_radii_only_is_caught_and_all_inferred_is_rerun() -> None:
    problem, nearest = posed(2, "linf")
    ladder = rungs_between(nearest, (0.4, 0.6, 0.8)) + (1.0,)
    attack = only_below(0.9)
    expected = alone(problem, attack, ladder)
    columns, audit = searched(far(problem), attack, ladder)
    assert audit.inferred > 2 * N
    assert 0 < audit.checked < audit.inferred
    assert audit.success > 0
    assert audit.reran
    assert torch.equal(lowest_of(columns), expected)
    assert columns["success"][-1].sum() == (expected < len(ladder)).sum() > 0


def test_an_honest_attack_is_sampled_and_not_rerun() -> None:
    problem, _ = posed(2, "linf")
    ladder = (1e-6, 2e-6, 3e-6, 4e-6)  # nothing breaks: all below the top is inferred
    counted = fresh(problem)
    _, audit = searched(counted, ATTACKS["bim"], ladder)
    assert audit.inferred == 3 * N
    assert 3 * N / 16 <= audit.checked <= 35  # a sixteenth, and about 20 where there are as many
    assert audit.miss_bound == pytest.approx(1 - 0.05 ** (1 / audit.checked), rel=0.5)
    assert (audit.success, audit.reran) == (0, False)
    # one run of 8 steps each, the first guess, and the share that was checked
    assert counted.counter.backward == 8 * N + N + 8 * audit.checked


def test_a_failed_image_pulled_into_a_smaller_ball_is_judged_there() -> None:
    """An attack that overshoots at the top: its image, pulled in, breaks below without a run."""
    problem, nearest = posed(2, "linf")
    small = float(nearest.max()) * 1.5
    ran: list[float] = []

    def overshooting(p: Problem, rng: Draws) -> Images:
        ran.extend(torch.as_tensor(p.ball.eps).expand(len(p)).tolist())
        return fgsm(p, rng=rng)

    window = replace(problem, judge=_Window(problem, small))
    columns, _ = searched(far(window), overshooting, (small, 0.9))
    assert (torch.tensor(ran) > 0.5).float().mean() > 0.9
    assert columns["success"][0].all()
    assert columns["success"].all()


class _Window:
    """A victim that is fooled by a perturbation up to 1.1 `small`, and unmoved by a larger one."""

    def __init__(self, problem: Problem, small: float) -> None:
        self.judge, self.clean, self.limit = problem.judge, problem.x, 1.1 * small

    def __call__(self, x: Images) -> Output:
        logits = self.judge(x).logits
        near = (x.flatten(1)[:, None] - self.clean.flatten(1)[None]).abs().amax(2)
        owner = near.argmin(1)
        return Output(
            torch.where(
                (near.gather(1, owner[:, None]) <= self.limit),
                logits,
                self.judge(self.clean[owner]).logits,
            )
        )


# --- cost ----------------------------------------------------------------------------------------


def test_a_ladder_costs_little_more_than_its_hardest_rung() -> None:
    victim = small_victim(3, side=16)
    x = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    victim = victim.at(-victim.logits(x).mean(0))  # or one class would take them all
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=0.0)
    ladder = (0.002, 0.004, 0.008, 0.016, 0.03)
    attack = ATTACKS["pgd"]
    costs = []
    for eps in ladder:
        single = fresh(problem.at(eps))
        attack(single, at_rung(draws(64), eps))
        costs.append(single.counter.backward)
    whole = fresh(problem)
    columns, _ = searched(whole, attack, ladder)
    share = columns["success"].float().mean(1)
    assert share[0] < 0.3 < 0.7 < share[-1]  # a ladder that spans the distances
    assert whole.counter.backward <= 1.6 * max(costs)


def test_ascending_never_attacks_what_is_broken() -> None:
    problem, nearest = posed(2, "linf")
    counted = fresh(problem)
    ladder = (0.5 * float(nearest.min()), 2 * float(nearest.max()), 3 * float(nearest.max()))
    ascend(counted, ATTACKS["fgsm"], draws(N), ladder, 255)
    assert counted.counter.backward == 2 * N


# --- measure -------------------------------------------------------------------------------------


def test_measure_by_hand() -> None:
    victim = linear_victim(2)
    x = grey_images(3)
    y = victim(x).logits.argmax(1)
    problem = problem_of(victim, x, y, eps=0.1)
    z = x.clone()
    z[0, 0, 0, 0] += 0.003
    z[1] = fgsm(problem, rng=draws(3))[1]
    columns = measure(problem, z, 255)
    assert columns["success"].tolist() == [False, True, False]
    assert columns["linf"].tolist() == pytest.approx([0.003, 0.1, 0.0], abs=1e-6)
    assert columns["l2"].tolist() == pytest.approx([0.003, 0.1 * 32**0.5, 0.0], abs=1e-5)
    assert columns["size"].tolist() == columns["linf"].tolist()
    assert columns["lowest"].tolist() == z.flatten(1).amin(1).tolist()
    assert columns["highest"].tolist() == z.flatten(1).amax(1).tolist()
    assert torch.isnan(columns["psnr"]).tolist() == [True, False, True]
    # two rows of a Hadamard matrix differ in half of the 64 pixels: those alone move
    assert float(columns["psnr"][1]) == pytest.approx(20 + 10 * math.log10(2), abs=1e-3)
    l2 = measure(replace(problem, ball=Ball("l2", 0.1)), z, 255)
    assert l2["size"].tolist() == columns["l2"].tolist()


def test_what_survives_rounding() -> None:
    """A boundary between two grey levels is crossed in float, and not after rounding."""
    x = torch.full((2, 1, 8, 8), 100 / 255)
    w = torch.zeros(2, 64)
    w[1] = 1.0
    victim = linear_victim(2)
    module = type(victim.module)(w, torch.tensor([64 * 100.3 / 255, 0.0]))
    problem = problem_of(replace(victim, module=module), x, torch.tensor([0, 0]), eps=0.1)
    z = x + torch.tensor([0.4, 0.6]).view(2, 1, 1, 1) / 255
    columns = measure(problem, z, 255)
    assert columns["success"].tolist() == [True, True]
    assert columns["rounded"].tolist() == [False, True]
    assert measure(problem, z, 65535)["rounded"].tolist() == [True, True]


def test_nan_on_an_attacked_image_is_no_score() -> None:
    problem, _ = posed(2, "linf")
    z = problem.x.clone()
    z[1] = torch.nan
    with pytest.raises(InvalidOutputError, match="NaN or Inf on an attacked image"):
        measure(problem, z, 255)
