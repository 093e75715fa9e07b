"""What the benchmark of `ensemble` counts and concludes, on toys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.apgd import apgd, apgd_targeted
from attacks.pgd import pgd
from benchmarks import worst_case as module
from benchmarks.worst_case import Passes, Result, added, contest_table, run, stored
from benchmarks.worst_case_stages import by_distance, diversified, dropping, nothing
from benchmarks.worst_case_victims import Posed
from robustbench_med.problem import Problem
from tests.toys import clear_images, distance, draws, grey_images, linear_victim, problem_of


def linear(k: int, share: float, n: int = 8) -> Problem:
    victim = linear_victim(k)
    x = clear_images(victim, n)
    y = victim(x).logits.argmax(1)
    return problem_of(victim, x, y, eps=distance(victim, x, y, "linf") * share)


def result(name: str, broken: list[bool], victim: str = "a") -> Result:
    return Result(victim, name, 3, 0.1, broken, 80, 40, 1.0)


def test_hooks_count_what_the_problem_counts() -> None:
    problem = linear(3, 0.5)
    with Passes().counted(problem.judge.module) as passes:  # type: ignore[attr-defined]
        apgd(problem, rng=draws(8), steps=7)
        by_distance(problem, rng=draws(8), steps=5)  # several backward passes of one forward pass
    assert (passes.forward, passes.backward) == (problem.counter.forward, problem.counter.backward)
    before = passes.forward
    problem.probe(problem.x)  # the hook is gone
    assert passes.forward == before


def test_hooks_count_forward_passes_without_a_gradient_alone() -> None:
    network = nn.Linear(3, 2)
    with Passes().counted(network) as passes:
        with torch.no_grad():
            network(torch.zeros(5, 3))
        network(torch.zeros(4, 3)).sum().backward()
    assert (passes.forward, passes.backward) == (9, 4)


def test_a_stage_that_adds_nothing_is_reported_so() -> None:
    problem = linear(3, 1.05)
    stages = {"pgd": pgd, "apgd": apgd, "nothing": nothing}
    results = []
    for name, stage in stages.items():
        z = stage(problem, rng=draws(8))
        results.append(result(name, problem.probe(z).is_final.tolist()))
    table = added(results)
    assert table["nothing"] == (0, 0, 8)
    assert table["pgd"] == table["apgd"] == (8, 0, 0)
    alone = added([result("a", [True, True, False]), result("b", [False, True, False])])
    assert alone == {"a": (2, 1, 0), "b": (1, 0, 1)}


def test_a_contender_is_compared_with_autoattack_on_its_own_victim() -> None:
    rows = contest_table(
        [
            result("ours", [True, False]),
            result("AutoAttack", [True, True])._replace(forward=1160),
            result("ours", [True, True], "b"),
        ]
    )[2:]
    assert rows[0].endswith("| ours | 50.0% | 40 | 20 | 0.100 |")
    assert rows[1].endswith("| 0.0% | 580 | 20 | 1.000 |")
    assert rows[2].endswith("| 40 | 20 |  |")


@pytest.mark.parametrize("stage", [by_distance, diversified, dropping])
def test_stages_that_could_be_added_meet_the_linear_distance(stage: object) -> None:
    for share, wins in ((0.9, False), (1.05, True)):
        problem = linear(4, share)
        z = stage(problem, rng=draws(8))  # type: ignore[operator]
        assert (problem.ball.size(z, problem.x) <= problem.ball.eps * 1.001).all()
        assert (
            bool(problem.probe(z).is_final.all() if wins else problem.probe(z).is_final.any())
            == wins
        )


def test_targets_by_distance_begin_with_the_nearest_boundary() -> None:
    """The nearest is not the one with the largest margin, and lies in the other direction."""

    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(1) - 0.5
            return torch.stack([0 * mean, mean - 0.1, -10 * mean - 0.5], 1)

    victim = linear_victim(3)
    steep = type(victim)(Steep().eval(), victim.contract)
    x = torch.full_like(grey_images(4), 0.5)
    problem = problem_of(steep, x, torch.zeros(4, dtype=torch.long), eps=0.06)
    first_by_margin = apgd_targeted(problem, rng=draws(4), steps=20, targets=1)
    first_by_distance = by_distance(problem, rng=draws(4), steps=20, targets=1)
    assert problem.probe(first_by_distance).is_final.all()
    assert not problem.probe(first_by_margin).is_final.any()


def test_rounding_near_white_puts_nothing_outside_a_small_ball() -> None:
    victim = linear_victim(3)
    x = torch.full_like(clear_images(victim, 4), 0.9)
    eps, y = 0.0023, (victim(x).logits.argmax(1) + 1) % 3  # every answer counts as broken
    own = Posed(victim, x, y, 3, eps)
    inside = module.measure("toy", "toy", lambda own: own.x + eps, own)
    outside = module.measure("toy", "toy", lambda own: own.x + eps + 1e-4, own)
    assert (sum(inside.broken), sum(outside.broken)) == (4, 0)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    problem = linear(3, 0.5)

    @contextmanager
    def toy(name: str, n: int) -> Iterator[Posed]:  # noqa: ARG001
        yield Posed(problem.judge, problem.x[:n], problem.y[:n], 3, 0.1)  # type: ignore[arg-type]

    def contender(own: Posed) -> Tensor:
        calls.append("run")
        return own.x

    monkeypatch.setattr(module, "posed", toy)
    monkeypatch.setattr(module, "CONTENDERS", {"first": contender, "second": contender})
    run(tmp_path, ["toy"], 4, stages=False, minutes=0)
    assert calls == []
    for _ in range(2):
        run(tmp_path, ["toy"], 4, stages=False, minutes=5)
    assert calls == ["run", "run"]
    results = stored(tmp_path, ["toy"], 4, stages=False)
    assert [one.contender for one in results] == ["first", "second"]
    assert results[0].robust == 1
