"""Universal: the pattern obeys the ball, applying it never changes it, a patch keeps its place."""

from __future__ import annotations

import itertools

import pytest
import torch

from robustbench_med.ball import Ball
from robustbench_med.cards import Norm
from robustbench_med.errors import SpecError
from robustbench_med.universal import Additive, Patch, Position, Universal, pattern_ball
from tests.toys import draws

SHAPES = ((7, 1, 12, 9), (3, 3, 10, 10), (2, 1, 8, 9, 7))


def images(shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x[x < 0.2], x[x > 0.8] = 0, 1  # a black background and burnt-in white
    return x


@pytest.mark.parametrize(("norm", "shape"), list(itertools.product(("linf", "l2"), SHAPES)))
def test_additive_is_in_the_ball_and_its_control_has_its_norm(
    norm: Norm, shape: tuple[int, ...]
) -> None:
    x, ball = images(shape), Ball(norm, 0.1)
    fitted = Additive(ball.bound(torch.randn(1, *shape[1:], generator=torch.manual_seed(1)))[0])
    selected = fitted.pattern.clone()
    z = fitted.apply(x, ball, draws(len(x)))
    assert (ball.size(z, x) <= 0.1 * 1.0001).all()
    assert z.min() >= 0
    assert z.max() <= 1
    assert torch.equal(fitted.pattern, selected)  # the box of an image never leaks into it
    control = fitted.control(ball, draws(1))
    zero = torch.zeros_like(selected[None])
    torch.testing.assert_close(
        ball.size(control.pattern[None], zero), ball.size(selected[None], zero), rtol=1e-5, atol=0
    )
    assert not torch.equal(control.pattern, fitted.control(ball, draws(1, seed=1)).pattern)
    assert isinstance(control, Universal)
    if norm == "linf":
        assert (control.pattern.abs() == selected.abs().max()).all()
    cosine = torch.cosine_similarity(control.pattern.flatten(), selected.flatten(), dim=0)
    assert cosine.abs() < 0.35


def test_additive_honours_channels_and_region() -> None:
    x = images((4, 2, 8, 8))
    region = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    region[..., 4:] = False
    ball = Ball("l2", 0.5, channels=(1,), region=region)
    control = Additive(torch.full((2, 8, 8), 0.1)).control(ball, draws(1))
    assert not control.pattern[0].any()
    assert not control.pattern[1, :, 4:].any()
    z = Additive(torch.full((2, 8, 8), 0.1)).apply(x, ball, draws(4))
    assert torch.equal(z[:, 0], x[:, 0])
    assert torch.equal(z[..., 4:], x[..., 4:])
    assert (z != x).any()


def test_a_norm_without_a_control_and_several_radii_are_refused() -> None:
    with pytest.raises(SpecError, match="expected a norm with a random control .l2, linf., got l1"):
        Additive(torch.zeros(1, 4, 4)).control(Ball("l1", 1.0), draws(1))
    with pytest.raises(SpecError, match="expected one eps for all images, got 0.1..0.2"):
        pattern_ball(Ball("linf", torch.tensor([0.1, 0.2])))
    assert pattern_ball(Ball("linf", torch.tensor([0.5, 0.5]))).eps == 0.5


@pytest.mark.parametrize("position", ["random", "centre", "corner"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_unturned_patch_is_pasted_pixel_by_pixel(
    shape: tuple[int, ...], position: Position
) -> None:
    x = torch.full(shape, 0.5)
    axes, side = len(shape) - 2, 4
    values = 0.6 + 0.4 * torch.rand(shape[1], *(side,) * axes, generator=torch.manual_seed(0))
    eps = float(values.numel())
    z = Patch(values, position=position).apply(x, Ball("l0", eps), draws(len(x)))
    changed = z != x
    assert (changed.flatten(1).sum(1) == eps).all()
    corners = set()
    for single, where in zip(z, changed, strict=True):
        first = where.nonzero().amin(0).tolist()[1:]
        corners.add(tuple(first))
        window = single[(slice(None), *(slice(i, i + side) for i in first))]
        torch.testing.assert_close(window, values, atol=1e-5, rtol=0)
    if position == "random" and len(x) == 7:
        assert len(corners) > 3
    if position == "corner":
        assert corners == {(0,) * axes}
    if position == "centre":
        assert corners == {tuple((n - side + 1) // 2 for n in shape[2:])}


@pytest.mark.parametrize("shape", [(200, 1, 16, 13), (200, 3, 12, 12), (60, 1, 9, 9, 8)])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (1.0, 1.0)])
def test_a_turned_patch_changes_at_most_eps_values(
    shape: tuple[int, ...], scale: tuple[float, float]
) -> None:
    x = images(shape)
    values = torch.rand(shape[1], *(5,) * (len(shape) - 2), generator=torch.manual_seed(0))
    ball = Ball("l0", float(values.numel()))
    patch = Patch(values, scale, 45.0)
    pasted, inside = patch.paste(x, draws(len(x)))
    z = patch.apply(x, ball, draws(len(x)))
    size = ball.size(z, x)
    assert (size <= ball.eps).all()
    assert size.median() > 0.2 * values.numel()
    assert torch.equal(z[~inside.expand_as(z)], x[~inside.expand_as(z)])  # bit by bit
    assert z.min() >= 0
    assert z.max() <= 1
    box = inside[:, 0].flatten(1).sum(1)
    assert (box > 0).all()
    if scale == (1.0, 1.0):  # the raw square sometimes holds more: why apply projects
        assert (box * shape[1] > ball.eps).any()


def test_where_a_patch_lies_does_not_depend_on_batch_or_order() -> None:
    x, rng = images((12, 1, 12, 12)), draws(12)
    patch = Patch(torch.rand(1, 4, 4, generator=torch.manual_seed(0)), (0.8, 1.0), 20.0)
    ball = Ball("l0", 16.0)
    whole = patch.apply(x, ball, rng)
    order = torch.randperm(12, generator=torch.manual_seed(1))
    chunks = [patch.apply(x[r], ball, rng.select(r)) for r in order.split(5)]
    assert torch.equal(torch.cat(chunks), whole[order])


def test_the_patch_control_holds_the_same_values_elsewhere() -> None:
    patch = Patch(torch.rand(3, 4, 4, generator=torch.manual_seed(0)), (0.8, 1.0), 20.0, "centre")
    control = patch.control(Ball("l0", 48.0), draws(1))
    assert not torch.equal(control.pattern, patch.pattern)
    assert torch.equal(control.pattern.flatten().sort()[0], patch.pattern.flatten().sort()[0])
    assert (control.scale, control.rotation, control.position) == ((0.8, 1.0), 20.0, "centre")


def test_a_patch_turns_and_shrinks_as_asked() -> None:
    x = torch.zeros(64, 1, 21, 21)
    values = torch.ones(1, 9, 9)
    straight = Patch(values, (0.5, 0.5)).paste(x, draws(64))[1].flatten(1).sum(1)
    assert ((straight >= 16) & (straight <= 25)).all()  # 4.5 pixels a side
    turned = Patch(values, rotation=45.0).paste(x, draws(64))[1][:, 0]
    rows = turned.any(2).sum(1)
    assert rows.max() > 11  # the diagonal is 12.7 pixels long
    assert rows.min() < 11
