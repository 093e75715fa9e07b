"""Small segmentation networks in 2-D and 3-D (FCN, SegNet, V-Net), narrower than any library's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med.types import Images, Logits

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}
_UNPOOL = {2: functional.max_unpool2d, 3: functional.max_unpool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


def _stage(axes: int, before: int, width: int, convs: int) -> nn.Sequential:
    """Return `convs` convolutions of width 3, each with batch norm and ReLU, as in VGG."""
    layers: list[nn.Module] = []
    for i in range(convs):
        conv = _CONV[axes](width if i else before, width, 3, padding=1, bias=False)
        layers += [conv, _NORM[axes](width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class FCN(nn.Module):
    """A fully convolutional network that sums the scores of all levels from coarse to fine.

    Args:
        axes: spatial axes of an image, 2 or 3.
        channels: channels of an image.
        outputs: logits per pixel.
        widths: channels of the levels; each level has half the resolution of the one before.
        convs: convolutions per level.
        stride: stride of the finest level that is scored; 8 for FCN-8s.

    Source: Long, Shelhamer, Darrell, CVPR 2015, section 4.2.
    Deviations: The backbone follows the pattern of VGG with batch norm. Scores are upsampled
        linearly; the paper learns the upsampling and starts from the linear one. Levels finer than
        pool3 may be scored, for vessels of one or two pixels.
    """

    def __init__(
        self,
        *,
        axes: int,
        channels: int,
        outputs: int,
        widths: Sequence[int] = (16, 32, 64, 96),
        convs: int = 2,
        stride: int = 2,
    ) -> None:
        super().__init__()
        self.axes = axes
        self.stages = nn.ModuleList(
            _stage(axes, before, width, convs) for before, width in pairwise((channels, *widths))
        )
        self.scores = nn.ModuleDict(
            {str(i): _CONV[axes](w, outputs, 1) for i, w in enumerate(widths) if 2**i >= stride}
        )
        if not self.scores:
            raise ValueError(f"expected stride <= {2 ** (len(widths) - 1)}, got {stride}")

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        size, scored = x.shape[2:], []
        for i, stage in enumerate(self.stages):
            x = stage(_POOL[self.axes](x, 2) if i else x)
            if str(i) in self.scores:
                scored.append(self.scores[str(i)](x))
        total = scored.pop()
        while scored:
            finer = scored.pop()
            total = finer + self._up(total, finer.shape[2:])
        return self._up(total, size)

    def _up(self, scores: Logits, size: tuple[int, ...]) -> Float[Tensor, "b k *size"]:
        if scores.shape[2:] == size:
            return scores
        return functional.interpolate(scores, size, mode=_LINEAR[self.axes], align_corners=False)


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
            _stage(axes, before, width, convs) for before, width in pairwise((channels, *widths))
        )
        after = (widths[0], *widths[:-1])
        self.up = nn.ModuleList(
            nn.Sequential(_stage(axes, width, width, convs - 1), _stage(axes, width, narrower, 1))
            for width, narrower in zip(widths[::-1], after[::-1], strict=True)
        )
        self.head = _CONV[axes](widths[0], outputs, 1)

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        pooled: list[tuple[Tensor, torch.Size]] = []
        for stage in self.down:
            x = stage(x)
            size = x.shape[2:]
            x, indices = _POOL[self.axes](x, 2, return_indices=True)
            pooled.append((indices, size))
        for stage in self.up:
            indices, size = pooled.pop()
            x = stage(_UNPOOL[self.axes](x, indices, (2,) * self.axes, output_size=size))
        logits: Tensor = self.head(x)
        return logits


class _Residual(nn.Module):
    """Convolutions whose result is added to a skip connection."""

    def __init__(self, axes: int, before: int, width: int, convs: int, kernel: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(convs):
            conv = _CONV[axes](
                width if i else before, width, kernel, padding=kernel // 2, bias=False
            )
            layers += [conv, _NORM[axes](width)] + [nn.PReLU(width)] * (i + 1 < convs)
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
        self.enter = _CONV[axes](channels, width, 1)
        self.left = nn.ModuleList(
            _Residual(axes, w, w, n, kernel) for w, n in zip(widths, convs, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(_CONV[axes](a, b, 2, 2, bias=False), _NORM[axes](b), nn.PReLU(b))
            for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.Sequential(_TRANSPOSED[axes](b, a, 2, 2, bias=False), _NORM[axes](a), nn.PReLU(a))
            for a, b in pairwise(widths)
        )
        self.right = nn.ModuleList(
            _Residual(axes, 2 * w, w, n, kernel) for w, n in zip(widths, convs[:-1], strict=False)
        )
        self.head = _CONV[axes](width, outputs, 1)

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


NETWORKS: dict[str, type[nn.Module]] = {"fcn": FCN, "segnet": SegNet, "vnet": VNet}
