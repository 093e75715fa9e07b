"""UAP against ART: seconds to fit, and the share of other images it breaks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks.universal import uap, uap_gradient
from benchmarks.conftest import Arena, classifier, draws

EPS, EPOCHS = 8 / 255, 5


def ours(train: Arena) -> Callable[[], Tensor]:
    problem = train.problem(EPS)
    return lambda: uap(problem, rng=draws(train), epochs=EPOCHS).pattern


def ours_gradient(train: Arena) -> Callable[[], Tensor]:
    problem = train.problem(EPS)
    return lambda: uap_gradient(problem, rng=draws(train)).pattern


def art(train: Arena) -> Callable[[], Tensor]:
    from art.attacks.evasion import UniversalPerturbation

    attack = UniversalPerturbation(
        classifier(train),
        attacker="deepfool",
        attacker_params={"max_iter": 10, "verbose": False},
        delta=0.0,
        max_iter=EPOCHS,
        eps=EPS,
        norm="inf",
        batch_size=32,
        verbose=False,
    )

    def fit() -> Tensor:
        attack.generate(train.x.numpy())
        return torch.from_numpy(attack.noise[0])

    return fit


@pytest.mark.parametrize("contender", [ours, ours_gradient, art])
def test_uap(
    contender: Callable[[Arena], Callable[[], Tensor]],
    halves: tuple[Arena, Arena],
    contest: Callable[..., None],
) -> None:
    train, test = halves
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        fit = contender(train)

        def applied() -> Tensor:
            return (test.x + fit().clamp(-EPS, EPS)).clamp(0, 1)

        contest("UAP, other images", contender.__name__, applied, arena=test)
