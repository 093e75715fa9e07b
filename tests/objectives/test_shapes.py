"""Shapes: exact on squares, as large as asked, symmetric where they should be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustbench_med.errors import SpecError
from robustbench_med.objectives.shapes import check, replaced

DRAWN = ["heart", "disc", "cross"]


def square(side: int = 15, *, low: int = 5, high: int = 10, axes: int = 2) -> Tensor:
    """Return one mask with a square (cube) of class 1 on background."""
    inside = (torch.arange(side) >= low) & (torch.arange(side) < high)
    target = inside
    for _ in range(axes - 1):
        target = target[..., None] & inside
    return target.long()[None]


def area(y: Tensor, label: int = 1) -> int:
    return int((y == label).sum())


@pytest.mark.parametrize("axes", [2, 3])
def test_shrink_grow_move_and_empty_are_exact(axes: int) -> None:
    y = square(axes=axes)
    for by in (1, 2):
        assert torch.equal(
            replaced(y, 1, "grow", by=by), square(low=5 - by, high=10 + by, axes=axes)
        )
        assert torch.equal(
            replaced(y, 1, "shrink", by=by), square(low=5 + by, high=10 - by, axes=axes)
        )
        assert torch.equal(replaced(y, 1, "move", by=by), y.roll(by, -1))
        assert torch.equal(replaced(y, 1, "move", by=-by), y.roll(-by, -1))
    assert area(replaced(y, 1, "empty")) == 0
    assert area(replaced(y, 1, "shrink", by=3)) == 0
    assert area(replaced(y, 1, "move", by=15)) == 0  # out of the image
    assert area(replaced(y, 1, "grow", by=20)) == y.numel()


@pytest.mark.parametrize("size", [(9, 13), (6, 9, 7)])
@pytest.mark.parametrize("by", [1, 3, 8])
def test_an_organ_grows_by_every_pixel_near_it(size: tuple[int, ...], by: int) -> None:
    y = (torch.rand(2, *size, generator=torch.Generator().manual_seed(by)) < 0.02).long()
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1)
    places = places.view(-1, 1, len(size))
    near = (places - places.view(1, -1, len(size))).abs().amax(-1) <= by
    for i in range(2):
        expected = (near & (y[i].flatten() == 1)).any(1).view(size)
        assert torch.equal(replaced(y, 1, "grow", by=by)[i] == 1, expected)
        expected = (near <= (y[i].flatten() == 0)).all(1).view(size)
        assert torch.equal(replaced(1 - y, 1, "shrink", by=by)[i] == 1, expected)


def test_what_meets_the_border_neither_wraps_nor_shrinks_there() -> None:
    y = square(low=10, high=15)
    moved = replaced(y, 1, "move", by=3)
    assert area(moved) == 5 * 2
    assert not (moved[..., :10] == 1).any()
    shrunk = replaced(y, 1, "shrink", by=1)
    assert torch.equal(shrunk, square(low=11, high=15))


@pytest.mark.parametrize("mask", DRAWN)
@pytest.mark.parametrize("axes", [2, 3])
def test_a_shape_has_the_height_asked_for_and_grows_with_it(mask: str, axes: int) -> None:
    y, side = square(41, low=18, high=23, axes=axes), 41
    areas = []
    for size in (0.2, 0.4, 0.6, 0.8):
        target = replaced(y, 1, mask, size=size)[0] == 1
        rows = target.flatten(axes - 1).any(-1) if axes == 2 else target.any(2).any(0)
        assert abs(int(rows.sum()) - size * side) <= 0.15 * size * side + 2
        assert torch.equal(target, target.flip(-1))  # the organ is in the middle
        areas.append(int(target.sum()))
    assert areas == sorted(set(areas))


def test_shapes_have_the_areas_of_their_formulas() -> None:
    y, radius = square(101, low=50, high=51), 0.4 * 101 / 2
    assert area(replaced(y, 1, "disc", size=0.4)) == pytest.approx(torch.pi * radius**2, rel=0.02)
    assert area(replaced(y, 1, "cross", size=0.4)) == pytest.approx(20 / 9 * radius**2, rel=0.06)
    # the heart curve encloses 3.66 of its own units, which are 1 / 1.2 of ours
    assert area(replaced(y, 1, "heart", size=0.4)) == pytest.approx(
        3.66 / 1.44 * radius**2, rel=0.03
    )


@pytest.mark.parametrize("axes", [2, 3])
def test_a_heart_has_a_cleft_above_and_a_tip_below(axes: int) -> None:
    target = replaced(square(81, low=39, high=42, axes=axes), 1, "heart", size=0.8)[0] == 1
    if axes == 3:
        assert torch.equal(target, target.flip(0))
        target = target[40]
    rows = target.any(1).nonzero()[:, 0]
    top, bottom = target[int(rows[0]) + 1], target[int(rows[-1])]
    assert not top[40]  # the cleft
    assert top[:40].any()
    assert top[41:].any()
    assert bottom[40]  # the tip
    assert bottom.sum() <= 7
    width = target.sum(1)
    assert width[rows[0] : rows[0] + len(rows) // 2].amax() > 2 * width[rows[-1] - len(rows) // 6]


@pytest.mark.parametrize("mask", DRAWN)
def test_a_shape_stands_where_the_organ_stood_or_in_the_middle(mask: str) -> None:
    organ = torch.zeros(2, 41, 61, dtype=torch.long)
    organ[0, 8:13, 18:23] = 1
    target = replaced(organ, 1, mask, size=0.3) == 1
    for i, (row, column) in enumerate(((10, 20), (20, 30))):
        centre = target[i].nonzero().float().mean(0)
        assert abs(float(centre[0]) - row) < 1.5
        assert abs(float(centre[1]) - column) < 0.1


@pytest.mark.parametrize("mask", [*DRAWN, "grow", "shrink", "move", "empty"])
def test_other_classes_and_ignored_pixels_stay(mask: str) -> None:
    y = square()
    y[0, 0, :], y[0, :, 0], y[0, 13:, 13:] = -1, -1, 2
    y[0, 4, 4] = -1
    target = replaced(y, 1, mask, size=0.9, by=3)
    assert torch.equal(target < 0, y < 0)
    changed = target != y
    assert ((target[changed] == 1) | (y[changed] == 1)).all()
    assert set(target[y == 1].tolist()) <= {0, 1}
    alone = replaced(torch.cat([y, square()]), 1, mask, size=0.9, by=3)
    assert torch.equal(alone[0], target[0])  # an image does not see its neighbours
    assert replaced(y[:0], 1, mask).shape == (0, 15, 15)


@pytest.mark.parametrize(
    ("mask", "size", "by", "message"),
    [
        (
            "star",
            0.4,
            3,
            "expected mask in heart, disc, cross, empty, shrink, grow, move, got 'star'",
        ),
        ("heart", 0.0, 3, r"expected size in \(0, 1\], got 0.0"),
        ("heart", 1.1, 3, r"expected size in \(0, 1\], got 1.1"),
        ("shrink", 0.4, 0, "expected by >= 1 pixels to shrink, got 0"),
        ("grow", 0.4, -1, "expected by >= 1 pixels to grow, got -1"),
        ("move", 0.4, 0, "expected by != 0 pixels to move, got 0"),
        ("move", 0.4, 10**22, "expected by below 9 pixels, the smallest side, to move, got 1000"),
        ("move", 0.4, -9, "expected by below 9 pixels, the smallest side, to move, got -9"),
        ("grow", 0.4, 9, "expected by below 9 pixels, the smallest side, to grow, got 9"),
        ("shrink", 0.4, 9, "expected by below 9 pixels, the smallest side, to shrink, got 9"),
    ],
)
def test_a_shape_that_cannot_be_drawn_is_refused(
    mask: str, size: float, by: int, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check(mask, size=size, by=by, side=9)
    check("heart", size=0.4, by=10, side=9)  # `by` is none of a heart's
    check("move", size=0.4, by=-8, side=9)
