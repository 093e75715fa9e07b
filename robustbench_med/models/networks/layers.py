"""Layers that several of our networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: functional.max_pool2d, 3: functional.max_pool3d}
UNPOOL = {2: functional.max_unpool2d, 3: functional.max_unpool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


def vgg_stage(axes: int, before: int, width: int, convs: int) -> nn.Sequential:
    """Return `convs` convolutions of width 3, each with batch norm and ReLU, as in VGG."""
    layers: list[nn.Module] = []
    for i in range(convs):
        conv = CONV[axes](width if i else before, width, 3, padding=1, bias=False)
        layers += [conv, NORM[axes](width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Conv(NamedTuple):
    """A convolution with batch norm and ReLU, as a layer of a `Chain`.

    Attributes:
        width: number of output channels.
        kernel: its side, or its height and width.
        stride: its stride.
        same: whether the image is padded, so that a stride of 1 keeps its size.
        groups: number of groups of channels; `width` for a depthwise convolution.
    """

    width: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    same: bool = True
    groups: int = 1


class Chain(nn.Sequential):
    """Layers one after the other, on images of two axes.

    Args:
        before: number of input channels.
        layers: convolutions, and modules; a module with `out` states its number of channels.
    """

    def __init__(self, before: int, *layers: Conv | nn.Module) -> None:
        out, modules = before, list[nn.Module]()
        for layer in layers:
            if isinstance(layer, Conv):
                modules.append(_convolution(out, layer))
                out = layer.width
            else:
                modules.append(layer)
                out = int(getattr(layer, "out", out))
        super().__init__(*modules)
        self.out = out


def _convolution(before: int, conv: Conv) -> nn.Sequential:
    sides = (conv.kernel, conv.kernel) if isinstance(conv.kernel, int) else conv.kernel
    padding = (sides[0] // 2, sides[1] // 2) if conv.same else (0, 0)
    return nn.Sequential(
        nn.Conv2d(before, conv.width, sides, conv.stride, padding, groups=conv.groups, bias=False),
        nn.BatchNorm2d(conv.width, eps=1e-3),
        nn.ReLU(inplace=True),
    )


class Branches(nn.Module):
    """Chains that read the same image; their outputs are concatenated along the channels."""

    def __init__(self, *chains: Chain) -> None:
        super().__init__()
        self.chains = nn.ModuleList(chains)
        self.out = sum(chain.out for chain in chains)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """Return the concatenated outputs."""
        return torch.cat([chain(x) for chain in self.chains], 1)


def scaled(width: float | int) -> Callable[[int], int]:
    """Return a function that multiplies a published number of channels, and rounds to 1 or more.

    Raises:
        ValueError: the width is not above 0.

    >>> scaled(0.25)(48), scaled(0.01)(32)
    (12, 1)
    """
    if not width > 0:
        raise ValueError(f"expected width > 0, got {width}")
    return lambda channels: max(1, round(width * channels))


def require_two_axes(axes: int) -> None:
    """Raise ValueError unless the network is built for images of two axes."""
    if axes != 2:
        raise ValueError(f"expected images of two axes, got {axes}")
