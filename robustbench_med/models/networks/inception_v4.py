"""Inception-v4: a classifier of uniform inception modules behind a branched stem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from robustbench_med.models.networks.inception_v3 import Inception, Maker, average, is_small
from robustbench_med.models.networks.layers import Branches, Chain, Conv, require_two_axes, scaled

Width = Callable[[int], int]
_ACROSS, _DOWN = (1, 7), (7, 1)


class InceptionV4(Inception):
    """Four modules of 35x35, seven of 17x17 and three of 8x8 pixels, on images of 299.

    Args:
        axes: spatial axes of an image, 2.
        channels: channels of an image.
        outputs: number of logits.
        width: multiplies every number of channels; 1 has the published ones.
        stem: "published" divides the sides by 8 before the first module, and takes images of 75
            pixels a side or more; "small" divides them by 4, pads, and takes 31 or more, so that an
            image of 128 has about the map sizes of one of 299.
        dropout: probability of dropout before the last layer; the paper keeps 0.8.

    Source: Szegedy, Ioffe, Vanhoucke, Alemi, AAAI 2017 (arXiv:1602.07261), section 3.1, figures 3
        to 9 and table 1, from memory; the order of flat and upright kernels in the longest branches
        is that of the released network, as timm's `inception_v4` has it.
    Deviations: Batch norm and ReLU follow every convolution. The small stem is ours.
    """

    def __init__(
        self,
        *,
        axes: int = 2,
        channels: int,
        outputs: int,
        width: float | int = 0.25,
        stem: object = "small",
        dropout: float | int = 0.2,
    ) -> None:
        require_two_axes(axes)
        w = scaled(width)
        modules: list[Maker] = [
            partial(_stem, w=w, stem=stem),
            *[partial(module_a, w=w)] * 4,
            partial(_reduction_a, w=w),
            *[partial(module_b, w=w)] * 7,
            partial(_reduction_b, w=w),
            *[partial(module_c, w=w)] * 3,
        ]
        super().__init__(modules, channels=channels, outputs=outputs, dropout=dropout)


def _stem(channels: int, w: Width, stem: object) -> Chain:
    small = is_small(stem)
    halves = Branches(
        Chain(w(64), nn.MaxPool2d(3, 2)),
        Chain(w(64), Conv(w(96), 3, stride=2, same=False)),
    )
    tower = Branches(
        Chain(halves.out, Conv(w(64)), Conv(w(96), 3, same=small)),
        Chain(
            halves.out,
            Conv(w(64)),
            Conv(w(64), _ACROSS),
            Conv(w(64), _DOWN),
            Conv(w(96), 3, same=small),
        ),
    )
    quarters = Branches(
        Chain(tower.out, Conv(w(192), 3, stride=2, same=False)),
        Chain(tower.out, nn.MaxPool2d(3, 2)),
    )
    return Chain(
        channels,
        Conv(w(32), 3, stride=1 if small else 2, same=small),
        Conv(w(32), 3, same=small),
        Conv(w(64), 3),
        halves,
        tower,
        quarters,
    )


def module_a(before: int, w: Width) -> Branches:
    """Return a module of the finest maps: pooling, 1x1, 3x3, and two of 3x3."""
    return Branches(
        Chain(before, average(), Conv(w(96))),
        Chain(before, Conv(w(96))),
        Chain(before, Conv(w(64)), Conv(w(96), 3)),
        Chain(before, Conv(w(64)), Conv(w(96), 3), Conv(w(96), 3)),
    )


def _reduction_a(before: int, w: Width) -> Branches:
    return Branches(
        Chain(before, nn.MaxPool2d(3, 2)),
        Chain(before, Conv(w(384), 3, stride=2, same=False)),
        Chain(before, Conv(w(192)), Conv(w(224), 3), Conv(w(256), 3, stride=2, same=False)),
    )


def module_b(before: int, w: Width) -> Branches:
    """Return a module of the middle maps: 7x7 convolutions factorised into 1x7 and 7x1."""
    return Branches(
        Chain(before, average(), Conv(w(128))),
        Chain(before, Conv(w(384))),
        Chain(before, Conv(w(192)), Conv(w(224), _ACROSS), Conv(w(256), _DOWN)),
        Chain(
            before,
            Conv(w(192)),
            Conv(w(192), _DOWN),
            Conv(w(224), _ACROSS),
            Conv(w(224), _DOWN),
            Conv(w(256), _ACROSS),
        ),
    )


def _reduction_b(before: int, w: Width) -> Branches:
    return Branches(
        Chain(before, nn.MaxPool2d(3, 2)),
        Chain(before, Conv(w(192)), Conv(w(192), 3, stride=2, same=False)),
        Chain(
            before,
            Conv(w(256)),
            Conv(w(256), _ACROSS),
            Conv(w(320), _DOWN),
            Conv(w(320), 3, stride=2, same=False),
        ),
    )


def module_c(before: int, w: Width) -> Branches:
    """Return a module of the coarsest maps: 3x3 convolutions split into 1x3 beside 3x1."""
    return Branches(
        Chain(before, average(), Conv(w(256))),
        Chain(before, Conv(w(256))),
        Chain(before, Conv(w(384)), _split(w(384), w(256))),
        Chain(
            before,
            Conv(w(384)),
            Conv(w(448), (3, 1)),
            Conv(w(512), (1, 3)),
            _split(w(512), w(256)),
        ),
    )


def _split(before: int, width: int) -> Branches:
    return Branches(
        Chain(before, Conv(width, (1, 3))),
        Chain(before, Conv(width, (3, 1))),
    )
