"""C&W and DeepFool against ART, foolbox and torchattacks: seconds, and the median distance found.

A small victim of the zoo and few images: ART's C&W takes minutes where ours takes seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attacks.carlini_wagner import carlini_wagner
from attacks.deepfool import deepfool
from benchmarks.conftest import Arena, Plain, classifier, draws

Attack = Callable[[], Tensor]


def ours_cw(arena: Arena) -> Attack:
    problem = arena.problem(torch.inf, norm="l2")
    return lambda: carlini_wagner(problem, rng=draws(arena))


def art_cw(arena: Arena) -> Attack:
    """ART at its defaults (10 searches of 10 steps), but all images at once instead of one."""
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(classifier(arena), batch_size=len(arena.x), verbose=False)
    return lambda: torch.from_numpy(attack.generate(arena.x.numpy()))


def art_cw_one_by_one(arena: Arena) -> Attack:
    """ART at its defaults: one image at a time."""
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(classifier(arena), verbose=False)
    return lambda: torch.from_numpy(attack.generate(arena.x.numpy()))


def foolbox_cw(arena: Arena) -> Attack:
    """Foolbox at its default of 9 searches, 1,000 steps each at most instead of 10,000."""
    import foolbox

    return _foolbox(arena, foolbox.attacks.L2CarliniWagnerAttack(steps=1000))


def ours_deepfool(arena: Arena) -> Attack:
    problem = arena.problem(torch.inf, norm="l2")
    return lambda: deepfool(problem, rng=draws(arena))


def foolbox_deepfool(arena: Arena) -> Attack:
    import foolbox

    return _foolbox(arena, foolbox.attacks.L2DeepFoolAttack())


def torchattacks_deepfool(arena: Arena) -> Attack:
    import torchattacks

    attack = torchattacks.DeepFool(Plain(arena.victim).eval())
    return lambda: attack(arena.x, arena.y)


def _foolbox(arena: Arena, attack: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Attack:
    import foolbox

    model = foolbox.PyTorchModel(Plain(arena.victim).eval(), bounds=(0, 1), device="cpu")
    return lambda: attack(model, arena.x, arena.y, epsilons=None)[1]


@pytest.mark.parametrize("contender", [ours_cw, art_cw, art_cw_one_by_one, foolbox_cw])
def test_carlini_wagner(
    contender: Callable[[Arena], Attack], small_arena: Arena, contest: Callable[..., None]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        attack = contender(small_arena)
        contest("C&W L2", contender.__name__, attack, arena=small_arena, norm="l2")


@pytest.mark.parametrize("contender", [ours_deepfool, foolbox_deepfool, torchattacks_deepfool])
def test_deepfool(
    contender: Callable[[Arena], Attack], small_arena: Arena, contest: Callable[..., None]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        attack = contender(small_arena)
        contest("DeepFool L2", contender.__name__, attack, arena=small_arena, norm="l2", rounds=5)
