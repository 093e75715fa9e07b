"""PAdam takes the steps of torch's AMSGrad; closed forms of masks are in test_optimum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attacks.padam import padam
from robustbench_med.errors import SpecError
from robustbench_med.problem import Problem
from tests.attacks.test_segmentation_attacks import EPS, STEPS, N, posed, same, worst
from tests.toys import draws


def plain(problem: Problem, beta: float = 0.9, share: float = 0.05) -> list[Tensor]:
    """Return the iterates of torch's Adam on the summed cross-entropy, projected each time."""
    x, delta = problem.x, torch.zeros_like(problem.x, requires_grad=True)
    optimizer = torch.optim.Adam(
        [delta], lr=share * EPS, betas=(beta, 0.999), amsgrad=True, maximize=True
    )
    iterates = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = problem.judge(x + delta).logits
        functional.cross_entropy(logits, problem.y, reduction="sum").backward()
        optimizer.step()
        with torch.no_grad():
            delta.copy_((x + delta.clamp(-EPS, EPS)).clamp(0, 1) - x)
        iterates.append((x + delta).detach().clone())
    return iterates


def test_takes_the_steps_of_amsgrad_and_no_others() -> None:
    problem = posed()
    ours = padam(problem, rng=draws(N), steps=STEPS, rel_stepsize=0.05, random_start=False)
    assert same(ours, worst(problem, iter(plain(problem)))) > 0.98
    assert same(ours, worst(problem, iter(plain(problem, beta=0.0)))) < 0.8  # without momentum
    assert same(ours, worst(problem, iter(plain(problem, share=0.06)))) < 0.8


def test_a_loss_of_labels_is_refused() -> None:
    with pytest.raises(SpecError, match="for masks, got 'dlr'"):
        padam(posed(), rng=draws(N), steps=2, loss="dlr")
    with pytest.raises(SpecError, match="expected loss in .*, got 'ce'"):
        padam(posed(), rng=draws(N), steps=2, loss="ce")
