"""A hybrid lesion model: a lesion detector, and a classifier that reads its maps alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_med.models.networks.fcn import FCN
from robustbench_med.models.networks.layers import require_two_axes
from robustbench_med.types import Images, Logits


class LesionModel(nn.Module):
    """Grades an image by its lesions: the maps of a detector are pooled into a few numbers.

    For each kind of lesion the classifier reads the counted area (the sum of the probabilities, on
    a logarithmic scale) and the strongest response. It reads nothing else of the image. Both are
    differentiable: the area moves with every pixel, the strongest response with one pixel a kind.
    Where the detector is sure, the gradient of a probability is small, as that of any sigmoid.

    A recipe trains the detector first, on masks (`first` with the part "detector"), and the
    classifier then on its maps. A detector whose weights are fixed keeps its statistics too.

    Args:
        axes: spatial axes of an image, 2.
        channels: channels of an image.
        outputs: number of logits.
        kinds: kinds of lesion; the detector's class 0 is the background.
        widths: channels of the detector's levels.
        hidden: units of the classifier.

    Source: Shah et al., ISBI 2018: the hybrid lesion model that was attacked through an image
        network, an ensemble of lesion detectors with a classifier on their results.
    Deviations: Everything but that order, because its networks are not published: one narrow FCN
        finds all kinds at once, and the features and the classifier of two layers are ours. That
        model had about five million parameters, this one has thousands.
    """

    def __init__(
        self,
        *,
        axes: int = 2,
        channels: int,
        outputs: int,
        kinds: int = 3,
        widths: Sequence[int] = (12, 24, 32),
        hidden: int = 16,
    ) -> None:
        super().__init__()
        require_two_axes(axes)
        if kinds < 1:
            raise ValueError(f"expected kinds >= 1, got {kinds}")
        self.detector = FCN(
            axes=axes, channels=channels, outputs=kinds + 1, widths=widths, stride=1
        )
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(2 * kinds),
            nn.Linear(2 * kinds, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, outputs),
        )

    def maps(self, x: Images) -> Float[Tensor, "b kinds h w"]:
        """Return the probability of each kind of lesion at every pixel."""
        maps: Tensor = self.detector(x).softmax(1)[:, 1:]
        return maps

    def features(self, x: Images) -> Float[Tensor, "b features"]:
        """Return log(1 + area in pixels) of each kind, then the strongest response of each."""
        maps = self.maps(x).flatten(2)
        return torch.cat([maps.sum(2).log1p(), maps.amax(2)], 1)

    def forward(self, x: Images) -> Logits:
        """Return logits `(b, k)`."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def train(self, mode: bool = True) -> LesionModel:
        """Switch to training or back; a detector with fixed weights does not train."""
        super().train(mode)
        if not any(p.requires_grad for p in self.detector.parameters()):
            self.detector.eval()
        return self
