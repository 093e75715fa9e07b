"""What a device does before its network: closed forms of the values and of their gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import robustbench_med as rm
from robustbench_med.cards import DatasetCard, NativeRange
from robustbench_med.errors import SpecError, VictimError
from robustbench_med.models.guide import bfloat16
from robustbench_med.models.load import describe, load_victim, of_module
from robustbench_med.models.preprocess import Preprocess, parse_preprocess
from robustbench_med.stored_images import to_image_units
from tests.bench.toys import card_of
from tests.toys import Linear

HU = NativeRange(unit="HU", low=-1024, high=3071)
Data = dict[str, Any]


def ct(*size: int, channels: int = 1, **fields: Any) -> DatasetCard:  # noqa: ANN401
    return card_of(torch.zeros(1, channels, *size), 2, native=HU, **fields)


def chain(text: str, data: DatasetCard) -> Preprocess:
    steps = parse_preprocess(text, data)
    assert steps is not None
    return steps


def hu(*values: float) -> Tensor:
    """Return an image (1, 1, 1, w) of stored values, in image units and double precision."""
    return (torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1) + 1024) / 4095


def gradient(steps: Preprocess, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(steps(leaf).sum(), leaf)
    return g


def test_a_window_maps_its_ends_to_0_and_1_and_has_a_slope_inside_alone() -> None:
    steps = chain("window(40, 400)", ct(1, 6))
    x = hu(-1024, -160.5, -159.5, 40, 239.5, 1000)
    expected = torch.tensor([0, 0, 0.5 / 400, 0.5, 399.5 / 400, 1], dtype=torch.float64)
    assert torch.allclose(steps(x).flatten(), expected, atol=1e-12)
    slope = torch.tensor([0, 0, 1, 1, 1, 0], dtype=torch.float64) * 4095 / 400
    assert torch.allclose(gradient(steps, x).flatten(), slope, atol=1e-9)
    assert steps.windows == (400 / 4095,)


def test_a_window_may_be_stated_by_its_ends() -> None:
    x = hu(-300, 0, 100, 900)
    by_ends = chain("window(low=-160, high=240)", ct(1, 4))
    assert torch.equal(by_ends(x), chain("window(40, 400)", ct(1, 4))(x))


def test_several_windows_become_channels() -> None:
    steps = chain("windows([40, 80], [80, 200], [600, 2800])", ct(1, 1))
    assert (steps.channels, steps.windows) == (3, (80 / 4095, 200 / 4095, 2800 / 4095))
    expected = torch.tensor([60 / 80, 80 / 200, 860 / 2800], dtype=torch.float64)
    assert torch.allclose(steps(hu(60))[0, :, 0, 0], expected, atol=1e-12)


def test_clip_and_native_are_in_the_unit_of_the_data() -> None:
    steps = chain("clip(-100, 300), native(), normalise(100, 50)", ct(1, 4))
    expected = torch.tensor([-4.0, -2.0, 0.0, 4.0], dtype=torch.float64)
    x = hu(-500, 0, 100, 1000)
    assert torch.allclose(steps(x).flatten(), expected, atol=1e-9)
    slope = torch.tensor([0, 4095 / 50, 4095 / 50, 0], dtype=torch.float64)
    assert torch.allclose(gradient(steps, x).flatten(), slope, atol=1e-9)


def test_a_range_of_a_library_is_a_scale() -> None:
    eight_bit = card_of(torch.zeros(1, 1, 1, 3), 2)
    steps = chain("scale(-1024, 1024)", eight_bit)  # as torchxrayvision reads images
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert steps(x).flatten().tolist() == [-1024, 0, 1024]
    assert steps.spans == (2048.0,)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(5, 7), (23, 40), (32, 9)])
def test_resize_is_that_of_torch_in_two_dimensions(size: tuple[int, int], antialias: bool) -> None:
    x = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = chain(f"resize{(*size,)}"[:-1] + f", antialias={antialias})", ct(16, 24, channels=3))
    expected = functional.interpolate(x, size, mode="bilinear", antialias=antialias)
    assert torch.allclose(steps(x), expected, atol=1e-9)


def test_resize_is_that_of_torch_in_three_dimensions() -> None:
    x = torch.rand(1, 1, 6, 8, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = chain("resize(9, 5, 10, antialias=False)", ct(6, 8, 10))
    expected = functional.interpolate(x, (9, 5, 10), mode="trilinear")
    assert torch.allclose(steps(x), expected, atol=1e-9)


def test_an_antialiased_resize_spreads_its_gradient_over_every_pixel() -> None:
    g = gradient(chain("resize(2, 2)", ct(8, 8)), torch.rand(1, 1, 8, 8, dtype=torch.float64))
    assert (g > 0).all()
    assert float(g.sum()) == pytest.approx(4)  # each row of the matrix sums to one
    sparse = gradient(
        chain("resize(2, 2, antialias=False)", ct(8, 8)), torch.rand(1, 1, 8, 8).double()
    )
    assert int((sparse == 0).sum()) == 48


def test_a_resize_first_seen_in_inference_mode_has_a_gradient() -> None:
    steps = chain("resize(3, 3)", ct(7, 11))
    with torch.inference_mode():
        steps(torch.rand(1, 1, 7, 11))
    assert float(gradient(steps, torch.rand(1, 1, 7, 11)).sum()) == pytest.approx(9)


def test_one_side_is_the_shorter_one_and_a_crop_is_the_centre() -> None:
    steps = chain("resize(8), crop(6)", ct(16, 32))
    assert steps.shown == (6, 6)
    x = torch.arange(32.0).view(1, 1, 1, 32).expand(1, 1, 16, 32)
    wide = chain("resize(8)", ct(16, 32))(x)
    assert wide.shape == (1, 1, 8, 16)
    assert torch.equal(steps(x), wide[..., 1:7, 5:11])


def test_gradients_of_a_whole_chain_are_those_of_differences() -> None:
    text = "window(40, 400), resize(5, 4), crop(4, 3), stack(3), normalise([0.5, 0.4, 0.3], 0.25)"
    steps = chain(text, ct(9, 7))
    x = hu(*torch.linspace(-150, 230, 63).tolist()).view(1, 1, 9, 7)
    assert torch.autograd.gradcheck(steps, x.requires_grad_(True))


@pytest.mark.parametrize(
    ("text", "data", "message"),
    [
        ("windw(40, 400)", ct(8, 8), "expected a step in window, windows, clip"),
        ("window(40)", ct(8, 8), "expected window(centre, width) or window(low=..., high=...)"),
        ("window(40, -400)", ct(8, 8), "expected a window of positive width, got 240..-160"),
        ("window(9000, 10)", ct(8, 8), "expected a window within HU -1024..3071, got 8995..9005"),
        ("normalise(0.5, 0.5), window(40, 400)", ct(8, 8), "before a window, scale, native"),
        ("window(40, 400)", card_of(torch.zeros(1, 1, 8, 8), 2, native_range="?"), "have a unit"),
        ("resize(8, 8, 8)", ct(8, 8), "expected one side or 2, got 3"),
        ("resize(0, 8)", ct(8, 8), "expected sides in 1..4096, got 0, 8"),
        ("crop(9)", ct(8, 8), "expected a crop within [8, 8], got [9, 9]"),
        ("crop(4)", ct(8, 8, task="segmentation"), "sees the whole image for masks, got a crop"),
        ("stack(3)", ct(8, 8, channels=3), "expected images of one channel, got 3"),
        ("normalise([1, 2], 1)", ct(8, 8), "expected 1 number or 1, got 2"),
        ("normalise(0, 0)", ct(8, 8), "expected std above 0, got 0"),
        ("import os", ct(8, 8), "expected steps like window(40, 400), resize(224, 224)"),
        ("window(exit(), 1)", ct(8, 8), "expected literal values"),
    ],
)
def test_wrong_steps_are_refused_in_one_line(text: str, data: DatasetCard, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        parse_preprocess(text, data)
    assert "\n" not in str(caught.value)


# --- in a victim ---------------------------------------------------------------------------------


class Means(nn.Module):
    """One logit for each of two classes: the mean of the image, up and down."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([-mean, mean], 1)


def test_a_victim_windows_the_stored_image() -> None:
    data = ct(6, 8)
    text = "window(40, 400), resize(3, 4), stack(3)"
    loaded = of_module(Means(), data, preprocess=text, mean=[0.5, 0.5, 0.5], std=[0.5, 0.25, 1.0])
    assert loaded.card.preprocess == text
    stored = torch.full((2, 1, 6, 8), 140, dtype=torch.int16)  # 0.75 of the window
    x = to_image_units(stored, HU).requires_grad_(True)
    logits = loaded.victim(x).logits
    expected = (0.25 / 0.5 + 0.25 / 0.25 + 0.25 / 1.0) / 3
    assert logits[:, 1].tolist() == pytest.approx([expected, expected], abs=1e-5)
    (g,) = torch.autograd.grad(logits[:, 1].sum(), x)
    slope = (1 / 0.5 + 1 / 0.25 + 1 / 1.0) / 3 * 4095 / 400
    assert float(g[0].sum()) == pytest.approx(slope, rel=1e-5)


def test_the_hash_of_a_victim_holds_its_steps() -> None:
    hashes = {
        of_module(Means(), ct(6, 8), preprocess=text).sha256
        for text in ("", "window(40, 400)", "window(40, 401)")
    }
    assert len(hashes) == 3
    assert of_module(Means(), ct(6, 8)).sha256 in hashes


def test_masks_come_back_at_the_size_of_the_file() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2:] == (4, 4)
            return torch.cat([0.5 - x, x - 0.5], 1)

    data = ct(8, 8, task="segmentation")
    victim = of_module(Bright(), data, preprocess="window(0, 1000), resize(4, 4)").victim
    x = torch.zeros(1, 1, 8, 8)
    x[..., 4:] = 1
    called = victim(x).logits.argmax(1)
    assert torch.equal(called, (x[:, 0] > 0.5).long())


def test_masks_may_be_read_in_the_size_of_the_network_in_bfloat16() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    victim = of_module(network.eval(), ct(20, 20), preprocess="resize(8, 8), stack(3)").victim
    x = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bfloat16(victim)(x).logits, victim(x).logits, atol=0.1)


def test_a_dataset_may_state_the_steps_of_every_model() -> None:
    network = Linear(torch.ones(2, 12), torch.zeros(2))
    data = ct(6, 8, preprocess="resize(3, 4)")
    assert of_module(network, data).card.preprocess == "resize(3, 4)"
    with pytest.raises(VictimError, match=r"its own size, as in --preprocess \"resize\(224, 224\)"):
        of_module(network, data, preprocess="none")


def test_a_shipped_victim_reads_other_images_through_steps() -> None:
    data = card_of(torch.zeros(1, 1, 100, 90), 4)
    chest = rm.load_dataset("phantom_chest").card
    data = data.model_copy(update={"classes": chest.classes})
    sides = ", ".join(map(str, chest.size))
    with pytest.raises(VictimError, match=re.escape(f'add --preprocess "resize({sides})"')):
        load_victim("chest_resnet", data)
    name = f"chest_resnet(preprocess='resize({sides})')"
    loaded = load_victim(name, data)
    assert describe(name, data) == (loaded.card, loaded.sha256)
    assert loaded.card.name == name
    x = torch.rand(2, 1, 100, 90, generator=torch.Generator().manual_seed(0))
    small = functional.interpolate(x, chest.size, mode="bilinear", antialias=True)
    expected = load_victim("chest_resnet", chest).victim.logits(small)
    assert torch.allclose(loaded.victim.logits(x), expected, atol=1e-4)
    assert loaded.sha256 != load_victim("chest_resnet", chest).sha256


def test_a_handle_reads_the_window_in_the_unit_of_other_data(tmp_path: Path) -> None:
    other = NativeRange(unit="HU", low=-2000, high=2000)
    model = rm.load_model(Means(), dataset=_dataset(ct(6, 8)), preprocess="window(0, 100)")
    again = rm.model_handle.resolve_model(model, card_of(torch.zeros(1, 1, 6, 8), 2, native=other))
    loaded = again[1]
    assert loaded is not None
    x = torch.full((2, 1, 6, 8), 0.5)  # 0 HU there, the middle of the window
    assert loaded.victim(x).logits[:, 1].tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def _dataset(card: DatasetCard) -> Any:  # noqa: ANN401 - a dataset
    from robustbench_med.datasets.dataset import Dataset, SplitName

    def read(split: SplitName) -> Any:  # noqa: ANN401
        raise AssertionError(split)

    return Dataset(card, read)
