"""JPEG: against another reader of libjpeg, and the guide against the codec."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torchvision.io import decode_jpeg, encode_jpeg

from defenses.jpeg import codec_round_trip, differentiable_jpeg, jpeg, tables_of
from robustbench_med.types import Images
from tests.defenses.pictures import before, pictures
from tests.toys import small_victim


def by_torchvision(x: Images, quality: int) -> Images:
    """Return images as torchvision writes and reads them."""
    grey = (x * 255).round().to(torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The image decoding and encoding")
        files = encode_jpeg(list(grey), quality=quality)
        return torch.stack(decode_jpeg(files)).float() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 75, 95])
def test_jpeg_is_torchvisions(channels: int, quality: int) -> None:
    x = pictures(2, channels, 21, 32)
    found = before(jpeg(small_victim(2, channels=channels), quality=quality), x)
    assert found.shape == x.shape
    assert float((found - by_torchvision(x, quality)).abs().max()) <= 2.5 / 255


def test_jpeg_loses_more_at_lower_quality() -> None:
    x = pictures(4, 3, 32, 32)
    low, high = (
        (before(jpeg(small_victim(2, channels=3), quality=q), x) - x).abs().mean() for q in (10, 95)
    )
    assert low > 2 * high > 0


@pytest.mark.parametrize("quality", [10, 75])
def test_the_jpeg_of_the_guide_is_the_codecs_where_it_rounds(quality: int) -> None:
    """Of what the codec changes, the view misses little; of colour, its filter of chroma."""
    tables = tables_of(quality)
    for channels, worst in {1: 0.15, 3: 0.5}.items():
        x = (pictures(2, channels, 21, 32) * 255).round() / 255
        coded = codec_round_trip(x, quality=quality)
        found = differentiable_jpeg(x, tables, rounding=torch.round)
        lost = float((coded - x).abs().mean())
        assert float((found - coded).abs().mean()) < worst * lost


def test_jpeg_codes_slices_and_modalities_as_grey_images_of_their_own() -> None:
    x = pictures(2, 4, 16, 16)
    found = before(jpeg(small_victim(2, channels=4)), x)
    for c in range(4):
        torch.testing.assert_close(found[:, c : c + 1], by_torchvision(x[:, c : c + 1], 75))
    volume = pictures(2, 1, 5, 16, 16)
    found = before(jpeg(small_victim(2, axes=3)), volume)
    for d in range(5):
        torch.testing.assert_close(found[:, :, d], by_torchvision(volume[:, :, d], 75))


def test_jpeg_takes_three_named_modalities_for_grey_images() -> None:
    x = pictures(2, 3, 16, 16)
    plain = small_victim(2, channels=3)
    named = replace(plain, contract=replace(plain.contract, names=("T1", "T2", "FLAIR")))
    colour = replace(plain, contract=replace(plain.contract, names=("red", "green", "blue")))
    grey = before(jpeg(named), x)
    torch.testing.assert_close(grey[:, 1:2], by_torchvision(x[:, 1:2], 75))
    torch.testing.assert_close(before(jpeg(colour), x), before(jpeg(plain), x))
    assert not torch.equal(grey, before(jpeg(plain), x))
