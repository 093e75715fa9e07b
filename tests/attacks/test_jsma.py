"""JSMA: the steps of the paper, the exact best pair in linear memory, and ART changes no less."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attacks import jsma as module
from attacks.jsma import _product, best_pair, jsma
from robustbench_med.ball import Ball
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from robustbench_med.types import Output
from robustbench_med.victim import Victim
from tests.toys import (
    Linear,
    draws,
    problem_of,
    small_victim,
    victim_of,
)


@cache
def digits(side: int = 8, k: int = 10) -> tuple[Victim, Tensor, Tensor]:
    """Return a victim trained on handwritten digits, and 24 test images it calls right."""
    data = load_digits()
    x = torch.tensor(data.images).float()[:, None] / 16
    y = torch.tensor(data.target) % k
    if side != 8:
        x = nn.functional.interpolate(x, size=side, mode="bilinear").clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=side // 8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * ((side - 3) // (side // 8) + 1) ** 2, 32),
            nn.ReLU(),
            nn.Linear(32, k),
        )
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        for _ in range(6):
            for rows in torch.randperm(1400).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
                optimizer.step()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    victim = victim_of(module, size=(side, side))
    right = (victim.logits(x[1400:]).argmax(1) == y[1400:]).nonzero()[:24, 0] + 1400
    return victim, x[right], y[right]


def posed(side: int = 8, k: int = 10) -> Problem:
    return problem_of(*digits(side, k), eps=torch.inf, norm="l0")


# --- the best pair -------------------------------------------------------------------------------


def brute(gain: Tensor, loss: Tensor) -> Tensor:
    """Return the largest saliency over the full table of pairs, `(b,)`."""
    table = _product(gain[:, :, None] + gain[:, None], loss[:, :, None] + loss[:, None])
    value = torch.arange(gain.shape[1]) // 2
    return table.masked_fill(value[:, None] == value, -1.0).flatten(1).amax(1)


KINDS = {
    "independent": lambda a, b: (a, b),
    "opposed": lambda a, b: (a, -a + 0.01 * b),  # every move is on the front
    "alike": lambda a, b: (a, a),
    "circle": lambda a, b: ((a.cos()), (a.sin())),
    "ties": lambda a, b: (a.round(), b.round()),
    "worthless": lambda a, b: (-a.abs(), b),
    "closed": lambda a, b: (a.masked_fill(b > 0.3, -torch.inf), b.masked_fill(b > 0.3, -torch.inf)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moves", [2, 4, 6, 40, 600])
def test_the_pair_is_the_best_of_all(kind: str, moves: int) -> None:
    g = torch.Generator().manual_seed(moves)
    a, b = torch.randn(8, moves, generator=g), torch.randn(8, moves, generator=g)
    gain, loss = KINDS[kind](a, b)
    best, pair = best_pair(gain, loss)
    torch.testing.assert_close(best, brute(gain, loss), rtol=0, atol=0)
    worth = best > 0
    assert (pair[worth, 0] // 2 != pair[worth, 1] // 2).all()  # not one value both ways
    there = _product(gain.gather(1, pair).sum(1), loss.gather(1, pair).sum(1))
    torch.testing.assert_close(there[worth], best[worth])


def test_a_move_and_its_twin_may_both_beat_the_partner() -> None:
    # the two best are one value moved up and down: the partner has two betters, and is needed
    gain, loss = torch.tensor([[9.0, 8.0, 1.0, 0.5]]), torch.tensor([[9.0, 8.0, 1.0, 0.5]])
    best, pair = best_pair(gain, loss)
    assert best.item() == 100
    assert pair.sort().values.tolist() == [[0, 2]]


# --- the paper -----------------------------------------------------------------------------------


def literal(victim: Victim, x: Tensor, y: int, target: int, steps: int) -> Tensor:
    """Return what Algorithm 3 makes of one black image with theta = 1, pair by pair.

    Eq. 8 on a table of all pairs; alpha and beta from the gradient of each logit.
    """
    z = x.clone()
    open_ = torch.ones(x.numel(), dtype=torch.bool)
    for _ in range(steps):
        jacobian = torch.autograd.functional.jacobian(lambda v: victim(v).logits[0], z)
        rows = torch.as_tensor(jacobian).flatten(1)
        if victim(z).logits.argmax() == target:
            break
        alpha = rows[target] - rows[y]
        beta = (rows - rows[target]).sum(0)
        a, b = alpha[:, None] + alpha, beta[:, None] + beta
        table = torch.where((a > 0) & (b < 0), -a * b, 0.0).fill_diagonal_(0.0)
        table = table.masked_fill(~(open_[:, None] & open_), 0.0)
        assert table.max() > 0
        p, q = divmod(int(table.argmax()), x.numel())
        z.view(-1)[[p, q]] = 1.0
        open_[[p, q]] = False
    return z


@pytest.mark.parametrize("k", [2, 3, 10])
def test_steps_are_those_of_the_paper(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAYS", 1)  # the target is the second class: not chosen by cost
    victim = small_victim(k)
    x = torch.zeros(1, 1, 8, 8)
    y, target = victim(x).logits.argsort(descending=True)[0, :2].tolist()
    victim = victim.at(5.0 * nn.functional.one_hot(torch.tensor(y), k))  # no success in sight
    problem = problem_of(victim, x, torch.tensor([y]), eps=torch.inf, norm="l0")
    seen: list[Tensor] = []

    def watched(z: Tensor) -> Output:
        seen.append(z.detach().clone())
        return victim(z)

    jsma(replace(problem, judge=watched), rng=draws(1), both=False, fraction=0.3)
    expected = literal(victim, x, y, target, 5)
    after_five = [z for z in seen if int((z != x).sum()) == 10]
    assert len(after_five) == 1
    assert torch.equal(after_five[0], expected)


def test_one_way_costs_one_gradient_a_step_and_two_ways_two() -> None:
    for k, gradients in ((2, 1), (10, 2)):
        problem = replace(posed(k=k), chunk=1000)
        jsma(problem, rng=draws(24))
        counter = problem.counter
        ways = (k - 1) * 24 if k > 2 else 0  # at the clean image, to choose the way
        forward = counter.forward - 24 - (24 if k > 2 else 0)
        assert counter.backward == ways + gradients * forward


# --- what it changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [1, 2])
@pytest.mark.parametrize("theta", [1.0, 0.3])
def test_the_share_bounds_what_changes(pixels: int, theta: float) -> None:
    problem = posed()
    sizes: list[Tensor] = []

    def watched(z: Tensor) -> Output:
        if z.requires_grad and len(z) == len(problem):
            sizes.append(problem.ball.size(z.detach(), problem.x))
        return problem.judge(z)

    z = jsma(
        replace(problem, judge=watched), rng=draws(24), pixels=pixels, theta=theta, fraction=0.04
    )
    assert torch.stack(sizes).max() <= 2  # 4 % of 64
    size = problem.ball.size(z, problem.x)
    assert ((size > 0) == problem.probe(z).is_final).all()
    assert 0 < int((size > 0).sum()) < 24


def test_one_sign_moves_one_way_only() -> None:
    problem = posed()
    up = jsma(problem, rng=draws(24), both=False, fraction=0.3)
    down = jsma(problem, rng=draws(24), both=False, theta=-1.0, fraction=0.3)
    assert (up >= problem.x).all()
    assert (down <= problem.x).all()
    assert (up > problem.x).any()
    assert (down < problem.x).any()
    assert set((up - problem.x)[up != problem.x].sign().tolist()) == {1.0}
    either = jsma(problem, rng=draws(24), fraction=0.3) - problem.x
    assert (either > 0).any()
    assert (either < 0).any()


def test_a_small_theta_takes_small_steps() -> None:
    problem = posed()
    z = jsma(problem, rng=draws(24), theta=0.1, fraction=0.3)
    moved = (z - problem.x).abs()[z != problem.x]
    assert problem.probe(z).is_final.float().mean() > 0.9
    inside = moved[(moved - 0.1 * (moved / 0.1).round()).abs() < 1e-5]
    assert len(inside) > 0.3 * len(moved)  # the others reached an edge


def test_the_way_of_fewest_values_is_taken() -> None:
    # class 1 is nearer in logits (-1 against -2), class 2 takes one value, class 1 takes four
    w = torch.zeros(3, 16)
    w[1, :8], w[2, 8] = 0.6, 5.0
    victim = victim_of(Linear(w, torch.tensor([0.0, -1.0, -2.0])), size=(4, 4))
    problem = problem_of(
        victim, torch.zeros(1, 1, 4, 4), torch.tensor([0]), eps=torch.inf, norm="l0"
    )
    z = jsma(problem, rng=draws(1), pixels=1, fraction=1.0)
    assert problem.ball.size(z, problem.x).item() == 1
    assert victim(z).logits.argmax().item() == 2


@pytest.mark.parametrize("pixels", [1, 2])
def test_only_what_may_change_does(pixels: int) -> None:
    problem = posed()
    region = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    region[..., :5] = True
    ball = Ball("l0", torch.inf, region=region)
    z = jsma(replace(problem, ball=ball), rng=draws(24), pixels=pixels, fraction=0.5)
    assert torch.equal(z[..., 5:], problem.x[..., 5:])
    assert problem.probe(z).is_final.float().mean() > 0.9


def test_samples_done_at_the_clean_image_and_an_empty_batch() -> None:
    problem = posed(k=2)
    wrong = replace(problem, y=1 - problem.y)
    assert torch.equal(jsma(wrong, rng=draws(24)), wrong.x)
    assert (wrong.counter.forward, wrong.counter.backward) == (24, 0)
    nothing = problem.select(torch.zeros(0, dtype=torch.long))
    assert len(jsma(nothing, rng=draws(0))) == 0


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"pixels": 3}, "expected pixels 1 or 2, got 3"),
        ({"theta": 0.0}, "expected theta != 0, got 0.0"),
        ({"fraction": 0.0}, r"expected fraction in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, r"expected fraction in \(0, 1\], got 1.5"),
    ],
)
def test_bad_parameters_are_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        jsma(posed(), rng=draws(24), **wrong)


# --- against ART, and memory ---------------------------------------------------------------------


def art_candidates(victim: Victim, x: Tensor, target: Tensor, k: int, theta: float) -> Tensor:
    """Return the candidates of ART's SaliencyMapMethod at the paper's share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.evasion import SaliencyMapMethod
        from art.estimators.classification import PyTorchClassifier

        class Logits(nn.Module):
            def forward(self, z: Tensor) -> Tensor:
                return victim(z.float()).logits

        classifier = PyTorchClassifier(
            Logits(), nn.CrossEntropyLoss(), tuple(x.shape[1:]), k, clip_values=(0, 1)
        )
        attack = SaliencyMapMethod(classifier, theta=theta, gamma=0.145, verbose=False)
        return torch.from_numpy(attack.generate(x.numpy(), target.numpy()))


@pytest.mark.parametrize(
    ("side", "k"), [(8, 2), (8, 10), pytest.param(24, 10, marks=pytest.mark.slow)]
)
def test_art_breaks_no_more_and_changes_no_less(side: int, k: int) -> None:
    problem = posed(side, k)
    assert isinstance(problem.judge, Victim)
    z = jsma(problem, rng=draws(24))
    ours = problem.ball.size(z, problem.x).masked_fill(~problem.probe(z).is_final, torch.inf)
    logits = problem.judge.logits(problem.x)
    target = logits.scatter(1, problem.y[:, None], -torch.inf).argmax(1)
    for theta in (1.0, -1.0):
        z = art_candidates(problem.judge, problem.x, target, k, theta)
        theirs = problem.ball.size(z, problem.x).masked_fill(~problem.probe(z).is_final, torch.inf)
        assert ours.isinf().sum() <= theirs.isinf().sum()
        assert ours.median() <= 1.02 * theirs.median()


_ONE_LARGE_IMAGE = """
import resource, torch
from attacks.jsma import jsma
from tests.toys import draws, problem_of, small_victim
torch.set_num_threads(1)
victim = small_victim(3, channels=3, side=224)
x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
problem = problem_of(victim, x, victim(x).logits.argmax(1), eps=torch.inf, norm="l0")
jsma(problem, rng=draws(1), fraction=1e-4)
assert problem.counter.backward > 10
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_an_image_of_3_x_224_x_224_takes_less_than_2_gib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ONE_LARGE_IMAGE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 2
