"""Problem counts what it forwards; Search keeps the best and lets finished rows go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacks.pgd import pgd
from robustbench_med.ball import Ball
from robustbench_med.errors import VictimError
from robustbench_med.objectives.classification import Untargeted
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.multilabel import AnyFinding
from robustbench_med.problem import Problem
from robustbench_med.search import Nearest, Search
from robustbench_med.types import Images, Output
from robustbench_med.victim import Victim
from tests.toys import draws, grey_images, linear_victim, problem_of, small_victim

N = 10


def posed(victim: Victim | None = None, *, eps: float = 0.05) -> Problem:
    victim = victim or small_victim(3)
    x = grey_images(N)
    return problem_of(victim, x, victim(x).logits.argmax(1), eps=eps)


# --- problem -------------------------------------------------------------------------------------


def test_every_pass_is_counted_and_takings_share_the_count() -> None:
    problem = posed()
    problem.probe(problem.x)
    assert (problem.counter.forward, problem.counter.backward) == (N, 0)
    problem.gradient(problem.x)
    assert (problem.counter.forward, problem.counter.backward) == (2 * N, N)
    few = problem.select(torch.tensor([1, 4])).at(0.1)
    few.margins(few.x)
    few.gradient(few.x)
    assert (problem.counter.forward, problem.counter.backward) == (2 * N + 4, N + 2)
    assert problem.counter is few.counter


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_chunks_change_no_gradient(chunk: int) -> None:
    problem = posed()
    g, verdict = problem.gradient(problem.x)
    chunks, judged = replace(problem, chunk=chunk).gradient(problem.x)
    torch.testing.assert_close(chunks, g)
    torch.testing.assert_close(judged.loss, verdict.loss)
    assert torch.equal(judged.is_final, verdict.is_final)


def test_a_gradient_is_of_its_own_image_alone() -> None:
    problem = posed()
    whole, _ = problem.gradient(problem.x)
    single, _ = problem.select(torch.tensor([3])).gradient(problem.x[3:4])
    torch.testing.assert_close(single[0], whole[3])


def test_the_guide_gives_the_gradient_and_the_judge_the_verdict() -> None:
    judge, guide = linear_victim(2), linear_victim(2, scale=-30.0)
    problem = replace(posed(judge), guide=guide)
    g, guided = problem.gradient(problem.x)
    plain, judged = replace(problem, guide=None).gradient(problem.x)
    torch.testing.assert_close(g, -plain)
    assert guided.is_final.all()
    assert not judged.is_final.any()
    assert not problem.probe(problem.x).is_final.any()


def test_suspicion_is_joined_over_chunks() -> None:
    def guarded(x: Images) -> Output:
        return Output(small_victim(3)(x).logits, x.flatten(1).mean(1))

    problem = replace(posed(), judge=guarded, chunk=4)
    result = problem.outputs(problem.x).suspicion
    assert result is not None
    torch.testing.assert_close(result, problem.x.flatten(1).mean(1))


def test_taking_rows_takes_their_radius() -> None:
    victim = small_victim(3)
    x = grey_images(N)
    eps = torch.linspace(0.01, 0.1, N)
    problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=eps)
    few = problem.select(torch.tensor([7, 2]))
    assert isinstance(few.ball.eps, Tensor)
    assert torch.equal(few.ball.eps, eps[[7, 2]])
    assert torch.equal(few.x, x[[7, 2]])


# --- search --------------------------------------------------------------------------------------


class Scripted:
    """A model that answers whatever logits a candidate's first pixel stands for."""

    def __call__(self, x: Images) -> Output:
        margin = 10 * (x[:, 0, 0, 0] - 0.5)
        return Output(torch.stack([torch.zeros_like(margin), margin], 1))


def candidates(*pixels: float) -> Tensor:
    z = torch.full((len(pixels), 1, 2, 2), 0.5)
    z[:, 0, 0, 0] = torch.tensor(pixels)
    return z


def scripted(n: int) -> Problem:
    """Return a problem whose harm is 10 (first pixel - 0.5); done above 0.5."""
    x = candidates(*[0.1] * n)
    toy = problem_of(linear_victim(2), x, torch.zeros(n, dtype=torch.long), eps=1.0)
    return replace(toy, judge=Scripted(), objective=Untargeted())


def test_the_candidate_with_the_most_harm_is_kept() -> None:
    search = Search(scripted(2))
    for z in (candidates(0.3, 0.2), candidates(0.2, 0.4), candidates(0.25, 0.3)):
        search.gradient(z)
    assert search.best[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.4])
    search.probe(candidates(0.45, 0.1))
    assert search.best[:, 0, 0, 0].tolist() == pytest.approx([0.45, 0.4])


def test_finished_rows_leave_with_their_state() -> None:
    search = Search(scripted(4))
    state = torch.arange(4.0)
    g, z, state_left = search.gradient(candidates(0.3, 0.9, 0.2, 0.8), state)
    assert search.rows.tolist() == [0, 2]
    assert len(g) == len(z) == 2
    assert len(search.active) == 2
    assert state_left.tolist() == [0.0, 2.0]
    before = search.active.counter.forward
    search.gradient(candidates(0.4, 0.7))
    assert search.active.counter.forward - before == 2  # only those still open
    assert search.rows.tolist() == [0]
    assert search.best[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.9, 0.7, 0.8])
    search.probe(candidates(0.6))
    assert search.finished
    search.probe(candidates())  # nothing open: nothing to judge


def test_best_is_the_clean_image_before_any_candidate() -> None:
    problem = scripted(3)
    assert torch.equal(Search(problem).best, problem.x)


def always_done(x: Images) -> Output:
    """Answer class 1 whatever is asked: a guide that lies."""
    return Output(torch.stack([-x.flatten(1).sum(1), torch.ones(len(x)) * 99], 1))


def test_a_lying_guide_removes_no_sample_that_still_stands() -> None:
    problem = replace(scripted(3), guide=always_done)
    search = Search(problem)
    search.gradient(candidates(0.3, 0.9, 0.2))
    assert search.rows.tolist() == [0, 2]
    # nor does its harm of 99 hide what the judge finds later
    search.gradient(candidates(0.4, 0.1))
    assert search.best[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.9, 0.2])


def test_a_done_candidate_is_kept_whatever_a_lying_guide_thinks_of_it() -> None:
    def grudging(x: Images) -> Output:
        done = x[:, 0, 0, 0] > 0.5  # what truly breaks has little harm, the rest has much
        harm = torch.where(done, 0.01, -0.001) + 0 * x.flatten(1).sum(1)
        return Output(torch.stack([torch.zeros_like(harm), harm], 1))

    search = Search(replace(scripted(1), guide=grudging))
    search.gradient(candidates(0.2))
    search.gradient(candidates(0.9))
    assert search.finished
    assert search.best[0, 0, 0, 0] == pytest.approx(0.9)


@pytest.mark.parametrize("chunk", [3, 64])
def test_pgd_with_a_lying_guide_reports_no_sample_as_broken_that_stands(chunk: int) -> None:
    victim = small_victim(3)
    problem = replace(posed(victim, eps=1e-4), guide=always_done, chunk=chunk)

    def three(x: Images) -> Output:
        two = always_done(x).logits
        return Output(torch.cat([two, two[:, :1]], 1))

    problem = replace(problem, guide=three)
    z = pgd(problem, rng=draws(N), steps=3)
    assert not problem.probe(z).is_final.any()


# --- jacobian, climb, nearest -------------------------------------------------------------------


def test_the_jacobian_is_the_gradient_of_each_margin() -> None:
    problem = posed()
    columns = torch.stack([(problem.y + 1) % 3, (problem.y + 2) % 3], 1)
    result = problem.jacobian(problem.x, columns)
    assert result.jacobian.shape == (N, 2, *problem.x.shape[1:])
    leaf = problem.x.clone().requires_grad_(True)
    logits = problem.judge(leaf).logits
    gap = (logits.gather(1, columns[:, 1:]) - logits.gather(1, problem.y[:, None])).sum()
    (g,) = torch.autograd.grad(gap, leaf)
    torch.testing.assert_close(result.jacobian[:, 1], g)
    torch.testing.assert_close(result.margins, problem.margins(problem.x))
    assert (problem.counter.forward, problem.counter.backward) == (2 * N, 2 * N)
    chunks = replace(problem, chunk=3).jacobian(problem.x, columns)
    torch.testing.assert_close(chunks.jacobian, result.jacobian)


def test_the_jacobian_picks_the_leading_margins_itself() -> None:
    problem = posed()
    spent = problem.counter
    result = problem.jacobian(problem.x, 10)  # three classes: two margins count
    assert (spent.forward, spent.backward) == (N, 2 * N)
    ranked = result.margins.gather(1, result.columns)
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()
    assert (ranked[:, 2] == -torch.inf).all()
    assert not result.jacobian[:, 2].any()
    named = problem.jacobian(problem.x, result.columns[:, :2])
    torch.testing.assert_close(named.jacobian, result.jacobian[:, :2])
    torch.testing.assert_close(problem.jacobian(problem.x, 1).jacobian, named.jacobian[:, :1])
    chunks = replace(problem, chunk=3).jacobian(problem.x, 10)
    assert torch.equal(chunks.columns, result.columns)
    nothing = problem.select(torch.zeros(0, dtype=torch.long)).jacobian(problem.x[:0], 2)
    assert nothing.jacobian.shape == (0, 2, *problem.x.shape[1:])
    assert nothing.columns.shape == (0, 2)


def test_climbing_toward_a_column_follows_the_rows_taken() -> None:
    problem = posed()
    columns = (problem.y + 1 + torch.arange(N) % 2) % 3
    toward = replace(problem, objective=LossOverride(problem.objective, "toward", columns))
    rows = torch.tensor([7, 2, 5])
    g, verdict = toward.gradient(problem.x)
    few, judged = toward.select(rows).gradient(problem.x[rows])
    torch.testing.assert_close(few, g[rows])
    torch.testing.assert_close(judged.loss, verdict.loss[rows])
    plain = problem.probe(problem.x)
    assert torch.equal(verdict.is_final, plain.is_final)
    torch.testing.assert_close(verdict.harm, plain.harm)


def test_an_attack_that_uses_all_steps_has_no_final_verdict() -> None:
    problem = posed()
    wrong = replace(problem, y=(problem.y + 1) % 3)
    assert wrong.probe(wrong.x).is_final.all()
    endless = replace(wrong, objective=LossOverride(wrong.objective, use_all_steps=True))
    assert not endless.probe(wrong.x).is_final.any()


def test_a_victim_without_gradients_is_refused_by_name() -> None:
    victim = small_victim(3)

    def blocked(x: Images) -> Output:
        return Output(victim(x).logits.detach())

    problem = replace(posed(), judge=blocked)
    with pytest.raises(VictimError, match="expected a victim with gradients"):
        problem.gradient(problem.x)
    with pytest.raises(VictimError, match="expected a victim with gradients"):
        problem.jacobian(problem.x, problem.y[:, None])


def test_nearest_keeps_the_closest_success_and_else_the_clean_image() -> None:
    problem = posed()
    nearest = Nearest(problem)
    yes = torch.ones(N, dtype=torch.bool)
    nearest.keep((problem.x + 0.2).clamp(0, 1), yes & (torch.arange(N) != 0))
    nearest.keep(problem.x[:3] + 0.1, yes[:3] & torch.tensor([False, True, True]), torch.arange(3))
    nearest.keep(problem.x[1:3] + 0.15, yes[:2], torch.tensor([1, 2]))  # farther than what is kept
    torch.testing.assert_close(nearest.best[0], problem.x[0])
    torch.testing.assert_close(nearest.best[1], problem.x[1] + 0.1)
    assert nearest.size[0] == torch.inf
    torch.testing.assert_close(nearest.size[1:3], torch.full((2,), 0.1))
    torch.testing.assert_close(nearest.size[3:], torch.full((N - 3,), 0.2))


def test_a_way_that_does_not_count_is_no_zero_gradient() -> None:
    victim = small_victim(5)
    x = grey_images(6)
    y = (victim(x).logits > 0).long()
    y[:3, 1:] = -1  # half of the images carry one label
    problem = Problem(x, y, Ball("linf", 0.1), AnyFinding(), victim)
    problem.jacobian(x, 5)
    assert problem.counter.zero == 0
