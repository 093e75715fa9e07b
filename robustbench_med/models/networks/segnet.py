"""SegNet: segmentation with unpooling in 2-D and 3-D, narrower than any library's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from robustbench_med.models.networks.layers import CONV, POOL, UNPOOL, vgg_stage
from robustbench_med.types import Images, Logits


class SegNet(nn.Module):
    """An encoder that stores the position of each maximum, and a decoder that restores it there.

    Args:
        axes: spatial axes of an image, 2 or 3.
        channels: channels of an image.
        outputs: logits per pixel.
        widths: channels of the levels.
        convs: convolutions per level, in the encoder and in the decoder.

    Source: Badrinarayanan, Kendall, Cipolla, IEEE TPAMI 39:2481 (2017), section 3 and figure 2.
    Deviations: The network is narrow, and has as many levels as `widths` instead of the five of
        VGG16.
    """

    def __init__(
        self,
        *,
        axes: int,
        channels: int,
        outputs: int,
        widths: Sequence[int] = (16, 32, 64),
        convs: int = 2,
    ) -> None:
        super().__init__()
        self.axes = axes
        self.down = nn.ModuleList(
            vgg_stage(axes, before, width, convs) for before, width in pairwise((channels, *widths))
        )
        after = (widths[0], *widths[:-1])
        self.up = nn.ModuleList(
            nn.Sequential(
                vgg_stage(axes, width, width, convs - 1), vgg_stage(axes, width, narrower, 1)
            )
            for width, narrower in zip(widths[::-1], after[::-1], strict=True)
        )
        self.head = CONV[axes](widths[0], outputs, 1)

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        pooled: list[tuple[Tensor, torch.Size]] = []
        for stage in self.down:
            x = stage(x)
            size = x.shape[2:]
            x, indices = POOL[self.axes](x, 2, return_indices=True)
            pooled.append((indices, size))
        for stage in self.up:
            indices, size = pooled.pop()
            x = stage(UNPOOL[self.axes](x, indices, (2,) * self.axes, output_size=size))
        logits: Tensor = self.head(x)
        return logits
