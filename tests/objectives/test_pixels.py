"""Losses on pixels against their formulas, image by image and pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attacks.asma import adaptive
from attacks.cospgd import aligned
from attacks.dag import pull
from attacks.segpgd import weighted
from robustbench_med.objectives.loss_override import LossOverride
from robustbench_med.objectives.pixels import (
    LOSSES,
    PixelLoss,
    PixelLossOverride,
    on_pixels,
    with_loss,
)
from robustbench_med.objectives.segmentation import Damage, Masks, OneRegion, TargetMask
from robustbench_med.types import Output
from tests.objectives.test_segmentation import drawn
from tests.toys import mask_card, masks_called, pixel_victim, problem_of

ALL: dict[str, PixelLoss] = {
    **LOSSES,
    "segpgd": weighted,
    "cospgd": aligned,
    "dag": lambda pixels: pull(pixels, torch.full((len(pixels.logits),), 0.4)),
    "asma": adaptive,
}


def _masked(logits: Tensor, y: Tensor) -> Tensor:
    """Of one image, `(k, p)` and `(p,)`, all pixels counted."""
    ce = functional.cross_entropy(logits.T, y, reduction="none")
    return (ce * (logits.argmax(0) == y)).mean()


def _balanced(logits: Tensor, y: Tensor) -> Tensor:
    ce = functional.cross_entropy(logits.T, y, reduction="none") * (logits.argmax(0) == y)
    present = y.unique()
    total = sum((ce[y == k].sum() / (y == k).sum() for k in present), torch.tensor(0.0))
    return total / len(present)


def _jensen_shannon(logits: Tensor, y: Tensor) -> Tensor:
    p, q = logits.softmax(0), functional.one_hot(y, len(logits)).T.float()
    m = (p + q) / 2
    from_truth = -m.gather(0, y[None])[0].log()  # the only class the truth has
    return ((p * (p / m).log()).sum(0) + from_truth).mean() / 2


def _dice(logits: Tensor, y: Tensor) -> Tensor:
    p = logits.softmax(0)
    per_region = [
        (2 * p[k][y == k].sum() + 1) / (p[k].sum() + (y == k).sum() + 1)
        for k in range(1, len(logits))
    ]
    return 1 - torch.stack(per_region).mean()


def _segpgd(logits: Tensor, y: Tensor) -> Tensor:
    ce = functional.cross_entropy(logits.T, y, reduction="none")
    right = logits.argmax(0) == y
    return (0.7 * ce[right].sum() + 0.3 * ce[~right].sum()) / len(y)


def _cospgd(logits: Tensor, y: Tensor) -> Tensor:
    truth = functional.one_hot(y, len(logits)).T.float()
    alike = functional.cosine_similarity(logits.softmax(0), truth, dim=0)
    return (alike.detach() * functional.cross_entropy(logits.T, y, reduction="none")).mean()


FORMULAS: dict[str, tuple[PixelLoss, Callable[[Tensor, Tensor], Tensor]]] = {
    "masked": (LOSSES["masked"], _masked),
    "balanced": (LOSSES["balanced"], _balanced),
    "jensen_shannon": (LOSSES["jensen_shannon"], _jensen_shannon),
    "dice": (LOSSES["dice"], _dice),
    "segpgd": (lambda pixels: weighted(pixels, weight=0.3), _segpgd),
    "cospgd": (aligned, _cospgd),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("size", [(6, 7), (3, 4, 5)])
def test_losses_are_those_of_their_formulas(name: str, size: tuple[int, ...]) -> None:
    loss, formula = FORMULAS[name]
    logits, y = drawn(4, size)
    leaf, other_logits = logits.clone().requires_grad_(True), logits.clone().requires_grad_(True)
    ours = PixelLossOverride(Damage(mask_card(4, size=size)), loss)(Output(leaf), y).loss
    plain = [formula(a[:, b >= 0], b[b >= 0]) for a, b in zip(other_logits, y, strict=True)]
    torch.testing.assert_close(ours, torch.stack(plain))
    (g,) = torch.autograd.grad(ours.sum(), leaf)
    (expected,) = torch.autograd.grad(torch.stack(plain).sum(), other_logits)
    torch.testing.assert_close(g, expected, atol=1e-7, rtol=1e-4)


def goals() -> list[Masks]:
    card = mask_card(3)
    return [Damage(card), OneRegion(card, "organ_2"), TargetMask(card, mask="disc", label=1)]


@pytest.mark.parametrize("name", ALL)
def test_ignored_pixels_neither_pull_nor_weigh(name: str) -> None:
    logits, y = drawn(3, (6, 7))
    for goal in goals():
        objective = PixelLossOverride(goal, ALL[name])
        gradients = []
        for value in (None, -30.0, 30.0):
            leaf = logits.clone()
            if value is not None:
                leaf[:, 2] = torch.where(y < 0, value, leaf[:, 2])
            leaf.requires_grad_(True)
            (g,) = torch.autograd.grad(objective(Output(leaf), y).loss.sum(), leaf)
            assert (g.abs().sum(1)[y < 0] == 0).all()
            gradients.append(g)
        assert gradients[0].any()
        counted = (y >= 0)[:, None].expand_as(logits)
        assert torch.equal(gradients[0][counted], gradients[1][counted])
        assert torch.equal(gradients[0][counted], gradients[2][counted])


@pytest.mark.parametrize("name", ALL)
def test_a_step_along_the_gradient_of_a_loss_does_harm(name: str) -> None:
    """Untargeted it lowers the truth's probability, for a target it raises the target's."""
    logits, y = drawn(3, (6, 7))
    for goal in goals():
        leaf = logits.clone().requires_grad_(True)
        objective = PixelLossOverride(goal, ALL[name])
        (g,) = torch.autograd.grad(objective(Output(leaf), y).loss.sum(), leaf)
        before = goal.pixels(Output(logits), y)
        after = goal.pixels(Output(logits + 0.01 * g / g.abs().amax()), y)
        pulled = ~before.reached & before.counted
        change = ((after.cross_entropy - before.cross_entropy) * pulled).sum(1)
        assert ((change > 0) if before.away else (change < 0)).all()


@pytest.mark.parametrize("name", ["masked", "balanced", "dag", "asma"])
def test_an_image_wholly_wrong_is_climbed_with_all_its_pixels(name: str) -> None:
    """Class 2 is absent and not called, so the image is not done; its neighbour has 5 to go."""
    y = torch.zeros(2, 4, 5, dtype=torch.long)
    y[:, 0], y[:, 3, 3:] = 1, -1
    called = torch.where(y < 0, 2, 1 - y)
    called[1, 1] = 0  # five pixels that are right
    logits = 3.0 * functional.one_hot(called, 3).movedim(-1, 1).float()
    leaf = logits.requires_grad_(True)
    goal = Damage(mask_card(3, size=(4, 5)))
    assert not goal(Output(logits), y).is_final.any()
    (g,) = torch.autograd.grad(PixelLossOverride(goal, ALL[name])(Output(leaf), y).loss.sum(), leaf)
    pulled = g.abs().sum(1) > 0
    assert torch.equal(pulled[0], y[0] >= 0)
    assert torch.equal(pulled[1], (y[1] >= 0) & (called[1] == y[1]))
    assert (g.gather(1, y.clamp_min(0)[:, None])[:, 0][pulled] < 0).all()  # away from the truth


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_climbed_as_if_alone_and_without_nan(name: str) -> None:
    logits, y = drawn(3, (6, 7))
    logits[3] *= 100  # so sure that probabilities round to 0 and 1
    y[4] = -1
    objective = PixelLossOverride(Damage(mask_card(3)), ALL[name])
    together = objective(Output(logits.requires_grad_(True)), y).loss
    (g,) = torch.autograd.grad(together.sum(), logits)
    assert torch.isfinite(g).all()
    assert torch.isfinite(together).all()
    for i in range(5):
        alone = objective(Output(logits[i : i + 1]), y[i : i + 1]).loss
        torch.testing.assert_close(alone[0], together[i])
    assert objective(Output(logits[:0]), y[:0]).loss.shape == (0,)


def test_the_goal_decides_and_use_all_steps_stays() -> None:
    victim, x = pixel_victim(2), torch.rand(3, 1, 8, 8)
    y = masks_called(victim, x)
    wrong = problem_of(victim, x, 1 - y, eps=0.1, objective=Damage(mask_card()))
    for name in LOSSES:
        verdict = with_loss(wrong, name).probe(x)
        assert torch.equal(verdict.harm, wrong.probe(x).harm)
        assert verdict.is_final.all()
        tireless = replace(wrong, objective=LossOverride(wrong.objective, use_all_steps=True))
        once = with_loss(tireless, name)
        assert not once.probe(x).is_final.any()
        again = on_pixels(once, LOSSES["masked"])  # another loss on what climbs one already
        assert isinstance(again.objective, PixelLossOverride) or name == "cross_entropy"
        assert not again.probe(x).is_final.any()


def test_rows_take_their_state_with_them() -> None:
    logits, y = drawn(3, (6, 7))
    state = torch.arange(5.0)
    objective = PixelLossOverride(Damage(mask_card(3)), lambda _, lot: lot, state=(state,))
    rows = torch.tensor([3, 1])
    row_loss = objective.select(rows)(Output(logits[rows]), y[rows]).loss
    assert row_loss.tolist() == [3.0, 1.0]
