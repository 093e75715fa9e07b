"""Draws keyed by sample."""

from __future__ import annotations

import torch
from scipy import stats

from robustbench_med.rng import Draws
from tests.toys import draws


def test_uniform_draws_are_uniform_and_never_0_or_1() -> None:
    u = draws(40).uniform(4096)
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


def test_normal_draws_are_normal() -> None:
    assert stats.kstest(draws(40).normal(4096).flatten().numpy(), "norm").pvalue > 1e-3


def test_streams_of_samples_are_uncorrelated() -> None:
    correlation = torch.corrcoef(draws(64).uniform(8192)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.06  # 5 standard errors of 1/sqrt(8192)


def test_draws_do_not_depend_on_batch_or_order() -> None:
    whole = draws(7).uniform(3, 5)
    alone = draws(["s4"]).uniform(3, 5)
    shuffled = draws(["s6", "s4", "s0"]).uniform(3, 5)
    assert torch.equal(whole[4:5], alone)
    assert torch.equal(whole[[6, 4, 0]], shuffled)
    assert torch.equal(draws(7).select(torch.tensor([4])).uniform(3, 5), alone)


def test_seed_and_fork_change_the_draws() -> None:
    base = draws(3)
    assert not torch.equal(base.uniform(9), draws(3, seed=1).uniform(9))
    assert not torch.equal(base.fork("restart", 0).uniform(9), base.fork("restart", 1).uniform(9))
    assert torch.equal(base.fork("restart", 0).uniform(9), draws(3).fork("restart", 0).uniform(9))


def test_keys_are_stable_across_processes() -> None:
    assert Draws.of(0, ["a"]).keys.tolist() == [8348787342930090591]
