"""FC-DenseNet: densely connected segmentation, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_med.models.networks.layers import CONV, NORM, TRANSPOSED
from robustbench_med.types import Images, Logits

_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
_MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class FCDenseNet(nn.Module):
    """Dense blocks between transitions, with concatenated skips.

    Every layer of a dense block reads the block's input and the outputs of all layers before it.
    On the way down a block's input is passed on with its output; on the way up only the output is,
    so that the number of channels does not explode. Only the last block passes on both.

    Args:
        axes: spatial axes of an image, 2 or 3.
        channels: channels of an image.
        outputs: logits per pixel.
        growth: channels that each layer adds.
        layers: layers per dense block, from the finest to the coarsest; the way up mirrors them.
        first: channels of the first convolution.
        dropout: probability of dropout after each convolution in training.

    Source: Jégou, Drozdzal, Vazquez, Romero, Bengio, CVPR Workshops 2017 (arXiv:1611.09326),
        section 3 and tables 1 to 3, from memory. The paper's networks have first=48: FC-DenseNet56
        growth=12 and layers=[4, 4, 4, 4, 4, 4], FC-DenseNet67 growth=16 and layers=[5, 5, 5, 5, 5,
        5], FC-DenseNet103 growth=16 and layers=[4, 5, 7, 10, 12, 15]; the defaults are narrow and
        shallow.
    Deviations: Convolutions before a batch norm have no bias, and dropout removes whole channels.
        The output of a transition up is cropped to its skip, so that an image may have any side
        from 2^(number of blocks - 1) on. A third axis is ours.
    """

    def __init__(
        self,
        *,
        axes: int,
        channels: int,
        outputs: int,
        growth: int = 8,
        layers: Sequence[int] = (2, 2, 2, 2),
        first: int = 16,
        dropout: float | int = 0.2,
    ) -> None:
        super().__init__()
        if len(layers) < 2 or min(layers) < 1:
            raise ValueError(f"expected layers of two blocks or more, got {list(layers)}")
        self.enter = CONV[axes](channels, first, 3, padding=1, bias=False)
        *finer, coarsest = layers
        width, skips = first, list[int]()
        self.down, self.transitions = nn.ModuleList(), nn.ModuleList()
        for count in finer:
            self.down.append(_Block(axes, width, growth, count, dropout))
            width += count * growth
            skips.append(width)
            self.transitions.append(_transition_down(axes, width, dropout))
        self.bottom = _Block(axes, width, growth, coarsest, dropout)
        self.back, self.up = nn.ModuleList(), nn.ModuleList()
        new = coarsest * growth
        for count in reversed(finer):
            self.back.append(TRANSPOSED[axes](new, new, 3, 2, bias=False))
            width = new + skips.pop()
            self.up.append(_Block(axes, width, growth, count, dropout))
            new = count * growth
        self.head = CONV[axes](width + new, outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        x = self.enter(x)
        skips = []
        for block, transition in zip(self.down, self.transitions, strict=True):
            x = torch.cat([x, block(x)], 1)
            skips.append(x)
            x = transition(x)
        new = self.bottom(x)
        for back, block in zip(self.back, self.up, strict=True):
            skip = skips.pop()
            x = torch.cat([_cropped(back(new), skip.shape[2:]), skip], 1)
            new = block(x)
        logits: Tensor = self.head(torch.cat([x, new], 1))
        return logits


class _Block(nn.Module):
    """A dense block; it returns the channels that its layers add, without its input."""

    def __init__(
        self, axes: int, before: int, growth: int, count: int, dropout: float | int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                NORM[axes](before + i * growth),
                nn.ReLU(inplace=True),
                CONV[axes](before + i * growth, growth, 3, padding=1, bias=False),
                _DROPOUT[axes](dropout),
            )
            for i in range(count)
        )

    def forward(self, x: Float[Tensor, "b before *s"]) -> Float[Tensor, "b new *s"]:
        new: list[Tensor] = []
        for layer in self.layers:
            new.append(layer(torch.cat([x, *new], 1)))
        return torch.cat(new, 1)


def _transition_down(axes: int, width: int, dropout: float | int) -> nn.Sequential:
    """Return the layers that halve each side; unlike in DenseNet they keep all channels."""
    return nn.Sequential(
        NORM[axes](width),
        nn.ReLU(inplace=True),
        CONV[axes](width, width, 1, bias=False),
        _DROPOUT[axes](dropout),
        _MAX_POOL[axes](2),
    )


def _cropped(x: Float[Tensor, "b c *s"], size: torch.Size) -> Float[Tensor, "b c *size"]:
    """Return the middle of an image: a transposed convolution returns 2n + 1 pixels of n."""
    for axis, side in enumerate(size, start=2):
        x = x.narrow(axis, (x.shape[axis] - side) // 2, side)
    return x
