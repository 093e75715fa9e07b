"""Objectives on masks against torch's cross-entropy and a plain count of pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustbench_med.cards import DatasetCard
from robustbench_med.errors import SpecError
from robustbench_med.objectives import shapes
from robustbench_med.objectives.pixels import LOSSES, PixelLossOverride
from robustbench_med.objectives.segmentation import (
    Damage,
    Masks,
    OneRegion,
    TargetMask,
    confusion,
    dice,
)
from robustbench_med.types import Output
from tests.toys import mask_card

SIZES = [(6, 7), (4, 5, 3)]
NESTED = {"whole": (1, 2, 3), "core": (2, 3), "middle": (2,)}


def drawn(k: int, size: tuple[int, ...], *, n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits and truths; a fifth of the pixels is ignored, class 2 absent from image 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, *size, generator=generator)
    y = torch.randint(max(k, 2), (n, *size), generator=generator)
    y[0][y[0] == 2] = 0
    y[torch.rand(y.shape, generator=generator) < 0.2] = -1
    return logits, y


def plain_dice(called: Tensor, y: Tensor, regions: dict[str, tuple[int, ...]]) -> Tensor:
    """Return the Dice of each image and region, pixel by pixel in sets."""
    result = torch.zeros(len(y), len(regions))
    for i in range(len(y)):
        places = [p for p, label in enumerate(y[i].flatten().tolist()) if label >= 0]
        there, pixels = y[i].flatten().tolist(), called[i].flatten().tolist()
        for r, members in enumerate(regions.values()):
            a = {p for p in places if there[p] in members}
            b = {p for p in places if pixels[p] in members}
            result[i, r] = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [2, 3, 4])
def test_loss_is_the_cross_entropy_of_torch(k: int, size: tuple[int, ...]) -> None:
    logits, y = drawn(k, size)
    loss = Damage(mask_card(k, size=size))(Output(logits), y).loss
    plain = [functional.cross_entropy(a[None], b[None], ignore_index=-1) for a, b in zip(logits, y)]  # noqa: B905
    torch.testing.assert_close(loss, torch.stack(plain))


def test_loss_of_one_logit_is_the_binary_cross_entropy() -> None:
    logits, y = drawn(1, (6, 7))
    loss = Damage(mask_card())(Output(logits), y).loss
    each = functional.binary_cross_entropy_with_logits(logits[:, 0], y.float(), reduction="none")
    counted = y >= 0
    torch.testing.assert_close(loss, (each * counted).sum((1, 2)) / counted.sum((1, 2)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("regions", [None, NESTED])
def test_dice_is_that_of_sets(size: tuple[int, ...], regions: dict[str, tuple[int, ...]]) -> None:
    logits, y = drawn(4, size)
    card = mask_card(4, size=size, regions=regions)
    pixels = Damage(card).pixels(Output(logits), y)
    plain = plain_dice(logits.argmax(1), y, card.parts)
    torch.testing.assert_close(dice(confusion(pixels), pixels.regions), plain)
    verdict = Damage(card)(Output(logits), y)
    torch.testing.assert_close(verdict.harm, 0.5 - plain.mean(1))
    assert torch.equal(verdict.is_final, plain.mean(1) == 0)
    assert torch.equal(verdict.success, plain.mean(1) < 0.5)


def test_an_absent_class_shifts_no_other() -> None:
    y = torch.tensor([[[0, 3, 3, 1]]])  # class 2 is in no image
    logits = 9 * functional.one_hot(torch.tensor([[[0, 3, 0, 1]]]), 4).movedim(-1, 1).float()
    pixels = Damage(mask_card(4)).pixels(Output(logits), y)
    result = dice(confusion(pixels), pixels.regions)
    torch.testing.assert_close(result, torch.tensor([[1.0, 1.0, 2 / 3]]))


def test_an_empty_region_is_perfect_in_both_and_lost_in_one() -> None:
    y = torch.zeros(2, 2, 2, dtype=torch.long)
    logits = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 2, 2).clone()
    logits[1, 1, 0, 0] = 2.0  # one pixel called foreground
    verdict = Damage(mask_card())(Output(logits), y)
    assert verdict.harm.tolist() == [-0.5, 0.5]
    assert verdict.is_final.tolist() == [False, True]


def test_ignored_pixels_count_nowhere_and_in_no_class() -> None:
    logits, y = drawn(3, (6, 7))
    ignored = (y < 0)[:, None].expand_as(logits)
    for objective in _objectives():
        before = objective(Output(logits), y)
        for value in (-50.0, 50.0):  # of the last class: where 255 would be clamped to
            second = logits.clone()
            second[:, -1] = torch.where(ignored[:, -1], value, second[:, -1])
            after = objective(Output(second), y)
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        leaf = logits.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(objective(Output(leaf), y).loss.sum(), leaf)
        assert (g[ignored] == 0).all()
        assert (g.abs().sum(1)[y >= 0] > 0).all()


def _objectives() -> list[Masks]:
    card = mask_card(3)
    return [
        Damage(card),
        OneRegion(card, "organ_2"),
        TargetMask(card, mask="heart", label=1),
    ]


def test_an_image_that_is_ignored_is_not_attacked_and_has_no_loss() -> None:
    y = torch.full((2, 6, 7), -1)
    y[1, 2:4, 2:4] = 1
    logits, _ = drawn(3, (6, 7), n=2)
    for objective in _objectives():
        assert objective.applies(y)[0] == False  # noqa: E712
        verdict = objective(Output(logits), y)
        assert verdict.loss[0] == 0
        assert torch.isfinite(verdict.harm).all()
    assert Damage(mask_card(3)).applies(y)[1]


def test_a_sure_pixel_has_a_gradient() -> None:
    logits = torch.tensor([40.0, -40.0]).view(1, 2, 1, 1).requires_grad_(True)
    y = torch.zeros(1, 1, 1, dtype=torch.long)
    (g,) = torch.autograd.grad(Damage(mask_card())(Output(logits), y).loss.sum(), logits)
    assert (g != 0).all()
    (damaged,) = torch.autograd.grad(functional.cross_entropy(logits, y), logits)
    assert (damaged[0, 0] == 0).all()


# --- one region ----------------------------------------------------------------------------------


@pytest.mark.parametrize("region", NESTED)
def test_one_region_is_scored_alone(region: str) -> None:
    logits, y = drawn(4, (6, 7))
    card = mask_card(4, regions=NESTED)
    plain = plain_dice(logits.argmax(1), y, {region: NESTED[region]})[:, 0]
    verdict = OneRegion(card, region)(Output(logits), y)
    torch.testing.assert_close(verdict.harm, 0.5 - plain)
    swapped = logits.clone()
    inside = list(NESTED[region])
    swapped[:, inside] = logits[:, inside[::-1]]  # who is who inside does not matter
    again = OneRegion(card, region)(Output(swapped), y)
    assert torch.equal(again.harm, verdict.harm)
    torch.testing.assert_close(again.loss, verdict.loss)


def test_a_tie_goes_to_the_first_class_of_all() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)  # called class 1
    y = torch.ones(1, 1, 1, dtype=torch.long)
    assert OneRegion(mask_card(3), "organ_1")(Output(logits), y).harm == -0.5
    assert Damage(mask_card(3))(Output(logits), y).harm == -0.5
    # the pair (0, 0): background
    background_verdict = Damage(mask_card())(Output(torch.zeros(1, 1, 1, 1)), y)
    assert background_verdict.is_final


@pytest.mark.parametrize(
    ("card", "region", "message"),
    [
        (mask_card(3), "liver", "expected a region in organ_1, organ_2, got 'liver'"),
        (mask_card(2, regions={"all": (0, 1)}), "all", "leaves some class out, got 'all'"),
    ],
)
def test_a_region_that_is_none_is_refused(card: DatasetCard, region: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        OneRegion(card, region)


# --- another mask --------------------------------------------------------------------------------


def test_a_target_is_reached_by_drawing_it() -> None:
    _, y = drawn(3, (9, 9))
    objective = TargetMask(mask_card(3), mask="disc", label=1)
    target = objective.target(y)
    logits = 9 * functional.one_hot(target.clamp_min(0), 3).movedim(-1, 1).float()
    verdict = objective(Output(logits), y)
    assert verdict.is_final.all()
    torch.testing.assert_close(verdict.harm, torch.full((5,), 0.25))
    position = (target[0] == 0).nonzero()[0]
    logits[0, 2, position[0], position[1]] = 20.0  # a pixel of another class: as good, and not done
    after = objective(Output(logits), y)
    assert not after.is_final[0]
    assert after.harm[0] == verdict.harm[0]
    leaf = torch.zeros_like(logits).requires_grad_(True)
    (g,) = torch.autograd.grad(objective(Output(leaf), y).loss.sum(), leaf)
    toward = g.gather(1, target.clamp_min(0)[:, None])[:, 0]
    assert (toward[y >= 0] > 0).all()  # climbing raises the target's logit


def test_a_target_is_drawn_once_for_the_truths_it_was_posed_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, y = drawn(3, (9, 9))
    fresh = TargetMask(mask_card(3, size=(9, 9)), mask="disc", label=1)
    target = fresh.target(y)
    count, draw = [0], shapes.replaced

    def counted(*args: Any, **named: Any) -> Tensor:  # noqa: ANN401
        count[0] += 1
        return draw(*args, **named)

    monkeypatch.setattr(shapes, "replaced", counted)
    posed = PixelLossOverride(fresh, LOSSES["masked"]).bind(y)
    rows = torch.tensor([3, 1])
    some = posed.select(rows)
    assert isinstance(some.base, TargetMask)
    assert torch.equal(some.base.target(y[rows]), target[rows])
    for objective, of in ((posed, slice(None)), (some, rows)):
        verdict = objective(Output(logits[of]), y[of])
        assert torch.equal(verdict.harm, fresh(Output(logits[of]), y[of]).harm)
    assert count[0] == 3  # posed, and the two by `fresh`
    for second in (y[rows.flip(0)], y[:1], y[rows] * 0):  # truths of others are drawn anew
        assert torch.equal(some.base.target(second), draw(second, 1, "disc"))
    assert fresh.select(rows) is fresh
    assert torch.equal(fresh.target(y), target)  # what is posed is another


def test_harm_of_an_empty_target_rises_as_the_organ_fades() -> None:
    y = torch.ones(4, 3, 3, dtype=torch.long)
    logits = torch.zeros(4, 2, 9)
    for i, remaining in enumerate((9, 4, 1, 0)):
        logits[i, 1, :remaining], logits[i, 0, remaining:] = 1.0, 1.0
    objective = TargetMask(mask_card(), mask="empty", label=1)
    verdict = objective(Output(logits.view(4, 2, 3, 3)), y)
    torch.testing.assert_close(
        verdict.harm, torch.tensor([-1.75, -0.75 - 4 / 9, -0.75 - 1 / 9, 0.25])
    )
    assert verdict.is_final.tolist() == [False, False, False, True]


def test_what_is_its_target_already_is_not_attacked() -> None:
    y = torch.zeros(2, 5, 5, dtype=torch.long)
    y[1, 2, 2] = 1
    assert TargetMask(mask_card(), mask="empty", label=1).applies(y).tolist() == [False, True]


@pytest.mark.parametrize("label", [0, 3, -1])
def test_a_label_that_is_no_organ_is_refused(label: int) -> None:
    with pytest.raises(SpecError, match=f"expected label in 1..2, got {label}"):
        TargetMask(mask_card(3), mask="heart", label=label)


def test_there_are_no_margins_and_rows_share_the_objective() -> None:
    logits, y = drawn(3, (6, 7))
    for objective in _objectives():
        assert objective.select(torch.tensor([1])) is objective
        with pytest.raises(SpecError, match="for masks, got one that needs margins of classes"):
            objective.margins(Output(logits), y)
        with pytest.raises(SpecError, match="for masks, got one that needs margins of classes"):
            objective.dlr_scale(Output(logits))
