"""Input transforms: against independent references, and attacked through their guides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle

from defenses.jpeg import jpeg
from defenses.transforms import (
    bit_depth,
    denoise,
    median_filter,
    random_resize_pad,
    resize_pad,
    total_variation,
)
from robustbench_med.defense import Defended
from robustbench_med.errors import SpecError
from robustbench_med.rng import seeded
from robustbench_med.types import Images
from robustbench_med.victim import InputContract, Victim
from tests.defenses.pictures import before, pictures, seen
from tests.toys import small_mask_victim, small_victim

WRAPS: list[Callable[..., Defended]] = [
    bit_depth,
    median_filter,
    jpeg,
    total_variation,
    random_resize_pad,
]


def test_bit_depth_is_numpys_rounding() -> None:
    x = pictures(3, 4, 9, 7)
    for bits in (1, 4, 8):
        top = 2**bits - 1
        found = before(bit_depth(small_victim(2, channels=4), bits=bits), x)
        np.testing.assert_array_equal(found, np.rint(x.numpy() * np.float32(top)) / np.float32(top))
        assert len(found.unique()) <= top + 1


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(2, 3, 8, 11), (1, 1, 6, 5, 7)])
def test_the_median_and_its_guide_are_scipys(size: int, shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    victim = small_victim(2, channels=shape[1], axes=len(shape) - 2)
    expected = ndimage.median_filter(x.numpy(), (1, 1, *[size] * (len(shape) - 2)), mode="reflect")
    defended = median_filter(victim, size=size)
    np.testing.assert_array_equal(before(defended, x), expected)
    np.testing.assert_array_equal(seen(defended, x), expected)


def test_the_median_window_may_mirror_the_whole_image_but_no_more() -> None:
    x = pictures(1, 1, 3, 3)
    victim = Victim(small_victim(2).module, InputContract(channels=1, size=(3, 3)))
    expected = ndimage.median_filter(x.numpy(), (1, 1, 6, 6), mode="reflect")
    np.testing.assert_array_equal(before(median_filter(victim, size=6), x), expected)
    with pytest.raises(SpecError, match=r"expected size in 2\.\.6, got 7"):
        median_filter(victim, size=7)


@pytest.mark.parametrize("shape", [(2, 1, 16, 13), (1, 3, 12, 12), (1, 1, 6, 8, 7)])
@pytest.mark.parametrize("weight", [0.03, 0.2])
def test_total_variation_is_the_minimum_that_scikit_image_finds(
    shape: tuple[int, ...], weight: float
) -> None:
    x = pictures(*shape)
    expected = [
        denoise_tv_chambolle(  # type: ignore[no-untyped-call]
            one.double().numpy(), weight=weight, eps=1e-10, max_num_iter=20000, channel_axis=0
        )
        for one in x
    ]
    found = denoise(x.double(), weight=weight, steps=600)
    away = np.abs(found.numpy() - np.stack(expected))
    assert away.max() < 5e-3
    assert np.sqrt(np.square(away).mean()) < 5e-4
    assert np.abs(np.stack(expected) - x.numpy()).max() > 0.05


def variation(x: Images) -> float:
    return sum(float(x.diff(dim=a).abs().sum()) for a in range(2, x.ndim))


def test_total_variation_falls_with_the_weight_and_the_mean_stays() -> None:
    x = pictures(2, 3, 16, 16)
    victim = small_victim(2, channels=3)
    found = [before(total_variation(victim, weight=w, steps=100), x) for w in (0.01, 0.03, 0.3)]
    sizes = [variation(one) for one in [x, *found]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.5 * sizes[0]
    for one in found:
        torch.testing.assert_close(one.mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)


def test_total_variation_by_default_is_nearer_to_the_minimum_than_scikit_images() -> None:
    x = pictures(4, 1, 32, 32)

    def reference(**how: float) -> np.ndarray[Any, Any]:
        one = [
            denoise_tv_chambolle(  # type: ignore[no-untyped-call]
                i.double().numpy(), weight=0.03, channel_axis=0, **how
            )
            for i in x
        ]
        return np.stack(one)

    exact = reference(eps=1e-10, max_num_iter=5000)
    ours = before(total_variation(small_victim(2)), x).numpy()
    assert np.square(ours - exact).mean() < np.square(reference() - exact).mean()


def test_resize_and_pad_keeps_the_size_and_draws_for_each_image() -> None:
    one = pictures(1, 2, 20, 14).clamp_min(0.1)
    x = one.repeat(40, 1, 1, 1)
    with seeded(0):
        first, second = resize_pad(x, smallest=0.5), resize_pad(x, smallest=0.5)
    with seeded(0):
        assert torch.equal(first, resize_pad(x, smallest=0.5))
    assert first.shape == x.shape
    assert not torch.equal(first, second)
    assert len({image.numpy().tobytes() for image in first}) > 30
    filled = (first > 0).all(1)  # the padding is 0, and the image is not
    high, wide = filled.any(2).sum(1), filled.any(1).sum(1)
    assert torch.equal(filled.sum((1, 2)), high * wide)  # one rectangle each
    assert (int(high.min()), int(wide.min())) >= (10, 7)
    assert int(high.min()) < 14
    assert int(high.max()) > 17
    corners = filled[:, 0, 0], filled[:, 0, -1], filled[:, -1, 0], filled[:, -1, -1]
    assert all(0 < int(corner.sum()) < 40 for corner in corners)
    assert float(((high / 20) - (wide / 14)).abs().max()) <= 0.5 / 20 + 0.5 / 14 + 1e-6


@pytest.mark.parametrize("shape", [(3, 2, 10, 8), (2, 1, 6, 10, 8)])
def test_resize_and_pad_near_the_full_size_changes_nothing(shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    torch.testing.assert_close(resize_pad(x, smallest=0.999), x, atol=1e-5, rtol=0)


def test_a_shrunk_ramp_is_the_ramp_of_the_new_size() -> None:
    """A bilinear resize of a straight line is one: its ends and slope are known."""
    n = 20
    ramp = ((torch.arange(n) + 0.5) / n).view(1, 1, 1, n).expand(30, 1, n, n)
    with seeded(1):
        found = resize_pad(ramp.contiguous(), smallest=0.5)
    for image in found[:, 0]:
        rows = (image > 0).any(1).nonzero()[:, 0]
        line = image[rows[0]]
        line = line[line > 0]
        m = len(line)
        expected = (torch.arange(m) + 0.5) / m
        torch.testing.assert_close(line[1:-1], expected[1:-1], atol=1e-5, rtol=0)


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (2, 3, 16, 12), (2, 4, 9, 16), (1, 2, 8, 9, 10)])
def test_shape_kind_and_range_are_kept_and_the_guide_has_a_gradient(
    wrap: Callable[..., Defended], shape: tuple[int, ...]
) -> None:
    x = pictures(*shape)
    defended = wrap(
        replace(
            small_victim(3, channels=shape[1], axes=len(shape) - 2),
            contract=InputContract(channels=shape[1], size=shape[2:]),
        )
    )
    found = before(defended, x)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert float(found.min()) >= -1e-6
    assert float(found.max()) <= 1 + 1e-6
    leaf = x.clone().requires_grad_(True)
    guide = defended.guide or defended.judge
    (g,) = torch.autograd.grad(guide(leaf).logits[:, 0].sum(), leaf)
    assert torch.isfinite(g).all()
    assert float(g.abs().amax()) > 0


@pytest.mark.parametrize("wrap", [bit_depth, jpeg])
def test_the_judge_that_rounds_has_no_gradient(wrap: Callable[..., Defended]) -> None:
    leaf = pictures(2, 1, 16, 16).requires_grad_(True)
    logits = wrap(small_victim(2)).judge(leaf).logits
    (g,) = torch.autograd.grad(logits.sum(), leaf)
    assert not g.any()


def test_the_guide_of_bit_depth_has_the_victims_gradient_at_the_rounded_image() -> None:
    victim = small_victim(3)
    defended = bit_depth(victim, bits=3)
    assert defended.guide is not None
    x = pictures(2, 1, 8, 8)
    leaf, inner = x.clone().requires_grad_(True), before(defended, x).requires_grad_(True)
    (g,) = torch.autograd.grad(defended.guide(leaf).logits[:, 1].sum(), leaf)
    (wanted,) = torch.autograd.grad(victim(inner).logits[:, 1].sum(), inner)
    torch.testing.assert_close(g, wanted)


@pytest.mark.parametrize("wrap", [median_filter, total_variation])
def test_a_gradient_that_is_real_is_the_slope(wrap: Callable[..., Defended]) -> None:
    x = 0.2 + 0.5 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    defended = wrap(small_victim(2))  # no two values are equal, so that a rank has a slope
    direction = pictures(1, 1, 8, 8, seed=5).double() - 0.5
    weights = pictures(1, 1, 8, 8, seed=6).double()
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad((seen(defended, leaf) * weights).sum(), leaf)
    h = 1e-7
    moved = [(before(defended, x + s * h * direction) * weights).sum() for s in (1, -1)]
    slope = (moved[0] - moved[1]) / (2 * h)
    torch.testing.assert_close((g * direction).sum(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_defense_comes_before_what_the_victim_already_does(
    wrap: Callable[..., Defended],
) -> None:
    victim = replace(small_victim(2), before=lambda x: 1 - x, draws=3)
    x = pictures(2, 1, 16, 16)
    defended, bare = wrap(victim), wrap(small_victim(2))
    for one, other in [(before, before), (seen, seen)]:
        with seeded(4):
            found = one(defended, x)
        with seeded(4):
            expected = 1 - other(bare, x)
        torch.testing.assert_close(found, expected)
    assert defended.judge.draws == (8 if wrap is random_resize_pad else 3)


@pytest.mark.parametrize("wrap", [bit_depth, median_filter, jpeg, total_variation])
def test_masks_keep_their_places(wrap: Callable[..., Defended]) -> None:
    defended = wrap(small_mask_victim(3))
    x = pictures(2, 1, 8, 8)
    assert defended.judge(x).logits.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("wrap", "parameters", "text"),
    [
        (bit_depth, {"bits": 0}, r"expected bits in 1\.\.8, got 0"),
        (bit_depth, {"bits": 9}, r"expected bits in 1\.\.8, got 9"),
        (bit_depth, {"bits": True}, r"expected bits in 1\.\.8, got True"),
        (median_filter, {"size": 1}, r"expected size in 2\.\.16, got 1"),
        (jpeg, {"quality": 101}, r"expected quality in 1\.\.100, got 101"),
        (total_variation, {"weight": 0.0}, r"expected weight > 0, got 0\.0"),
        (total_variation, {"weight": float("nan")}, r"expected weight > 0, got nan"),
        (total_variation, {"steps": 0}, r"expected steps >= 1, got 0"),
        (random_resize_pad, {"smallest": 1.0}, r"expected smallest in \(0,1\), got 1\.0"),
        (random_resize_pad, {"draws": 0}, r"expected draws >= 1, got 0"),
    ],
)
def test_bad_parameters_are_refused(
    wrap: Callable[..., Defended], parameters: dict[str, Any], text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        wrap(small_victim(2), **parameters)
