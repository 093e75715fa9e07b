"""Inception-v3: a classifier of factorised inception modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from robustbench_med.models.networks.layers import Branches, Chain, Conv, require_two_axes, scaled
from robustbench_med.types import Images, Logits

Width = Callable[[int], int]
Maker = Callable[[int], Chain | Branches]  # makes a module from its number of input channels


class Inception(nn.Module):
    """Modules one after the other, the mean of their maps, dropout and one linear layer.

    Args:
        modules: makers of the modules.
        channels: channels of an image.
        outputs: number of logits.
        dropout: probability of dropout before the last layer.
    """

    def __init__(
        self,
        modules: Iterable[Maker],
        *,
        channels: int,
        outputs: int,
        dropout: float | int,
    ) -> None:
        super().__init__()
        layers, out = list[nn.Module](), channels
        for make in modules:
            module = make(out)
            layers.append(module)
            out = module.out
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(out, outputs))

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k)`."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class InceptionV3(Inception):
    """Three modules of 35x35, four of 17x17 and two of 8x8 pixels, on images of 299.

    Args:
        axes: spatial axes of an image, 2.
        channels: channels of an image.
        outputs: number of logits.
        width: multiplies every number of channels; 1 has the published ones.
        stem: "published" divides the sides by 8 before the first module, and takes images of 75
            pixels a side or more; "small" divides them by 4, pads, and takes 31 or more, so that an
            image of 128 has about the map sizes of one of 299.
        dropout: probability of dropout before the last layer.

    Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016 (arXiv:1512.00567), sections 3 to 6
        and table 1, in the released form (Keras and timm `inception_v3`), from memory: its first
        modules have a 5x5 convolution in place of two of 3x3, and the stem's channels are 32, 32,
        64, 80 and 192.
    Deviations: The auxiliary classifier is left out, as in Keras. The small stem is ours.
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
            *(partial(module_a, w=w, pooled=pooled) for pooled in (32, 64, 64)),
            partial(_reduction_a, w=w),
            *(partial(module_b, w=w, inner=inner) for inner in (128, 160, 160, 192)),
            partial(_reduction_b, w=w),
            *[partial(module_c, w=w)] * 2,
        ]
        super().__init__(modules, channels=channels, outputs=outputs, dropout=dropout)


def average() -> nn.AvgPool2d:
    """Return the pooling of an inception module, which does not count the padding."""
    return nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)


def is_small(stem: object) -> bool:
    """Return whether a stem is the one for small images.

    Raises:
        ValueError: there is no such stem.
    """
    if stem not in ("small", "published"):
        raise ValueError(f"expected stem 'small' or 'published', got {stem!r}")
    return stem == "small"


def _stem(channels: int, w: Width, stem: object) -> Chain:
    small = is_small(stem)
    return Chain(
        channels,
        Conv(w(32), 3, stride=1 if small else 2, same=small),
        Conv(w(32), 3, same=small),
        Conv(w(64), 3),
        nn.MaxPool2d(3, 2),
        Conv(w(80)),
        Conv(w(192), 3, same=small),
        nn.MaxPool2d(3, 2),
    )


def module_a(before: int, w: Width, pooled: int) -> Branches:
    """Return a module of the finest maps: 1x1, 5x5, two of 3x3, and pooling."""
    return Branches(
        Chain(before, Conv(w(64))),
        Chain(before, Conv(w(48)), Conv(w(64), 5)),
        Chain(before, Conv(w(64)), Conv(w(96), 3), Conv(w(96), 3)),
        Chain(before, average(), Conv(w(pooled))),
    )


def _reduction_a(before: int, w: Width) -> Branches:
    return Branches(
        Chain(before, Conv(w(384), 3, stride=2, same=False)),
        Chain(before, Conv(w(64)), Conv(w(96), 3), Conv(w(96), 3, stride=2, same=False)),
        Chain(before, nn.MaxPool2d(3, 2)),
    )


def module_b(before: int, w: Width, inner: int) -> Branches:
    """Return a module of the middle maps: 7x7 convolutions factorised into 1x7 and 7x1."""
    across, down, narrow = (1, 7), (7, 1), w(inner)
    return Branches(
        Chain(before, Conv(w(192))),
        Chain(before, Conv(narrow), Conv(narrow, across), Conv(w(192), down)),
        Chain(
            before,
            Conv(narrow),
            Conv(narrow, down),
            Conv(narrow, across),
            Conv(narrow, down),
            Conv(w(192), across),
        ),
        Chain(before, average(), Conv(w(192))),
    )


def _reduction_b(before: int, w: Width) -> Branches:
    return Branches(
        Chain(before, Conv(w(192)), Conv(w(320), 3, stride=2, same=False)),
        Chain(
            before,
            Conv(w(192)),
            Conv(w(192), (1, 7)),
            Conv(w(192), (7, 1)),
            Conv(w(192), 3, stride=2, same=False),
        ),
        Chain(before, nn.MaxPool2d(3, 2)),
    )


def module_c(before: int, w: Width) -> Branches:
    """Return a module of the coarsest maps: 3x3 convolutions split into 1x3 beside 3x1."""
    return Branches(
        Chain(before, Conv(w(320))),
        Chain(before, Conv(w(384)), _split(w(384), w(384))),
        Chain(before, Conv(w(448)), Conv(w(384), 3), _split(w(384), w(384))),
        Chain(before, average(), Conv(w(192))),
    )


def _split(before: int, width: int) -> Branches:
    return Branches(
        Chain(before, Conv(width, (1, 3))),
        Chain(before, Conv(width, (3, 1))),
    )
