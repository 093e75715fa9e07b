"""V-Net: residual segmentation in 2-D and 3-D, narrower than any library's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_med.models.networks.layers import CONV, NORM, TRANSPOSED
from robustbench_med.types import Images, Logits


class _Residual(nn.Module):
    """Convolutions whose result is added to a skip connection."""

    def __init__(self, axes: int, before: int, width: int, convs: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(convs):
            conv = CONV[axes](
                width if i else before, width, kernel, padding=kernel // 2, bias=False
            )
            layers += [conv, NORM[axes](width)] + [nn.PReLU(width)] * (i + 1 < convs)
        self.convs = nn.Sequential(*layers)
        self.act = nn.PReLU(width)

    def forward(
        self, x: Float[Tensor, "b before *s"], skip: Float[Tensor, "b #w *s"]
    ) -> Float[Tensor, "b w *s"]:
        result: Tensor = self.act(self.convs(x) + skip)
        return result


class VNet(nn.Module):
    """A network of residual stages between strided convolutions, with concatenated skips.

    Args:
        axes: spatial axes of an image, 2 or 3.
        channels: channels of an image.
        outputs: logits per voxel.
        width: channels of the finest level; each coarser level has twice as many.
        convs: convolutions per level, from fine to coarse.
        kernel: width of a convolution, odd.

    Source: Milletari, Navab, Ahmadi, 3DV 2016, section 2 and figure 2; the paper uses width 16,
        convs (1, 2, 3, 3, 3) and kernel 5.
    Deviations: Batch norm is added. A decoder stage adds its upsampled input to its result, not the
        concatenation, so that it needs half the width.
    """

    def __init__(
        self,
        *,
        axes: int,
        channels: int,
        outputs: int,
        width: int = 8,
        convs: Sequence[int] = (1, 2, 2, 2),
        kernel: int = 3,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"expected kernel odd, got {kernel}")
        widths = [width * 2**i for i in range(len(convs))]
        self.enter = CONV[axes](channels, width, 1)
        self.left = nn.ModuleList(
            _Residual(axes, w, w, n, kernel) for w, n in zip(widths, convs, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(CONV[axes](a, b, 2, 2, bias=False), NORM[axes](b), nn.PReLU(b))
            for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.Sequential(TRANSPOSED[axes](b, a, 2, 2, bias=False), NORM[axes](a), nn.PReLU(a))
            for a, b in pairwise(widths)
        )
        self.right = nn.ModuleList(
            _Residual(axes, 2 * w, w, n, kernel) for w, n in zip(widths, convs[:-1], strict=False)
        )
        self.head = CONV[axes](width, outputs, 1)

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`; the sides of an image must be multiples of 2^(levels - 1)."""
        x = self.enter(x)
        x = self.left[0](x, x)
        skips = []
        for down, left in zip(self.down, list(self.left)[1:], strict=True):
            skips.append(x)
            x = down(x)
            x = left(x, x)
        for up, right in zip(reversed(self.up), reversed(self.right), strict=True):
            x = up(x)
            x = right(torch.cat([x, skips.pop()], 1), x)
        logits: Tensor = self.head(x)
        return logits
