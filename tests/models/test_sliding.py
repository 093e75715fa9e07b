"""A network under a sliding window is one victim: its gradient is that of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_med.errors import SpecError
from robustbench_med.models import weights
from robustbench_med.models.load import load_victim
from robustbench_med.models.sliding import Sliding, bare
from tests.bench.toys import card_of


class Centred(nn.Module):
    """Logits that depend on all of the window: what is seen of it matters, smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        middle = x.mean(tuple(range(1, x.ndim)), keepdim=True)
        return torch.cat([torch.tanh(x - middle), x.square()], 1)


@pytest.mark.parametrize(
    ("size", "window"), [((11, 13), (8, 8)), ((6, 5, 7), (4, 4, 4)), ((9, 6), (4, 6))]
)
def test_the_gradient_is_that_of_finite_differences(
    size: tuple[int, ...], window: tuple[int, ...]
) -> None:
    sliding = Sliding(Centred(), window=window, overlap=0.25)
    x = torch.rand(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = x.clone().requires_grad_(True)
    weight = torch.randn(
        2, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    (g,) = torch.autograd.grad((sliding(leaf) * weight).sum(), leaf)
    step = 1e-5
    for pixel in range(x[0].numel()):  # corners, overlaps and all others
        change = torch.zeros_like(x).flatten(1)
        change[:, pixel] = step
        up, down = x + change.view_as(x), x - change.view_as(x)
        slope = ((sliding(up) - sliding(down)) * weight).flatten(1).sum(1) / (2 * step)
        torch.testing.assert_close(g.flatten(1)[:, pixel], slope, atol=1e-7, rtol=1e-6)
    assert (g != 0).all()


def test_a_window_that_is_the_image_is_the_plain_network() -> None:
    sliding = Sliding(Centred(), window=(8, 8), overlap=0.5)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(sliding(x), Centred()(x))


def test_windows_are_read_apart_and_blended_where_they_overlap() -> None:
    sliding = Sliding(Centred(), window=(8, 8), overlap=0.25)
    x = torch.rand(2, 1, 8, 14)
    blended = sliding(x)
    first, second = Centred()(x[..., :8]), Centred()(x[..., 6:])
    torch.testing.assert_close(blended[..., :6], first[..., :6])
    torch.testing.assert_close(blended[..., 8:], second[..., 2:])
    both, a, b = blended[..., 6:8], first[..., 6:], second[..., :2]
    weight = ((both - b) * (a - b)).sum((0, 1, 2)) / (a - b).square().sum((0, 1, 2))
    # of the window each column is nearer to, the more; and the two mirror each other
    assert 0.5 < weight[0] < 1
    torch.testing.assert_close(weight.sum(), torch.tensor(1.0), atol=0.05, rtol=0)


def test_a_network_of_single_pixels_does_not_notice_windows() -> None:
    network = nn.Conv3d(1, 3, 1)
    x = torch.rand(1, 1, 10, 9, 8)
    sliding = Sliding(network, window=(4, 4, 4), overlap=0.25)
    torch.testing.assert_close(sliding(x), network(x))
    assert bare(sliding) is network
    assert bare(network) is network


def test_a_users_own_model_under_a_window(tmp_path: Path) -> None:
    from robustbench_med.models.build import build
    from robustbench_med.spec import parse

    data = card_of(torch.zeros(1, 1, 16, 24), 3, task="segmentation")
    module = build(parse("segnet(widths=[4, 8])"), channels=1, outputs=3, size=(16, 16))
    weights.write(module, tmp_path / "w")
    spec = f"segnet(widths=[4, 8], weights='{tmp_path / 'w'}'"
    plain = load_victim(f"{spec})", data)
    slid = load_victim(f"{spec}, window=[16, 16])", data)
    more = load_victim(f"{spec}, window=[16, 16], overlap=0.5)", data)
    assert len({plain.sha256, slid.sha256, more.sha256}) == 3  # it is part of the answers
    assert isinstance(slid.victim.module, Sliding)
    slid.victim.check(torch.zeros(2, 1, 16, 24), (3,), masks=True)
    x = torch.rand(2, 1, 16, 24)
    assert not torch.allclose(slid.victim.logits(x), plain.victim.logits(x))
    for wrong, message in (
        ("window=[16]", r"expected window=\[\.\.\] within \[16, 24\], got \[16\]"),
        ("window=[16, 25]", "expected window"),
        ("window=[0, 16]", "expected window"),
        ("window=8", "expected window"),
        ("window=[16, 16], overlap=1", r"expected overlap in \[0,1\), got 1"),
        ("overlap='a'", "expected overlap"),
    ):
        with pytest.raises(SpecError, match=message):
            load_victim(f"{spec}, {wrong})", data)
