"""COVID-Net: a classifier of chest X-rays from PEPX modules."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med.models.networks.layers import Chain, Conv, require_two_axes, scaled
from robustbench_med.types import Images, Logits

STAGES = ((3, 256), (4, 512), (6, 1024), (3, 2048))
"""PEPX modules and channels of each stage: PEPX1.1 to 1.3, 2.1 to 2.4, 3.1 to 3.6, 4.1 to 4.3."""


class CovidNet(nn.Module):
    """Four stages of PEPX modules, with long-range connections inside each stage.

    A stage begins with a 1x1 convolution of its input. Every PEPX module of the stage reads the sum
    of that and of the outputs of all modules before it; the first one reads the stage's input. The
    sum of all of them, pooled to half the resolution, is the input of the next stage.

    Args:
        axes: spatial axes of an image, 2.
        channels: channels of an image.
        outputs: number of logits; the paper's are normal, pneumonia and COVID-19.
        width: multiplies every number of channels; 1 has the published ones.

    Source: Wang, Lin, Wong, Scientific Reports 10:19549 (2020) (arXiv:2003.09871), "Network design"
        and the figure of the architecture.
    Deviations: The number of modules and channels of the stages, the 7x7 convolution and the dense
        layers of 1024 and 256 units are from memory of the figure, and so is the reading of its
        long-range connections as sums. The paper does not state the channels inside a PEPX module:
        half of its input in both projections and three quarters in the expansion are those of
        public reimplementations, from memory. Batch norm and ReLU follow every convolution. The
        paper flattens the last map, which fixes the size of the image; here the dense layers read
        its mean over the pixels, so that any image of 32 pixels a side or more fits and the number
        of parameters is another.
    """

    def __init__(
        self, *, axes: int = 2, channels: int, outputs: int = 3, width: float | int = 0.125
    ) -> None:
        super().__init__()
        require_two_axes(axes)
        w = scaled(width)
        self.enter = Chain(channels, Conv(w(64), 7, stride=2), nn.MaxPool2d(2))
        widths = [w(64), *(w(stage_width) for _, stage_width in STAGES)]
        self.stages = nn.ModuleList(
            _Stage(before, after, count)
            for (before, after), (count, _) in zip(pairwise(widths), STAGES, strict=True)
        )
        self.head = nn.Sequential(
            nn.Linear(widths[-1], w(1024)),
            nn.ReLU(inplace=True),
            nn.Linear(w(1024), w(256)),
            nn.ReLU(inplace=True),
            nn.Linear(w(256), outputs),
        )

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k)`."""
        x = self.enter(x)
        for i, stage in enumerate(self.stages):
            x = stage(functional.max_pool2d(x, 2) if i else x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Stage(nn.Module):
    """PEPX modules of one width, each of which reads what all before it return."""

    def __init__(self, before: int, width: int, count: int) -> None:
        super().__init__()
        self.bridge = Chain(before, Conv(width))
        self.modules_in_order = nn.ModuleList(
            pepx(width if i else before, width) for i in range(count)
        )

    def forward(self, x: Float[Tensor, "b before h w"]) -> Float[Tensor, "b width h w"]:
        first, *later = self.modules_in_order
        total: Tensor = self.bridge(x) + first(x)
        for module in later:
            total = total + module(total)
        return total


def pepx(before: int, width: int) -> Chain:
    """Return a PEPX module: projection, expansion, depthwise 3x3, projection, extension."""
    narrow, wide = max(1, before // 2), max(1, 3 * before // 4)
    return Chain(
        before,
        Conv(narrow),
        Conv(wide),
        Conv(wide, 3, groups=wide),
        Conv(narrow),
        Conv(width),
    )
