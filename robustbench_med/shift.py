"""Shift: images as another scanner, operator or archive would have made them.

A family is a transform with a vector of parameters. Severity 1 is the whole box of parameters,
[-1,1] or [0,1] each; severity s is the box shrunk to s, and at 0 the image stays as it is. Boxes of
smaller severities lie in larger ones, as balls do, so one bench serves attacks and shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robustbench_med.rng import Draws
from robustbench_med.types import Images, PerSample

SAME = 1e-5  # an image that differs by more from that of its parameters is not of the family
PARAMETERS, DRAW, MOVED = "theta", "draw", "truth"  # measurements of a shifted image

Parameters = Float[Tensor, "b p"]


@dataclass(frozen=True)
class Family:
    """A transform of images with `size` parameters, each in [-1,1] or [0,1] at severity 1.

    Attributes:
        size: the number of parameters.
        apply: function of an image `(1, c, *s)` in [0,1], parameters `(1, p)` and a random stream.
            It returns the transformed image, which is clipped to [0,1] afterwards.
            With all parameters 0 it returns the image itself.
        signed: whether a parameter may be negative.
        stochastic: whether the image depends on the stream, as of noise.
        differentiable: whether the image has a gradient with respect to the parameters.
        move: for transforms that move anatomy: function of a mask `(1, *s)`, parameters and a
            stream that returns the mask moved along.
    """

    size: int
    apply: Callable[[Images, Tensor, Draws], Images]
    signed: bool = True
    stochastic: bool = False
    differentiable: bool = True
    move: Callable[[Tensor, Tensor, Draws], Tensor] | None = None

    def __call__(self, x: Images, theta: Parameters, draws: Draws) -> Images:
        """Return the images with these parameters, clipped to [0,1].

        They are made one by one: sums of a whole batch would round otherwise than those of a part
        of it, and a record must not depend on the size of a shard.
        """
        if len(x) == 0:
            return x
        rows = torch.arange(len(x), device=x.device).split(1)
        made = [self.apply(x[row], theta[row], draws.select(row)) for row in rows]
        return torch.cat(made).clamp(0, 1)

    def draw(self, severity: PerSample, rng: Draws) -> Parameters:
        """Return parameters that use the severity fully, `(b, p)`.

        Their direction is uniform in the box; they are scaled until the largest has the severity.
        """
        theta = rng.uniform(self.size)
        theta = 2 * theta - 1 if self.signed else theta
        return theta / theta.abs().amax(1, keepdim=True) * severity[:, None]

    def inside(self, severity: PerSample, rng: Draws) -> Parameters:
        """Return parameters drawn uniformly from the box, `(b, p)`."""
        theta = rng.uniform(self.size) * severity[:, None]
        return 2 * theta - severity[:, None] if self.signed else theta

    def project(self, theta: Parameters, severity: PerSample) -> Parameters:
        """Return the parameters clipped to the box of a severity, one for each image."""
        limit = severity[:, None]
        lowest = -limit if self.signed else torch.zeros_like(limit)
        return torch.minimum(torch.maximum(theta, lowest), limit)

    def moves(self, y: Any) -> bool:  # noqa: ANN401 - see Batch
        """Whether the truth of the images are masks that move along."""
        return self.move is not None and y.ndim > 2

    def truth(self, y: Any, theta: Parameters, draws: Draws) -> Any:  # noqa: ANN401 - see Batch
        """Return the truth of the transformed images: masks move along, labels stay."""
        if self.move is None or not self.moves(y) or len(y) == 0:
            return y
        rows = torch.arange(len(y), device=y.device).split(1)
        return torch.cat([self.move(y[row], theta[row], draws.select(row)) for row in rows])


class Shifted(NamedTuple):
    """Images that a search found in a family, and the parameters that make them.

    Attributes:
        z: `(b, c, *s)` in [0,1].
        theta: `(b, p)` the parameters of each image.
        draws: the random stream of each image, for families such as noise.
        family: the family.
    """

    z: Images
    theta: Parameters
    draws: Draws
    family: Family

    def severity(self, x: Images) -> PerSample:
        """Return the severity that each image uses, `(b,)`, measured and not taken on trust.

        It is the largest parameter. It is inf where the family, applied anew to the clean image
        with these parameters, gives another image, or where a parameter has a forbidden sign.
        """
        largest = self.theta.abs().amax(1)
        again = self.family(x, self.theta, self.draws)
        foreign = (again - self.z).abs().flatten(1).amax(1) > SAME
        if not self.family.signed:
            foreign |= self.theta.amin(1) < 0
        return largest.masked_fill(foreign, torch.inf)

    def truth(self, y: Any) -> Tensor | None:  # noqa: ANN401 - see Batch
        """Return the masks moved along; None where the truth stays."""
        return self.family.truth(y, self.theta, self.draws) if self.family.moves(y) else None

    def measurements(self, y: Tensor | None) -> dict[str, Tensor]:
        """Return what is kept of the shift: parameters, draws and the truth, if it moved."""
        kept = {PARAMETERS: self.theta, DRAW: self.draws.keys}
        return kept | ({} if y is None else {MOVED: y.to(torch.int16)})


def images_of(candidates: Images | Shifted) -> Images:
    """Return the images of candidates, without the parameters of a shift."""
    return candidates.z if isinstance(candidates, Shifted) else candidates


def unshifted(family: Family, y: Any) -> dict[str, Tensor]:  # noqa: ANN401 - see Batch
    """Return what `Shifted.measurements` returns, for images that nothing shifted."""
    nothing = {
        PARAMETERS: torch.zeros(len(y), family.size, device=y.device),
        DRAW: torch.zeros(len(y), dtype=torch.int64, device=y.device),
    }
    return nothing | ({MOVED: y.to(torch.int16)} if family.moves(y) else {})
