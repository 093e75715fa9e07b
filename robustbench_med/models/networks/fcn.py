"""FCN: fully convolutional segmentation in 2-D and 3-D, narrower than any library's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustbench_med.models.networks.layers import CONV, LINEAR, POOL, vgg_stage
from robustbench_med.types import Images, Logits


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
            vgg_stage(axes, before, width, convs) for before, width in pairwise((channels, *widths))
        )
        self.scores = nn.ModuleDict(
            {str(i): CONV[axes](w, outputs, 1) for i, w in enumerate(widths) if 2**i >= stride}
        )
        if not self.scores:
            raise ValueError(f"expected stride <= {2 ** (len(widths) - 1)}, got {stride}")

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k, *s)`."""
        size, scored = x.shape[2:], []
        for i, stage in enumerate(self.stages):
            x = stage(POOL[self.axes](x, 2) if i else x)
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
        return functional.interpolate(scores, size, mode=LINEAR[self.axes], align_corners=False)
